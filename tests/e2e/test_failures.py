"""What breaks in production, on the real system, while clients keep asking."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import yaml

from demo.kubectl import KubectlError, condition, ready
from demo.system import MODELS_NAMESPACE, NAMESPACE
from tests.e2e.world import MODEL, POOL_PODS, deployment, local_cluster, reason_of, rows, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def both_pods_serve(deployment_object):
    return ready(deployment_object) and rows(deployment_object)["v1"]["readyEndpoints"] == 2


def test_engine_killed_loses_only_its_own_streams(world, traffic):
    pod = world.model_pods()[0]["metadata"]["name"]
    began = time.time()
    world.end_container(pod, "engine")
    wait_until(lambda: world.restarts(pod, "engine") >= 1, 120, "the engine's container is started again")
    world.wait_for(both_pods_serve, timeout=240)
    traffic.wait_for(8)
    told = traffic.summary(began - 5)
    assert told.failed == 0, told
    cut = [r for r in traffic.records if r.fate == "cut"]
    assert all(r.start <= began + 1 for r in cut), "a request that began after the engine was gone was cut"


def test_model_pod_deleted_in_order_loses_nothing(world, traffic):
    pod = world.model_pods()[0]["metadata"]["name"]
    world.kubectl("-n", MODELS_NAMESPACE, "delete", "pod", pod, "--wait=true", "--timeout=300s", timeout=320)
    world.wait_for(both_pods_serve, timeout=300)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


@pytest.mark.slow
def test_rolling_restart_and_scale_down_lose_nothing(world, traffic):
    world.kubectl("-n", MODELS_NAMESPACE, "rollout", "restart", "deployment", "-l", POOL_PODS)
    world.kubectl(
        "-n", MODELS_NAMESPACE, "rollout", "status", "deployment", "-l", POOL_PODS, "--timeout=600s", timeout=620
    )
    world.wait_for(both_pods_serve, timeout=120)
    world.kubectl.merge("bmodel", "smollm2", {"spec": {"serving": {"replicas": 1}}}, MODELS_NAMESPACE)
    wait_until(lambda: len(world.kubectl.items("pods", MODELS_NAMESPACE, POOL_PODS)) == 1, 300, "one pod is left")
    traffic.wait_for(8)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


@pytest.mark.slow
def test_node_drained_loses_nothing(world, traffic):
    node = world.kubectl.items("nodes")[0]["metadata"]["name"]
    before = {p["metadata"]["name"] for p in world.model_pods()}
    try:
        # The budget lets one pod go; there is no other node for it, so the second may not follow.
        with pytest.raises(KubectlError, match=r"disruption budget|timed out"):
            world.kubectl(
                *("drain", node, f"--pod-selector={POOL_PODS}", "--delete-emptydir-data", "--timeout=60s"), timeout=90
            )
        left = {p["metadata"]["name"] for p in world.model_pods()} & before
        assert len(left) == 1, "the budget keeps one pod"
    finally:
        world.kubectl("uncordon", node)
    world.wait_for(both_pods_serve, timeout=300)
    traffic.wait_for(4)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


def test_operator_killed_in_the_middle_of_a_canary(world, traffic):
    for pod in world.own_pods("operator"):
        world.end_container(pod["metadata"]["name"], "operator", NAMESPACE)
    # Edited while nobody leads: gateways follow the spec by themselves.
    began = time.time()
    world.apply(deployment({"v1": 50, "v2": 50}))
    wait_until(
        lambda: traffic.summary(began).by_revision.get("v2", 0) >= 3, 60, "v2 answers while the operator is away"
    )
    world.served({"v1": 50, "v2": 50}, timeout=120)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


def test_gateway_process_killed_serves_on(world, traffic):
    # One after the other: a pod whose main container restarts is out of the Service until it is back.
    for name in [pod["metadata"]["name"] for pod in world.own_pods("gateway")]:
        before = world.restarts(name, "gateway", NAMESPACE)
        world.end_container(name, "gateway", NAMESPACE)
        wait_until(partial(back, world, name, before), 120, f"{name} is ready again")
        traffic.wait_for(8)
    world.apply(deployment({"v2": 100}))
    world.served({"v2": 100}, timeout=120)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


def back(world, pod, restarts):
    """Whether the gateway process was started again and its pod is ready."""
    status = world.kubectl.get("pod", pod, NAMESPACE)["status"]
    is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
    return is_ready and world.restarts(pod, "gateway", NAMESPACE) > restarts


def test_api_server_down_for_a_minute(world, traffic):
    local_cluster().stop("apiserver")
    try:
        # An engine that dies meanwhile gets its adapters back from the agent's own memory.
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            traffic.wait_for(4)
    finally:
        local_cluster().start("apiserver")
    wait_until(lambda: reachable(world), 60, "the API server answers again")
    world.apply(deployment({"v1": 50, "v2": 50}))
    world.served({"v1": 50, "v2": 50}, timeout=120)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


def reachable(world):
    try:
        world.kubectl("get", "--raw", "/readyz")
    except KubectlError:
        return False
    return True


def test_deployment_deleted_and_created_again_keeps_its_pods(world, traffic):
    pods = {p["metadata"]["uid"] for p in world.model_pods()}
    world.kubectl("-n", MODELS_NAMESPACE, "replace", "--force", "-f", "-", stdin=deployment({"v1": 100}))
    world.wait_for(both_pods_serve, timeout=120)
    traffic.wait_for(8)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert {p["metadata"]["uid"] for p in world.model_pods()} == pods


@pytest.mark.parametrize(
    ("revision", "serving", "reason"),
    [
        ("gpus", {"tensorParallelSize": 9, "resources": {"limits": {"nvidia.com/gpu": 9}}}, "Unschedulable"),
        pytest.param(
            "image", {"image": "tuneyard.invalid/no-such-engine:1"}, "ImagePullFailed", marks=pytest.mark.slow
        ),
        pytest.param("crash", {"extraArgs": ["--no-such-flag"]}, "EngineCrashed", marks=pytest.mark.slow),
    ],
)
def test_pods_that_cannot_start_say_why_and_stable_serves_on(world, traffic, revision, serving, reason):
    candidate = yaml.safe_load(deployment({"v1": 50, revision: 50}, {revision: "acme-support-v1"}))
    candidate["spec"]["revisions"][-1]["serving"] = {"replicas": 1, **serving}
    world.apply(yaml.safe_dump(candidate))
    seen = world.wait_for(lambda d: reason in str(rows(d).get(revision, {}).get("withheld")), timeout=240)
    assert rows(seen)["v1"]["weight"] == 100
    assert condition(seen, "Ready") == "False"
    assert reason_of(seen, "Ready") == reason
    traffic.wait_for(3)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert set(told.by_revision) == {"v1"}


def test_other_pods_reach_no_administrative_route(world):
    report = json.loads(world.model_pods()[0]["metadata"]["annotations"]["tuneyard.dev/adapters"])
    probe = world.own_pods("operator")[0]["metadata"]["name"]
    script = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "for method, path in [('POST','/v1/load_lora_adapter'),('POST','/v1/unload_lora_adapter'),('POST','/adapters'),"
        "('POST','/invocations'),('POST','/tokenize'),('POST','/scale_elastic_ep'),('POST','/v1/chat/completions'),"
        "('GET','/v1/models'),('GET','/load'),('GET','/version')]:\n"
        "    r = u.Request('http://' + sys.argv[1] + path, data=b'{}' if method == 'POST' else None, method=method,"
        " headers={'content-type': 'application/json'})\n"
        "    try: print(path, u.urlopen(r, timeout=5).status)\n"
        "    except e.HTTPError as x: print(path, x.code)\n"
    )
    told = world.execute(probe, "operator", "python3", "-c", script, report["address"], namespace=NAMESPACE)
    codes = dict(line.rsplit(" ", 1) for line in told.strip().splitlines())
    assert len(codes) == 10
    assert set(codes.values()) <= {"401", "403", "404"}, codes


def test_unknown_models_and_bad_bodies_get_openai_errors(world):
    import urllib.error
    import urllib.request

    def ask(body: bytes) -> tuple[int, dict]:
        request = urllib.request.Request(
            f"{world.system.gateway}/v1/chat/completions", data=body, headers={"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    for body, status in (
        (b'{"model": "nobody", "messages": []}', 404),
        (b'{"messages": []}', 400),
        (b"not json", 400),
        (json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x" * (9 << 20)}]}).encode(), 413),
    ):
        code, told = ask(body)
        assert code == status, told
        assert set(told["error"]) >= {"message", "type", "param", "code"}, told
