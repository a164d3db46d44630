"""The pod of a pool, by the rules that other parts and clusters rely on; the whole pods are in tests/golden/plans."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from tests.builders import BASE, KEYS, NAMESPACE, SETTINGS, VOLUME, base_model, deployment, digest, revision
from tuneyard.api import names
from tuneyard.api.documents import PoolPlan
from tuneyard.api.serving import ArtifactVolume, EnvVar, LoRASettings, ServingSpec, Toleration, VolumeClaim
from tuneyard.planning.children import pool_deployment, pool_plan
from tuneyard.planning.podspec import GRACE_BEYOND_DRAIN, base_path, pod_template
from tuneyard.planning.pools import Pool, pools_of
from tuneyard.planning.settings import Settings

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


def test_containers_start_in_order_and_sidecars_outlive_the_engine():
    _, spec = pool_with()
    assert [(c["name"], c.get("restartPolicy")) for c in spec["initContainers"]] == [
        ("verify", None),
        ("front", "Always"),
        ("agent", "Always"),
    ]
    assert [c["name"] for c in spec["containers"]] == ["engine"]


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
    flags = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert arguments[0] == "--enable-lora"
    assert (flags["--host"], flags["--port"]) == ("127.0.0.1", "8000")
    assert flags["--max-loras"] == "4", "an engine with more slots than places in memory does not start"
    assert env(spec)["VLLM_API_KEY"] == {"secretKeyRef": {"name": names.pool_key_secret(pool.name), "key": "key"}}


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
