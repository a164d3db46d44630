"""External revisions with a real operator, gateway and API server: rules, readiness and a whole rollout."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.certificates import Authority
from tests.contract.chart import named, rendered
from tests.contract.gateway_process import GatewayProcess
from tests.contract.operator_process import Cluster, Object, OperatorProcess, eventually
from tests.contract.test_gateway_external import server_side
from tests.fakes.hosted import Hosted
from tuneyard.cli.main import run
from tuneyard.systems.kube.client import ApiError

pytestmark = [pytest.mark.apiserver, pytest.mark.envoy]

STEPS = {"mode": "Progressive", "bakeTime": "1s", "steps": [{"weight": 20, "hold": "1s"}, {"weight": 60, "hold": "1s"}]}


def external(name: str, **fields: Any) -> Object:
    return {"name": name, "external": {"url": "https://api.example/v1", "model": "m", **fields}}


def spec(*revisions: Object, traffic: str, **more: Any) -> Object:
    return {"revisions": list(revisions), "traffic": [{"revision": traffic, "weight": 100}], **more}


def test_what_the_api_server_refuses(operator_apiserver: ApiServer) -> None:
    cluster = Cluster(operator_apiserver, "external-rules")
    hosted, own = external("hosted", credentials={"name": "a"}), {"name": "own", "baseModel": "base"}
    cluster.apply("ModelDeployment", "m", spec(hosted, own, traffic="hosted"))
    # whose key is sent may change
    cluster.apply("ModelDeployment", "m", spec(external("hosted", credentials={"name": "b"}), own, traffic="hosted"))
    cluster.apply("ModelDeployment", "m", spec(external("hosted"), own, traffic="hosted"))
    # and what its tokens cost
    price = {"inputPerMillion": 0.3, "cachedInputPerMillion": 0.3, "outputPerMillion": 1}
    for pricing in (price, price | {"outputPerMillion": 1.25, "currency": "EUR"}, {}):
        fields = {"pricing": pricing} if pricing else {}
        cluster.apply("ModelDeployment", "m", spec(external("hosted", **fields), own, traffic="hosted"))
    for name, wrong, words in (
        (
            "m",
            spec(external("hosted", model="n"), own, traffic="hosted"),
            "are immutable; add a revision under a new name",
        ),
        ("m", spec(external("hosted", url="https://api.example/v2"), own, traffic="hosted"), "are immutable"),
        ("m", spec(external("hosted", systemPrompt={"text": "t"}), own, traffic="hosted"), "are immutable"),
        ("m", spec({"name": "hosted", "baseModel": "base"}, own, traffic="hosted"), "revision hosted is immutable"),
        ("m", spec(hosted, own | {"baseModel": "other"}, traffic="hosted"), "revision own is immutable"),
        ("n", spec(hosted | {"baseModel": "base"}, traffic="hosted"), "exactly one of baseModel, external; found 2"),
        ("n", spec({"name": "hosted"}, traffic="hosted"), "exactly one of baseModel, external; found 0"),
        ("n", spec(hosted | {"adapter": "one"}, traffic="hosted"), "an external revision has no pods"),
        ("n", spec(hosted | {"serving": {"replicas": 1}}, traffic="hosted"), "an external revision has no pods"),
        ("n", spec(external("hosted", url="http://api.example/v1"), traffic="hosted"), "should match"),
        ("n", spec(external("hosted", url="https://a:b@api.example"), traffic="hosted"), "should match"),
        ("n", spec(external("hosted", model='m"'), traffic="hosted"), "should match"),
        (
            "n",
            spec(external("hosted", pricing=price | {"cachedInputPerMillion": 0.31}), traffic="hosted"),
            "pricing.cachedInputPerMillion is above inputPerMillion",
        ),
        ("n", spec(external("hosted", pricing=price | {"currency": "eur"}), traffic="hosted"), "should match"),
        (
            "n",
            spec(external("hosted", pricing=price | {"inputPerMillion": -1}), traffic="hosted"),
            "greater than or equal",
        ),
        ("n", spec(external("hosted", pricing={"inputPerMillion": 1}), traffic="hosted"), "outputPerMillion: Required"),
        (
            "n",
            spec(hosted, own, traffic="own", mirror={"revision": "hosted", "percent": 5}),
            "mirror.revision is external",
        ),
    ):
        with pytest.raises(ApiError) as refused:
            cluster.apply("ModelDeployment", name, wrong)
        assert words in str(refused.value), (wrong, refused.value)
    cluster.apply("ModelDeployment", "n", spec(hosted, own, traffic="hosted", mirror={"revision": "own", "percent": 5}))


def test_the_chart_lets_gateways_get_what_is_listed() -> None:
    listed = [{"namespace": "models", "names": ["openai", "together"]}]
    objects = rendered(gateway={"externalSecrets": listed, "externalCaConfigMap": "authorities"})
    role = named(objects, "Role", "tuneyard-gateway-external")
    binding = named(objects, "RoleBinding", "tuneyard-gateway-external")
    assert (role["metadata"]["namespace"], binding["metadata"]["namespace"]) == ("models", "models")
    assert role["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["openai", "together"], "verbs": ["get"]}
    ]
    assert [subject["name"] for subject in binding["subjects"]] == ["tuneyard-gateway"]
    pod = named(objects, "Deployment", "tuneyard-gateway")["spec"]["template"]["spec"]
    (process,) = (c for c in pod["containers"] if c["name"] == "gateway")
    assert {"name": "TUNEYARD_EXTERNAL_CA", "value": "/etc/tuneyard-external-ca/ca.crt"} in process["env"]
    (envoy,) = (c for c in pod["initContainers"] if c["name"] == "envoy")
    mounted = {"name": "external-ca", "mountPath": "/etc/tuneyard-external-ca", "readOnly": True}
    assert mounted in envoy["volumeMounts"]
    assert {"name": "external-ca", "configMap": {"name": "authorities"}} in pod["volumes"]
    without = rendered()
    assert not [o for o in without if o["metadata"]["name"] == "tuneyard-gateway-external"]
    assert "external-ca" not in str(without)


async def test_ready_with_its_key_and_rolled_out_without_a_pod(
    operator_apiserver: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = Authority(tmp_path, "world")
    cluster = Cluster(operator_apiserver, "external-rollout")
    settings = {"watchNamespaces": [cluster.namespace]}
    gateway = GatewayProcess(
        operator_apiserver, tmp_path, settings=settings, environment={"TUNEYARD_EXTERNAL_CA": str(authority.path)}
    )
    operator = OperatorProcess(operator_apiserver, tmp_path / "operator", gateways=gateway.entry, settings=settings)
    model = f"{cluster.namespace}/m"
    async with Hosted("api", tls=server_side(authority)) as api, gateway:
        credentials = {"name": "hosted-api"}
        one = external("one", url=api.url, model="one", credentials=credentials)
        two = external("two", url=api.url, model="two", credentials=credentials)
        with operator:
            cluster.apply("ModelDeployment", "m", spec(one, traffic="one", rollout=STEPS))
            await settled(lambda: cluster.condition("ModelDeployment", "m", "Ready"), ("False", "CredentialsMissing"))
            (told,) = cluster.status("ModelDeployment", "m")["traffic"]
            assert (told["weight"], told["readyEndpoints"]) == (0, 0)
            assert f"Secret {cluster.namespace}/hosted-api does not exist" in told["withheld"]
            data = {"apiKey": base64.b64encode(b"sk-hosted-1").decode()}
            secrets = f"/api/v1/namespaces/{cluster.namespace}/secrets"
            cluster.api.request("POST", secrets, body={"metadata": credentials, "data": data})
            await settled(lambda: cluster.condition("ModelDeployment", "m", "Ready"), ("True", "Ready"))
            await settled(lambda: position(cluster), ("one", "Completed"))
            assert await gateway.answered_by(model) == "one"
            cluster.apply("ModelDeployment", "m", spec(one, two, traffic="two", rollout=STEPS))
            await settled(lambda: position(cluster), ("two", "Completed"))
            assert await gateway.answered_by(model) == "two"
            cluster.apply("ModelDeployment", "m", spec(one, two, traffic="one", rollout=STEPS))
            await gateway.serves(
                f"{cluster.namespace}/m", lambda found: found.weights == {"one": 100, "two": 0}, within=30
            )
            where = ("-n", cluster.namespace, "--kubeconfig", str(operator_apiserver.kubeconfig()))
            await settled(lambda: run(["status", "m", *where]), 0)  # the operator says so a moment after gateways
            assert f"one at localhost:{api.port}" in capsys.readouterr().out
            assert run(["lineage", "m", *where]) == 0
            assert f"external two  {api.url}" in capsys.readouterr().out
        # nobody plans any more
        assert await gateway.answered_by(model) == "one"
        assert "sk-hosted-1" not in operator.said() + str(cluster.get("ModelDeployment", "m"))


def position(cluster: Cluster) -> tuple[str | None, str | None]:
    rollout = cluster.status("ModelDeployment", "m").get("rollout") or {}
    return rollout.get("stable"), rollout.get("phase")


async def settled(found: Any, wanted: object) -> None:
    """Until it is that; asks outside the loop, which serves the API meanwhile."""
    await asyncio.to_thread(eventually, lambda: found() == wanted, lambda: f"{wanted}; it is {found()}")
