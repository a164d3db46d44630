"""The pod of a pool, by the rules that other parts and clusters rely on; the whole pods are in tests/golden/plans."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest
from pydantic import ValidationError

from tests.builders import BASE, KEYS, NAMESPACE, SETTINGS, VOLUME, base_model, deployment, digest, revision
from tuneyard.api import names
from tuneyard.api.documents import PoolPlan
from tuneyard.api.serving import (
    ArtifactCache,
    ArtifactVolume,
    CacheClaim,
    EnvVar,
    HostPath,
    LoRASettings,
    ServingSpec,
    Toleration,
    VolumeClaim,
)
from tuneyard.api.sources import HuggingFaceSource, ImageSource, SecretReference, Source
from tuneyard.planning.children import namespace_access, pool_deployment, pool_plan
from tuneyard.planning.podspec import GRACE_BEYOND_DRAIN, pod_template
from tuneyard.planning.podvolumes import base_path
from tuneyard.planning.pools import Pool, pools_of
from tuneyard.planning.settings import Settings, TracingSettings

CLAIM = ArtifactVolume(name="models", persistent_volume_claim=VolumeClaim(claim_name="c"))


def pool_with(**serving: Any) -> tuple[Pool, dict[str, Any]]:
    base = base_model(serving=ServingSpec(**{"artifact_volumes": [CLAIM], **serving}))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    return pool, pod_template(pool, base, SETTINGS)["spec"]


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in [*spec["initContainers"], *spec["containers"]] if c["name"] == name)


def env(spec: dict[str, Any], name: str = "engine") -> dict[str, Any]:
    listed = [e["name"] for e in container(spec, name)["env"]]
    assert len(listed) == len(set(listed)), "server-side apply refuses a name that stands twice"
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(spec, name)["env"]}


def mounts(spec: dict[str, Any], name: str) -> dict[str, bool]:
    return {m["mountPath"]: m.get("readOnly", False) for m in container(spec, name)["volumeMounts"]}


def having_env(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for c in [*spec["initContainers"], *spec["containers"]] if "env" in c]


def test_containers_start_in_order_and_sidecars_outlive_the_engine():
    _, spec = pool_with()
    assert [(c["name"], c.get("restartPolicy")) for c in spec["initContainers"]] == [
        ("verify", None),
        ("front", "Always"),
        ("agent", "Always"),
    ]
    assert [c["name"] for c in spec["containers"]] == ["engine"]


def remote_pod(**cache: Any) -> dict[str, Any]:
    hub = HuggingFaceSource(repo="acme/base", revision="a" * 40, credentials=SecretReference(name="hub"))
    serving = ServingSpec(cache=ArtifactCache(**cache)) if cache else ServingSpec()
    base = base_model(serving=serving, source=Source(hugging_face=hub))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    spec: dict[str, Any] = pod_template(pool, base, SETTINGS)["spec"]
    return spec


def test_a_base_from_the_network_is_fetched_before_all_and_read_only_for_its_engine():
    spec = remote_pod()
    verify, engine = container(spec, "verify"), container(spec, "engine")
    source = json.loads(verify["args"][verify["args"].index("--source") + 1])
    assert source["huggingFace"]["credentials"] == {"name": "hub"}
    assert json.loads(env(spec, "agent")["TUNEYARD_BASE_SOURCE"]) == source, "for an agent that finds it gone"
    assert {"POD_NAME", "POD_NAMESPACE", "POD_UID", "POD_IP"} <= env(spec, "verify").keys()
    for name in ("verify", "agent"):
        assert mounts(spec, name)[env(spec, name)["TMPDIR"]] is False, "certificates of an authority are written there"
    assert engine["args"][engine["args"].index("--model") + 1] == "/base/model"
    assert mounts(spec, "verify").items() >= {"/cache": False, "/base": False}.items()
    assert mounts(spec, "agent").items() >= {"/cache": False, "/base": True}.items()
    assert mounts(spec, "engine").items() >= {"/cache": True, "/base": True}.items()
    assert "/var/run/secrets/kubernetes.io/serviceaccount" not in mounts(spec, "engine")


def test_a_base_that_is_an_image_is_mounted_by_the_kubelet():
    image = ImageSource(reference="registry.example/llama@sha256:" + "a" * 64, path="model")
    base = base_model(serving=ServingSpec(), source=Source(image=image))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    spec = pod_template(pool, base, SETTINGS)["spec"]
    assert {"name": "image", "image": {"reference": image.reference, "pullPolicy": "IfNotPresent"}} in spec["volumes"]
    for name in ("verify", "agent", "engine"):
        assert mounts(spec, name)["/artifacts/@image"] is True
    assert base_path(base) == "/artifacts/@image/model"
    assert "token" not in [m["name"] for m in container(spec, "verify")["volumeMounts"]]


def test_an_engine_whose_base_is_on_a_volume_sees_nothing_of_the_cache():
    _, spec = pool_with()
    assert "/cache" not in mounts(spec, "engine") | mounts(spec, "verify")
    assert "TUNEYARD_BASE_SOURCE" not in env(spec, "agent")
    assert mounts(spec, "agent")["/cache"] is False


@pytest.mark.parametrize(
    ("cache", "volume", "sub_path"),
    [
        ({}, {"emptyDir": {}}, None),
        (
            {"persistent_volume_claim": CacheClaim(claim_name="models")},
            {"persistentVolumeClaim": {"claimName": "models"}},
            None,
        ),
        (
            {"host_path": HostPath(path="/var/cache/tuneyard/")},
            {"hostPath": {"path": "/var/cache/tuneyard", "type": "Directory"}},
            NAMESPACE,
        ),
    ],
)
def test_a_cache_is_where_it_is_asked_for_and_of_a_node_only_the_namespaces_part(cache, volume, sub_path):
    spec = remote_pod(**cache, size_limit="200Gi")
    assert next(v for v in spec["volumes"] if v["name"] == "cache") == {"name": "cache", **volume}
    for name in ("verify", "agent", "engine"):
        (mount,) = [m for m in container(spec, name)["volumeMounts"] if m["mountPath"] == "/cache"]
        assert mount.get("subPath") == sub_path
    assert env(spec, "agent")["TUNEYARD_CACHE_LIMIT"] == env(spec, "verify")["TUNEYARD_CACHE_LIMIT"] == "200Gi"


def test_an_identity_of_the_cloud_reaches_agents_and_no_engine():
    base = base_model(serving=ServingSpec(artifact_volumes=[CLAIM]))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}
    settings = SETTINGS.model_copy(update={"agent_service_account_annotations": role})
    template = pod_template(pool, base, settings)
    assert template["metadata"]["annotations"] == {"eks.amazonaws.com/skip-containers": "engine,front"}
    made = pool_deployment(pool, base, settings)["spec"]["template"]["metadata"]["annotations"]
    assert made["eks.amazonaws.com/skip-containers"] == "engine,front" and made[names.ANNOTATION_TEMPLATE]
    assert "annotations" not in pod_template(pool, base, SETTINGS)["metadata"]
    (account,) = [o for o in namespace_access(NAMESPACE, [base], (), settings) if o["kind"] == "ServiceAccount"]
    assert account["metadata"]["annotations"].items() >= role.items()


def test_a_private_registry_is_pulled_from_with_the_charts_secrets():
    base = base_model(serving=ServingSpec(artifact_volumes=[CLAIM]))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    private = SETTINGS.model_copy(update={"model_pull_secrets": ["registry"]})
    assert pod_template(pool, base, private)["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert "imagePullSecrets" not in pod_template(pool, base, SETTINGS)["spec"]


def test_pods_leave_a_lost_node_soon_unless_the_user_says_otherwise():
    def told(*given: Toleration) -> dict[str | None, int | None]:
        _, spec = pool_with(tolerations=list(given))
        assert spec["tolerations"][: len(given)] == [t.to_dict() for t in given]
        return {t.get("key"): t.get("tolerationSeconds") for t in spec["tolerations"]}

    not_ready, unreachable = "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"
    assert told() == {not_ready: 30, unreachable: 30}
    gpu = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")
    assert told(gpu) == {"nvidia.com/gpu": None, not_ready: 30, unreachable: 30}
    longer = Toleration(key=unreachable, operator="Exists", effect="NoExecute", toleration_seconds=600)
    assert told(longer) == {unreachable: 600, not_ready: 30}
    assert told(Toleration(operator="Exists")) == {None: None}
    assert told(Toleration(operator="Exists", effect="NoSchedule")) == {None: None, not_ready: 30, unreachable: 30}


def test_what_reads_artifacts_has_a_memory_limit_that_the_chart_gives():
    (pool,) = pools_of(base := base_model(), [deployment(revisions=[revision("v1")])])
    for given, told in (("1Gi", Settings()), ("2Gi", Settings(agent_memory_limit="2Gi"))):
        spec = pod_template(pool, base, told)["spec"]
        assert {n: container(spec, n)["resources"]["limits"] for n in ("verify", "agent")} == {
            "verify": {"memory": given},
            "agent": {"memory": given},
        }


def test_a_mirror_of_the_chart_reaches_what_fetches_and_nothing_else():
    source = Source.from_dict({"huggingFace": {"repo": "acme/tiny", "revision": "0" * 40}})
    (pool,) = pools_of(base := base_model(source=source), [deployment(revisions=[revision("v1")])])
    mirror = "https://hub.example.com"
    for given, told in ((None, Settings()), (mirror, Settings(hub_endpoint=mirror))):
        spec = pod_template(pool, base, told)["spec"]
        found = {c["name"]: e["value"] for c in having_env(spec) for e in c["env"] if e["name"] == "HF_ENDPOINT"}
        assert found == ({"verify": mirror, "agent": mirror} if given else {})


def test_the_front_alone_has_the_pools_certificate_and_nobody_where_it_is_not_asked_for():
    base = base_model()
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    spec = pod_template(pool, base, SETTINGS.model_copy(update={"pod_tls": True}))["spec"]
    listed = [*spec["initContainers"], *spec["containers"]]
    folder = "/etc/tuneyard-front"
    assert [c["name"] for c in listed if folder in mounts(spec, c["name"])] == ["front"]
    (volume,) = [v for v in spec["volumes"] if v["name"] == "certificate"]
    items = [item["key"] for item in volume["secret"]["items"]]
    assert items == ["tls.crt", "tls.key"], "not the engine's key, which lies beside them"
    arguments = container(spec, "verify")["args"]
    assert arguments[arguments.index("--front-certificate") + 1] == folder
    assert env(spec, "agent")["TUNEYARD_FRONT_TLS"] == "true"
    without = json.dumps(pod_template(pool, base, SETTINGS))
    assert folder not in without
    assert "TUNEYARD_FRONT_TLS" not in without


def test_the_token_is_in_the_agent_alone():
    _, spec = pool_with()
    path = "/var/run/secrets/kubernetes.io/serviceaccount"
    assert spec["automountServiceAccountToken"] is False
    having = [c["name"] for c in [*spec["initContainers"], *spec["containers"]] if path in mounts(spec, c["name"])]
    assert having == ["agent"]


def test_the_engine_cannot_write_artifacts_and_does_not_see_the_front():
    _, spec = pool_with()
    assert mounts(spec, "engine") == {
        "/artifacts/models": True,
        "/adapters": True,
        "/dev/shm": False,
        "/tmp": False,
        "/home/engine": False,
    }
    for name in ("verify", "agent"):
        assert mounts(spec, name)["/artifacts/models"]
        assert not mounts(spec, name)["/run/tuneyard"]
    assert mounts(spec, "front") == {"/run/tuneyard": False}


def test_the_engine_listens_on_loopback_with_a_key():
    pool, spec = pool_with(lora=LoRASettings(max_loras=8, max_cpu_loras=4))
    arguments = container(spec, "engine")["args"]
    flags = dict(zip(arguments[2::2], arguments[3::2], strict=True))
    assert arguments[:2] == ["--enable-lora", "--enable-prompt-tokens-details"]
    assert (flags["--host"], flags["--port"]) == ("127.0.0.1", "8000")
    assert flags["--max-loras"] == "4", "an engine with more slots than places in memory does not start"
    assert env(spec)["VLLM_API_KEY"] == {"secretKeyRef": {"name": names.pool_key_secret(pool.name), "key": "key"}}


def test_an_engine_without_adapters_is_told_nothing_of_them():
    _, spec = pool_with(lora=LoRASettings(enabled=False, dtype="bfloat16", fully_sharded=True))
    assert not [argument for argument in container(spec, "engine")["args"] if "lora" in argument]
    assert env(spec)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "False"


def test_variables_of_the_pool_win_over_the_charts_over_ours_but_not_over_the_key():
    chosen = [EnvVar(name="HF_HOME", value="/tmp/pool"), EnvVar(name="VLLM_API_KEY", value="mine")]
    base = base_model(serving=ServingSpec(artifact_volumes=[CLAIM], env=chosen))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    told = Settings(engine_env={"HF_HOME": "/tmp/chart", "USER": "chart", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "False"})
    found = env(pod_template(pool, base, told)["spec"])
    assert (found["HF_HOME"], found["USER"], found["HOME"]) == ("/tmp/pool", "chart", "/home/engine")
    assert found["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True"
    assert "secretKeyRef" in found["VLLM_API_KEY"]


@pytest.mark.parametrize(("drain", "seconds"), [("30s", 30), ("1h", 3600)])
def test_a_pod_has_longer_than_its_drain(drain, seconds):
    _, spec = pool_with(drain_timeout=drain)
    assert spec["terminationGracePeriodSeconds"] == seconds + 60
    assert env(spec, "agent")["TUNEYARD_DRAIN_TIMEOUT"] == str(seconds)
    command = container(spec, "engine")["lifecycle"]["preStop"]["exec"]["command"]
    assert f"timeout={seconds + 45}" in command[-1]


def test_an_engine_that_is_told_to_end_does_not_wait_for_a_core_that_never_answers():
    _, spec = pool_with(drain_timeout="1h")
    engine = container(spec, "engine")
    seconds = int(engine["args"][engine["args"].index("--shutdown-timeout") + 1])
    assert 0 < seconds < GRACE_BEYOND_DRAIN, "the drain has waited already; with 0 streams would hang"
    assert engine["livenessProbe"]["terminationGracePeriodSeconds"] == GRACE_BEYOND_DRAIN


def test_probes_go_through_the_front_and_the_engine_has_its_startup_time():
    _, spec = pool_with(startup_timeout="2h")
    engine = container(spec, "engine")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert engine[probe]["httpGet"] == {"path": "/health", "port": names.FRONT_PORT}
    assert engine["startupProbe"]["periodSeconds"] * engine["startupProbe"]["failureThreshold"] == 7200


def test_scripts_in_the_pod_are_python():
    _, spec = pool_with()
    agent, engine = container(spec, "agent"), container(spec, "engine")
    for command in (
        agent["readinessProbe"]["exec"]["command"],
        agent["livenessProbe"]["exec"]["command"],
        engine["lifecycle"]["preStop"]["exec"]["command"],
    ):
        ast.parse(command[-1])


def test_nothing_that_changes_while_pods_run_is_in_the_template():
    """Adapters, pinned digests and keys: a change of them must not roll a pod."""
    pool, _ = pool_with()
    base = base_model(serving=ServingSpec(artifact_volumes=[CLAIM]))
    before = pool_deployment(pool, base, SETTINGS)
    (more,) = pools_of(base, [deployment(revisions=[revision("v1", "x"), revision("v2", "y")])])
    pinned = base.model_copy(update={"status": base.status.model_copy(update={"digest": digest("b")})})
    assert pool_deployment(more, pinned, SETTINGS) == before
    assert "".join(KEYS.of(NAMESPACE, pool.name)) not in json.dumps(before)
    assert pool_plan(more, pinned, PoolPlan(pool=more.name, base_model=BASE), {}, digest("b"))["data"][
        "base-digest"
    ] == digest("b")


def test_names_and_paths_are_not_expanded_by_the_kubelet():
    base = base_model(path="$(POD_NAME)/x", serving=ServingSpec(artifact_volumes=[CLAIM]))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    spec = pod_template(pool, base, SETTINGS)["spec"]
    assert "/artifacts/models/$$(POD_NAME)/x" in container(spec, "engine")["args"]


@pytest.mark.parametrize(
    ("path", "found"), [("a", "/artifacts/models/a"), ("./a//b/", "/artifacts/models/a/b"), (".", "/artifacts/models")]
)
def test_base_path_is_plain(path, found):
    assert base_path(base_model(path=path)) == found


def test_volumes_have_names_that_pods_allow():
    volumes = [CLAIM, CLAIM.model_copy(update={"name": "a.b"}), CLAIM.model_copy(update={"name": "a-b"})]
    long = CLAIM.model_copy(update={"name": "x" * 63})
    _, spec = pool_with(artifact_volumes=[*volumes, long, VOLUME.model_copy(update={"name": "host"})])
    found = [v["name"] for v in spec["volumes"]]
    assert len(found) == len(set(found))
    assert all(len(n) <= 63 and "." not in n for n in found)
    assert spec["volumes"][4]["hostPath"] == {"path": "/var/lib/models", "type": "Directory"}
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "c", "readOnly": True}


@pytest.mark.parametrize(("update", "surge", "unavailable"), [("Surge", 1, 0), ("Replace", 0, 1)])
def test_updates_surge_or_replace(update, surge, unavailable):
    pool, _ = pool_with(update=update, replicas=0)
    found = pool_deployment(pool, base_model(serving=ServingSpec(artifact_volumes=[CLAIM])), SETTINGS)["spec"]
    assert found["strategy"]["rollingUpdate"] == {"maxSurge": surge, "maxUnavailable": unavailable}
    assert found["replicas"] == 0


def test_pods_on_claims_fit_pod_security_restricted():
    _, spec = pool_with()
    security = spec["securityContext"]
    assert security["runAsNonRoot"]
    assert security["runAsUser"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    allowed = {"emptyDir", "persistentVolumeClaim", "projected", "configMap", "secret", "downwardAPI"}
    assert all(set(v) - {"name"} <= allowed for v in spec["volumes"])
    for found in [*spec["initContainers"], *spec["containers"]]:
        assert found["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)


def test_engines_send_spans_only_where_the_chart_names_a_collector():
    base = base_model()
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    silent = SETTINGS.model_copy(update={"tracing": TracingSettings(sampling=50)})
    assert pod_template(pool, base, silent) == pod_template(pool, base, SETTINGS), "the share alone rolls no pool"

    traced = SETTINGS.model_copy(update={"tracing": TracingSettings(otlp_endpoint="http://collector:4317")})
    spec = pod_template(pool, base, traced)["spec"]
    arguments = container(spec, "engine")["args"]
    assert arguments[arguments.index("--otlp-traces-endpoint") + 1] == "http://collector:4317"
    assert env(spec)["OTEL_RESOURCE_ATTRIBUTES"] == f"k8s.namespace.name={NAMESPACE},tuneyard.pool={BASE}"


@pytest.mark.parametrize("endpoint", ["https://collector:4317", "collector:4317", "http://collector", "http://u@c:1"])
def test_a_collector_that_engines_could_not_reach_is_refused_at_the_start(endpoint):
    with pytest.raises(ValidationError, match="otlpEndpoint"):
        Settings.model_validate({"tracing": {"otlpEndpoint": endpoint}})
