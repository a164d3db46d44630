"""How the chart lets clients in: what of it has the key, which ports lead where, and objects that API servers take."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.chart import CHART, NAMESPACE, helm, named, of_kind, rendered
from tuneyard.api import names
from tuneyard.gateway.options import options
from tuneyard.planning.settings import Settings
from tuneyard.systems.envoy.tls import Tls
from tuneyard.systems.kube.client import Object

pytestmark = pytest.mark.apiserver
TLS = {"enabled": True, "secretName": "cert"}
ONLY = {**TLS, "plain": False}
MUTUAL = {**ONLY, "clientCaConfigMap": "clients", "minVersion": "1.3"}
INGRESS = {"enabled": True, "className": "nginx", "host": "models.example.com", "tls": {"secretName": "front"}}
ROUTE = {
    "enabled": True,
    "parentRefs": [{"name": "public", "namespace": "edge", "sectionName": "https"}],
    "hostnames": ["models.example.com"],
}


def pod_of(**gateway: Any) -> dict[str, Any]:
    deployment = named(rendered(gateway=gateway), "Deployment", "tuneyard-gateway")
    return dict(deployment["spec"]["template"]["spec"])


def settings_of(**gateway: Any) -> Settings:
    data = named(rendered(gateway=gateway), "ConfigMap", "tuneyard-config")["data"]
    return Settings.from_dict(yaml.safe_load(data["config.yaml"]))


def ports_of(service: Object) -> dict[str, tuple[int, int]]:
    return {p["name"]: (p["port"], p.get("targetPort", p["port"])) for p in service["spec"]["ports"]}


@pytest.mark.parametrize("tls", [TLS, ONLY, MUTUAL])
def test_envoy_alone_gets_the_key(tls: dict[str, Any]) -> None:
    spec = pod_of(tls=tls)
    mounts = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in [*spec["initContainers"], *spec["containers"]]}
    assert [name for name, mounted in mounts.items() if "tls" in mounted] == ["envoy"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == "tls"]
    assert volume["secret"]["secretName"] == "cert"
    assert "optional" not in volume["secret"], "its files stay where the Secret goes"
    (envoy,) = [c for c in spec["initContainers"] if c["name"] == "envoy"]
    assert all("subPath" not in m for m in envoy["volumeMounts"]), "a new certificate arrives"


@pytest.mark.parametrize("tls", [TLS, ONLY, MUTUAL])
def test_process_and_bootstrap_are_told_the_same(tls: dict[str, Any]) -> None:
    spec = pod_of(tls=tls)
    (bootstrap,) = [c for c in spec["initContainers"] if c["name"] == "bootstrap"]
    told = [
        options({e["name"]: e["value"] for e in c["env"] if "value" in e}).tls for c in (bootstrap, *spec["containers"])
    ]
    expected = Tls(
        names.GATEWAY_TLS_PORT,
        "/etc/tuneyard-tls",
        "/run/tuneyard",
        min_version=tls.get("minVersion", "1.2"),
        client_ca="/etc/tuneyard-client-ca" if tls is MUTUAL else "",
        plain=tls.get("plain", True),
        secret="cert",
    )
    assert told == [expected, expected]
    assert options({}).tls is None


def test_ports_lead_to_where_envoy_listens() -> None:
    def services(**gateway: Any) -> dict[str, dict[str, tuple[int, int]]]:
        found = of_kind(rendered(gateway=gateway), "Service")
        return {s["metadata"]["name"].removeprefix("tuneyard-gateway"): ports_of(s) for s in found}

    peers = {"observe": (9443, 9443)}
    plain, tls, gates = (8080, names.GATEWAY_PORT), (443, names.GATEWAY_TLS_PORT), (8080, names.GATEWAY_PORT)
    assert services() == {"": {"http": plain}, "-peers": peers}
    assert services(tls=TLS) == {"": {"http": plain, "https": tls}, "-peers": peers}
    assert services(tls=ONLY) == {"": {"https": tls}, "-gates": {"http": gates}, "-peers": peers}


def test_who_may_connect_follows_the_ports() -> None:
    def clients(**gateway: Any) -> dict[int, Any]:
        policy = named(rendered(gateway=gateway), "NetworkPolicy", "tuneyard-gateway")["spec"]
        return {rule["ports"][0]["port"]: rule.get("from") for rule in policy["ingress"]}

    assert clients(tls=TLS)[8443] is None and clients(tls=TLS)[8080] is None
    (gates,) = clients(tls=ONLY)[8080]
    assert clients(tls=ONLY)[8443] is None
    assert gates["namespaceSelector"] == {}
    written = (ROOT / "tests" / "golden" / "gates" / "benchmark.yaml").read_text()
    (job,) = of_kind(list(yaml.safe_load_all(written)), "Job")
    assert gates["podSelector"]["matchLabels"].items() <= job["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("gateway", "url", "gates"),
    [
        ({}, "http://tuneyard-gateway.tuneyard-system.svc:8080", "http://tuneyard-gateway.tuneyard-system.svc:8080"),
        ({"tls": TLS}, "http://tuneyard-gateway.tuneyard-system.svc:8080", "http://tuneyard-gateway.tuneyard-system.svc:8080"),
        ({"tls": ONLY}, "https://tuneyard-gateway.tuneyard-system.svc:443", "http://tuneyard-gateway-gates.tuneyard-system.svc:8080"),
        ({"ingress": INGRESS}, "https://models.example.com", "http://tuneyard-gateway.tuneyard-system.svc:8080"),
        ({"ingress": {"enabled": True, "host": "a.b"}}, "http://a.b", "http://tuneyard-gateway.tuneyard-system.svc:8080"),
    ],
)  # fmt: skip
def test_addresses_are_those_of_what_stands_before(gateway: dict[str, Any], url: str, gates: str) -> None:
    settings = settings_of(**gateway)
    assert (settings.gateway_url, settings.gateway_service) == (url, gates)


def test_notes_say_how_it_is_reached() -> None:
    values = f"--set-json=gateway={json.dumps({'tls': ONLY})}"
    shown = helm("install", "t", str(CHART), "--dry-run=client", "--namespace", NAMESPACE, values).stdout
    assert "port-forward service/tuneyard-gateway 8443:443" in shown
    assert "URL=https://127.0.0.1:8443" in shown


@pytest.mark.parametrize(
    "gateway",
    [
        {"ingress": {"enabled": True}, "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]}},
        {"ingress": INGRESS, "httpRoute": {**ROUTE, "requestTimeout": "", "annotations": {"a": "b"}}, "tls": ONLY},
    ],
)
def test_a_real_api_server_takes_ingress_and_route(gateway: dict[str, Any], gateway_api: ApiServer) -> None:
    objects = [o for o in rendered(gateway=gateway) if o["kind"] in ("Ingress", "HTTPRoute")]
    assert len(objects) == 2
    text = "---\n".join(yaml.safe_dump(obj) for obj in objects)
    done = gateway_api.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr, done.stderr


def test_streams_are_not_cut_by_what_stands_before() -> None:
    objects = rendered(gateway={"ingress": INGRESS, "httpRoute": ROUTE})
    annotations = named(objects, "Ingress", "tuneyard-gateway")["metadata"]["annotations"]
    nginx = {key.rpartition("/")[2]: value for key, value in annotations.items()}
    # an engine may be silent for 600 s, and bodies have 8 MiB: documents.py
    assert (nginx["proxy-read-timeout"], nginx["proxy-body-size"], nginx["proxy-buffering"]) == ("600", "8m", "off")
    (rule,) = named(objects, "HTTPRoute", "tuneyard-gateway")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s"}
    assert not list(of_kind(rendered(), "Ingress")) + list(of_kind(rendered(), "HTTPRoute"))


def test_examples_are_values_that_the_chart_takes(gateway_api: ApiServer) -> None:
    for name in ("tls", "mutual-tls", "ingress", "httproute"):
        values = yaml.safe_load((ROOT / "examples" / "exposure" / f"{name}.yaml").read_text())
        objects = rendered(**values)
        text = "---\n".join(yaml.safe_dump(obj) for obj in objects)
        done = gateway_api.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
            stdin=text,
        )
        assert done.returncode == 0, (name, done.stderr)
        data = yaml.safe_load(named(objects, "ConfigMap", "tuneyard-config")["data"]["config.yaml"])
        assert data["gatewayUrl"] == "https://models.example.com", name
    certificate = yaml.safe_load((ROOT / "examples" / "exposure" / "certificate.yaml").read_text())
    tls = yaml.safe_load((ROOT / "examples" / "exposure" / "tls.yaml").read_text())["gateway"]["tls"]
    assert certificate["spec"]["secretName"] == tls["secretName"], "cert-manager is not here to take it"
