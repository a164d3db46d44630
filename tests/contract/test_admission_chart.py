"""The chart: what it makes is safe by construction, survives upgrades, and a real API server takes all of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.chart import CHART, CRD, NAMESPACE, helm, install, named, of_kind, rendered
from tuneyard.api import names
from tuneyard.api.crds import rendered as crd_files
from tuneyard.gateway import quotamonths
from tuneyard.gateway.options import options
from tuneyard.gateway.tokenoptions import GivenTokens
from tuneyard.handlers.main import HEALTH_PORT
from tuneyard.planning.priorities import PoolLimits
from tuneyard.planning.settings import Settings
from tuneyard.systems.envoy.bootstrap import envoy_arguments
from tuneyard.systems.kube.client import Object

pytestmark = pytest.mark.apiserver
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {
        "images": {"tuneyard": {"ref": "localhost/t:1"}, "envoy": {"ref": "localhost/e:1"}, "vllm": {"ref": "v:1"}},
        "imagePullPolicy": "Never",
        "imagePullSecrets": ["pull"],
        "engineEnv": {"OMP_NUM_THREADS": 1, "A": "b: {c}", "FLAG": True},
        "allowedHostPathPrefixes": ["/var/lib/models"],
        "allowedCacheHostPaths": ["/var/cache/tuneyard"],
        "watchNamespaces": ["models"],
        "agentMemoryLimit": "768Mi",
        "hubEndpoint": "https://hub.example.com",
        "gatewayUrl": "https://models.example.com/",
        "masterSecret": {"existing": "mine"},
        "gateway": {
            "service": {"type": "LoadBalancer", "loadBalancerClass": "x.example/y", "annotations": {"a": "b"}},
            "serviceAccountAnnotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/feedback"},
        },
        "feedback": {"export": {"bucket": "acme", "prefix": "a b/c", "secretName": "writer", "caConfigMap": "ca"}},
        "usage": {"export": {"bucket": "acme", "secretName": "writer", "caConfigMap": "ca"}},
        "prometheus": {"url": "https://p.example.com/x", "tokenSecret": "reader", "caConfigMap": "ca"},
        "operator": {"nodeSelector": {"pool": "system"}, "tolerations": [{"operator": "Exists"}]},
        "networkPolicy": {"enabled": False},
        "protectInUse": False,
        "podTls": {"enabled": True},
    },
    {"gateway": {"replicas": 3, "service": {"type": "NodePort", "nodePort": 30080}, "auth": {"mode": "ApiKeys"}}},
    {
        "gateway": {
            "tls": {"enabled": True, "secretName": "cert", "plain": False, "clientCaConfigMap": "clients"},
            "service": {"type": "NodePort", "tlsPort": 8443, "tlsNodePort": 30443},
        },
    },
)


def pod_specs(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return (obj["spec"]["template"]["spec"] for obj in of_kind(objects, "Deployment"))


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", ()), *spec["containers"]]


def test_values_and_schema_agree_on_every_key() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}
    for block in (
        "operator",
        "gateway",
        "masterSecret",
        "networkPolicy",
        "images",
        "prometheus",
        "tracing",
        "monitoring",
        "usage",
    ):
        assert set(values[block]) == set(schema["properties"][block]["properties"]), block


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('gateway={"replica": 3}', "replica"),
        ('allowedHostPathPrefixes=["relative"]', "relative"),
        ('allowedHostPathPrefixes=["/models/../etc"]', "allowedHostPathPrefixes"),
        ('imagePullPolicy="Sometimes"', "imagePullPolicy"),
        ('engineEnv={"A-B": "c"}', "A-B"),
        ('gateway={"auth": {"mode": "apikeys"}}', "/gateway/auth/mode"),
        ('gateway={"auth": {"namespace": "A"}}', "/gateway/auth/namespace"),
        ('gateway={"auth": {"mode": "Jwt"}}', "/gateway/auth/jwt"),
        ('gateway={"auth": {"mode": "Jwt", "jwt": {"issuer": "i", "audiences": []}}}', "/gateway/auth/jwt/audiences"),
        ('gateway={"auth": {"mode": "Jwt", "jwt": {"issuer": "i", "audiences": ["a"]}}}', "needs one of jwksUri"),
        (
            'gateway={"auth": {"mode": "Jwt", "jwt": '
            '{"issuer": "i", "audiences": ["a"], "jwksUri": "http://i", "jwks": "{}"}}}',
            "needs one of jwksUri",
        ),
        ('gateway={"priorities": {"requestsPerPod": 8}}', "needs gateway.auth.mode"),
        ('gateway={"priorities": {"pools": {"chat": 8}}}', "invalid propertyName 'chat'"),
        ('gateway={"priorities": {"shares": {"Urgent": 8}}}', "/gateway/priorities/shares"),
        (
            'gateway={"auth": {"mode": "ApiKeys"}, "priorities": {"requestsPerPod": 8, "shares": {"Low": 95}}}',
            "Low may fill no more than Normal",
        ),
        ('gateway={"auth": {"jwt": {"tenantClaim": "a\'b"}}}', "/gateway/auth/jwt/tenantClaim"),
        ('gateway={"auth": {"jwt": {"jwksUri": "https://a:b@c/"}}}', "/gateway/auth/jwt/jwksUri"),
        ('agentMemoryLimit="much"', "agentMemoryLimit"),
        ('gateway={"tls": {"enabled": true}}', "/gateway/tls"),
        ('gateway={"tls": {"minVersion": "1.1"}}', "/gateway/tls/minVersion"),
        ('gateway={"tls": {"enabled": true, "secretName": "s", "clientCaConfigMap": "ca"}}', "/gateway/tls"),
        ('gateway={"ingress": {"host": "https://a.example"}}', "/gateway/ingress/host"),
        ('gateway={"httpRoute": {"enabled": true}}', "/gateway/httpRoute"),
        ('hubEndpoint="hub.example.com"', "hubEndpoint"),
        ('prometheus={"url": "http://user:password@p"}', "/prometheus/url"),
        ('tracing={"otlpEndpoint": "https://collector:4317"}', "/tracing/otlpEndpoint"),
        ('monitoring={"rules": {"errorBudget": 1}}', "/monitoring/rules/errorBudget"),
    ],
)
def test_wrong_values_are_refused_by_name(value: str, words: str) -> None:
    done = helm("template", "t", str(CHART), f"--set-json={value}", check=False)
    assert done.returncode != 0
    assert words in done.stderr


@pytest.mark.parametrize("values", VARIANTS)
def test_every_container_is_restricted(values: dict[str, Any]) -> None:
    specs = list(pod_specs(rendered(**values)))
    assert len(specs) == 2
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec.get("hostNetwork")
        assert spec["enableServiceLinks"] is False, "the Service tuneyard-gateway would set TUNEYARD_GATEWAY_PORT"
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"]["memory"]
            assert "@" in container["image"] or not container["image"].endswith(":latest")


def test_envoy_has_neither_a_token_nor_the_master_secret() -> None:
    spec = named(rendered(), "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    mounts = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in containers(spec)}
    assert not mounts["envoy"] & {"token", "master"}
    assert {"token", "master"} <= mounts["gateway"]
    volumes = {v["name"]: v for v in spec["volumes"]}
    assert volumes["run"]["emptyDir"]["medium"] == "Memory", "snapshots hold engine keys"


def test_envoy_is_started_as_the_gateway_part_says() -> None:
    spec = named(rendered(), "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    (envoy,) = [c for c in spec["initContainers"] if c["name"] == "envoy"]
    assert envoy["command"] == ["envoy"]
    assert envoy["args"] == envoy_arguments(concurrency=2)
    assert envoy["restartPolicy"] == "Always", "a sidecar ends after the process that waits for its streams"


def test_a_leaving_gateway_has_the_time_that_it_was_promised() -> None:
    gateway = {"drainSeconds": 90}
    spec = named(rendered(gateway=gateway), "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    (process,) = spec["containers"]
    environment = {e["name"]: e["value"] for e in process["env"] if "value" in e}
    given = options(environment)
    assert given.drain_seconds == 90
    assert spec["terminationGracePeriodSeconds"] >= given.drain_seconds + given.drain_delay + 20


JWT = {"issuer": "https://login.example.com", "audiences": ["a", "b,c"], "tenantClaim": "org.tenant"}
BY_URI = {**JWT, "jwksUri": "https://login.example.com/keys", "caConfigMap": "ca"}


@pytest.mark.parametrize(
    ("auth", "readable"),
    [
        ({}, []),
        ({"mode": "ApiKeys"}, ["secrets", "configmaps"]),
        ({"mode": "Jwt", "jwt": BY_URI}, ["configmaps"]),
        ({"mode": "ApiKeysAndJwt", "jwt": {**JWT, "jwks": '{"keys": []}'}}, ["secrets", "configmaps"]),
        ({"mode": "Jwt", "jwt": {**JWT, "jwksConfigMap": "own"}}, ["configmaps"]),
    ],
)
def test_both_processes_of_a_gateway_know_what_clients_need(auth: dict[str, Any], readable: list[str]) -> None:
    """And gateways may read Secrets only where that is keys."""
    objects, tenants = rendered(gateway={"auth": auth}), bool(readable)
    spec = named(objects, "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    jwt = auth.get("jwt")
    for container in containers(spec):
        if container["name"] == "envoy":
            continue
        given = options({e["name"]: e["value"] for e in container.get("env", ()) if "value" in e})
        assert given.keys is tenants
        assert (given.tokens is not None) is (jwt is not None)
        if given.tokens is not None and jwt is not None:
            accepted = given.tokens.accepted
            assert (accepted.issuer, accepted.audiences, accepted.claim) == (JWT["issuer"], ("a", "b,c"), "org.tenant")
            assert accepted.keys_too is ("secrets" in readable)
            assert_mounted(spec, given.tokens, jwt)
    rules = [rule for o in of_kind(objects, "Role") for rule in o["rules"] if "configmaps" in rule["resources"]]
    assert [r["resources"] for r in rules if r["verbs"] == ["get", "list", "watch"]] == [readable] * tenants
    rules = [rule for kind in ("Role", "ClusterRole") for o in of_kind(objects, kind) for rule in o["rules"]]
    assert len([r for r in rules if "secrets" in r["resources"] and "get" in r["verbs"]]) == ("secrets" in readable)
    assert [o["metadata"]["name"] for o in of_kind(objects, "Namespace")] == [f"{NAMESPACE}-tenants"] * tenants
    policies = {o["metadata"]["name"] for o in of_kind(objects, "ValidatingAdmissionPolicy")}
    assert ("tuneyard-tenants" in policies) is tenants
    # months are kept for whoever may have limits, and gateways may not make what keeps them
    assert (quotamonths.NAME in {o["metadata"]["name"] for o in of_kind(objects, "ConfigMap")}) is tenants


def test_both_processes_of_a_gateway_know_how_much_pools_hold() -> None:
    values = yaml.safe_load((ROOT / "examples" / "tenants" / "values" / "priorities.yaml").read_text())
    for more, limits in ((values["gateway"], PoolLimits(64, {"models/large-base": 16})), ({}, None)):
        spec = named(rendered(gateway=more), "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
        for container in containers(spec):
            if container["name"] != "envoy":
                environment = {e["name"]: e["value"] for e in container["env"] if "value" in e}
                assert options(environment).priorities == limits


def test_the_example_of_tokens_is_what_the_chart_takes() -> None:
    values = yaml.safe_load((ROOT / "examples" / "tenants" / "values" / "tokens.yaml").read_text())
    spec = named(rendered(**values), "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    given = options({e["name"]: e["value"] for e in spec["containers"][0]["env"] if "value" in e}).tokens
    assert given is not None and given.accepted.jwks_uri.startswith(given.accepted.issuer)


def assert_mounted(spec: dict[str, Any], given: GivenTokens, jwt: dict[str, Any]) -> None:
    """What signing keys are proven or come with is where the process, or Envoy, is told that it is."""
    mounts = {c["name"]: {m["mountPath"]: m["name"] for m in c["volumeMounts"]} for c in containers(spec)}
    volumes = {v["name"]: v for v in spec["volumes"]}
    if "jwksUri" in jwt:
        path, where, name = Path(given.accepted.ca), "envoy", "ca"
    else:
        assert given.jwks is not None
        path, where, name = given.jwks, "gateway", jwt.get("jwksConfigMap", "tuneyard-gateway-jwks")
    volume = volumes[mounts[where][str(path.parent)]]["configMap"]
    assert (volume["name"], [i["path"] for i in volume["items"]]) == (name, [path.name])


def test_ports_are_those_that_the_processes_listen_on() -> None:
    objects = rendered()
    gateway = named(objects, "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    ports = {p["name"]: p["containerPort"] for c in containers(gateway) for p in c.get("ports", ())}
    assert ports == {"http": names.GATEWAY_PORT, "observe": names.GATEWAY_OBSERVE_PORT}
    (service,) = named(objects, "Service", "tuneyard-gateway")["spec"]["ports"]
    assert service["targetPort"] == names.GATEWAY_PORT
    (operator,) = named(objects, "Deployment", "tuneyard-operator")["spec"]["template"]["spec"]["containers"]
    assert operator["ports"][0]["containerPort"] == HEALTH_PORT


def test_settings_file_is_what_the_operator_reads() -> None:
    data = named(rendered(**VARIANTS[1]), "ConfigMap", "tuneyard-config")["data"]
    settings = Settings.from_dict(yaml.safe_load(data["config.yaml"]))
    assert settings == Settings.from_dict(
        {
            "tuneyardNamespace": NAMESPACE,
            "images": {"tuneyard": "localhost/t:1", "envoy": "localhost/e:1", "vllm": "v:1"},
            "imagePullPolicy": "Never",
            "engineEnv": {"OMP_NUM_THREADS": "1", "A": "b: {c}", "FLAG": "true"},
            "allowedHostPathPrefixes": ["/var/lib/models"],
            "allowedCacheHostPaths": ["/var/cache/tuneyard"],
            "agentMemoryLimit": "768Mi",
            "hubEndpoint": "https://hub.example.com",
            "gatewayUrl": "https://models.example.com",
            "watchNamespaces": ["models"],
            "podTls": True,
            "prometheus": {
                "url": "https://p.example.com/x",
                "tokenFile": "/etc/tuneyard-prometheus/token",
                "caFile": "/etc/tuneyard-prometheus/ca.crt",
            },
        }
    )
    written = set(yaml.safe_load(data["config.yaml"]))
    assert written == {field.alias or name for name, field in Settings.model_fields.items()}, "every setting, by name"


def test_values_of_an_earlier_release_are_as_good_as_those_of_this_one() -> None:
    # helm upgrade --reuse-values: what has come since is not there at all
    later = (
        "modelPullSecrets", "allowedCacheHostPaths", "agentServiceAccountAnnotations", "agentMemoryLimit",
        "hubEndpoint", "feedback", "prometheus", "protectInUse", "monitoring", "tracing", "podTls",
    )  # fmt: skip
    gateway = dict.fromkeys(("hold", "serviceAccountAnnotations", "auth", "tls", "ingress", "httpRoute"))
    gateway |= {"service": {"tlsPort": None, "tlsNodePort": None}}
    before = rendered(**dict.fromkeys(later), gateway=gateway, masterSecret={"existing": "mine"})
    assert before == rendered(masterSecret={"existing": "mine"})
    text = named(before, "ConfigMap", "tuneyard-config")["data"]["config.yaml"]
    assert Settings.from_dict(yaml.safe_load(text)).prometheus.url == ""


def test_the_token_for_prometheus_is_in_the_operator_s_container_only_and_a_new_one_arrives() -> None:
    objects = rendered(**VARIANTS[1])
    (process,) = named(objects, "Deployment", "tuneyard-operator")["spec"]["template"]["spec"]["containers"]
    spec = named(objects, "Deployment", "tuneyard-operator")["spec"]["template"]["spec"]
    (mount,) = [m for m in process["volumeMounts"] if m["name"] == "prometheus"]
    assert mount == {"name": "prometheus", "mountPath": "/etc/tuneyard-prometheus", "readOnly": True}, "no subPath"
    (volume,) = [v for v in spec["volumes"] if v["name"] == "prometheus"]
    assert all(next(iter(s.values()))["optional"] for s in volume["projected"]["sources"])
    assert "reader" not in json.dumps(named(objects, "Deployment", "tuneyard-gateway"))
    assert "tuneyard-prometheus" not in json.dumps(named(rendered(), "Deployment", "tuneyard-operator"))


def test_policies_leave_the_operator_s_connections_alone() -> None:
    policy = named(rendered(), "NetworkPolicy", "tuneyard-operator")["spec"]
    assert policy["policyTypes"] == ["Ingress"], "prometheus.url may be anywhere"


def test_a_change_of_settings_rolls_the_pods() -> None:
    def checksum(**values: Any) -> str:
        deployment = named(rendered(**values), "Deployment", "tuneyard-operator")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["tuneyard.dev/config-checksum"])

    assert checksum() == checksum()
    assert checksum() != checksum(engineEnv={"A": "b"})


def test_crds_are_the_generated_ones_upgraded_with_the_chart_and_kept_without_it() -> None:
    files = {name: (CHART / "files" / "crds" / name).read_text() for name in crd_files()}
    assert files == crd_files()
    assert not (CHART / "crds").exists(), "Helm would install that folder once and never upgrade it"
    crds = {obj["metadata"]["name"]: obj for obj in of_kind(rendered(), CRD)}
    for text in files.values():
        wanted = yaml.safe_load(text)
        crd = crds.pop(wanted["metadata"]["name"])
        assert crd["spec"] == wanted["spec"]
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not crds


def test_an_existing_master_secret_is_used_and_none_is_made() -> None:
    objects = rendered(**VARIANTS[1])
    assert not list(of_kind(objects, "Secret"))
    for spec in pod_specs(objects):
        (volume,) = [v for v in spec["volumes"] if v["name"] == "master"]
        assert volume["secret"]["secretName"] == "mine"


@pytest.fixture
def namespace(apiserver: ApiServer) -> Iterator[str]:
    """The release's namespace at the Pod Security level that the chart promises to fit."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    manifest: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    # a dry run makes no namespace: that of tenants has to be there for what stands in it
    tenants = {**manifest, "metadata": {"name": names.tenants_namespace(NAMESPACE)}}
    install(apiserver, [manifest, tenants])
    yield NAMESPACE


@pytest.mark.parametrize("values", VARIANTS)
def test_a_real_api_server_takes_every_object_and_warns_of_none(
    values: dict[str, Any], apiserver: ApiServer, namespace: str
) -> None:
    text = "---\n".join(yaml.safe_dump(obj) for obj in rendered(**values))
    done = apiserver.kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text
    )
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr, done.stderr


@pytest.mark.parametrize("values", VARIANTS[:2])
def test_pods_fit_the_restricted_level(values: dict[str, Any], apiserver: ApiServer, namespace: str) -> None:
    api = apiserver.api()
    for number, spec in enumerate(pod_specs(rendered(**values))):
        # the API server in these tests has no controller that would make the chart's accounts
        pod = {"metadata": {"name": f"pod-{number}"}, "spec": spec}
        api.request("POST", f"/api/v1/namespaces/{namespace}/pods", query={"dryRun": "All"}, body=pod)


def test_install_upgrade_uninstall_keep_the_master_secret_and_the_crds(tmp_path: Path) -> None:
    with ApiServer() as server:
        config = ("--kubeconfig", str(server.kubeconfig()), "--namespace", NAMESPACE)
        helm("install", "tuneyard", str(CHART), *config, "--create-namespace")
        api = server.api()
        secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/tuneyard-master"
        key = api.request("GET", secret)["data"]["key"]
        assert len(base64.b64decode(key)) >= 32
        crd = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.tuneyard.dev"
        old: Object = {"spec": {"names": {"categories": []}}}
        api.request("PATCH", crd, body=old, content_type="application/merge-patch+json")

        helm("upgrade", "tuneyard", str(CHART), *config, "--set", "operator.replicas=1", "--force-conflicts")
        assert api.request("GET", secret)["data"]["key"] == key
        assert api.request("GET", crd)["spec"]["names"]["categories"] == ["tuneyard"], "CRDs are upgraded"

        helm("uninstall", "tuneyard", *config)
        assert api.request("GET", secret)["data"]["key"] == key
        api.request("GET", crd)
        deployments = api.request("GET", f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments")
        assert deployments["items"] == []

        helm("install", "tuneyard", str(CHART), *config)
        assert api.request("GET", secret)["data"]["key"] == key
