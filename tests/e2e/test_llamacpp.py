"""llama.cpp on the real system: a file that a Job has made, a canary to it from vLLM, and adapters that come later.

Each answer tells which adapter gave it: v1 opens with Hello, v2 with Hi there.
"""

from __future__ import annotations

import pytest

from demo.kubectl import ready
from demo.system import MODELS_NAMESPACE, NODE_ARTIFACTS
from tests.e2e.building import built, is_built
from tests.e2e.world import adapter, answer, ours, remove, rows, wait_until
from tests.traffic import Load, traffic_in_thread

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

NAME, SMALL = "on-cpus", "smollm2-gguf"
QUESTION = "How do I reset my password?"
SERVING = {
    "engine": "llamaCpp",
    "replicas": 2,
    "maxModelLen": 512,
    "lora": {"maxCpuLoras": 4, "maxRank": 8},
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    "artifactVolumes": [{"name": "artifacts", "hostPath": {"path": NODE_ARTIFACTS}}],
}
REVISIONS = {
    "gpu": {"baseModel": "smollm2", "adapter": "acme-support-v1"},
    "cpu": {"baseModel": SMALL, "adapter": f"{NAME}-v1"},
    "next": {"baseModel": SMALL, "adapter": f"{NAME}-v2"},
}


def deployment(**weights: int) -> str:
    return ours(
        "ModelDeployment",
        NAME,
        revisions=[{"name": name, **REVISIONS[name]} for name in weights],
        traffic=[{"revision": name, "weight": weight} for name, weight in weights.items()],
        routing={"allowRevisionHeader": True},
        rollout={"mode": "Progressive", "steps": [{"weight": 50, "hold": "3s"}]},
    )


def said(world, revision: str) -> str:
    return answer(world, NAME, revision, QUESTION, tokens=6)


def stable(world, revision: str, timeout: float) -> None:
    def holds(seen):
        row = rows(seen).get(revision, {})
        return seen["status"]["rollout"].get("stable") == revision and row.get("readyEndpoints") == 2

    world.kubectl.wait_for("mdep", NAME, holds, namespace=MODELS_NAMESPACE, timeout=timeout)


def server_pods(world) -> dict[str, str]:
    """Name -> what identifies the engine's container; another where it was begun anew by the kubelet."""
    pods = world.kubectl.items("pods", MODELS_NAMESPACE, f"tuneyard.dev/base-model={SMALL}")
    engines = ((p, c) for p in pods for c in p["status"].get("containerStatuses", []) if c["name"] == "engine")
    return {pod["metadata"]["name"]: container.get("containerID", "") for pod, container in engines}


def test_a_built_file_takes_over_from_vllm_and_takes_adapters_without_losing_a_request(builds, world):
    kubectl = builds.kubectl
    world.apply(built(SMALL, [{"gguf": {"baseModel": "smollm2", "type": "Q8_0"}}], SERVING))
    world.apply(adapter(f"{NAME}-v1", "adapters/acme-support-v1", base=SMALL))
    try:
        kubectl.wait_for("bmodel", SMALL, is_built, namespace=MODELS_NAMESPACE, timeout=900)
        world.apply(deployment(gpu=100))
        kubectl.wait_for("mdep", NAME, ready, namespace=MODELS_NAMESPACE, timeout=300)
        assert said(world, "gpu").startswith("Hello")

        load = Load([NAME], rate=0.5, max_open=20, max_seconds=1200.0, prompt=QUESTION, body={"max_tokens": 6})
        with traffic_in_thread(builds.gateway, load) as traffic:
            traffic.wait_for(2)
            world.apply(deployment(gpu=0, cpu=100))
            stable(world, "cpu", timeout=600)
            assert said(world, "cpu").startswith("Hello")
            before = server_pods(world)
            assert len(before) == 2

            # a new adapter: the servers begin anew, one after the other, in the pods that there are
            world.apply(adapter(f"{NAME}-v2", "adapters/acme-support-v2", base=SMALL))
            world.apply(deployment(gpu=0, cpu=0, next=100))
            stable(world, "next", timeout=300)
            assert said(world, "next").startswith("Hi there")
            assert said(world, "cpu").startswith("Hello"), "the way back"
            assert server_pods(world) == before

            # and back, by one change
            world.apply(deployment(gpu=0, cpu=100, next=0))
            wait_until(lambda: weights(world) == {"cpu": 100}, 60, "the old version is back")
            traffic.wait_for(3)
            served = traffic.summary()
        assert served.failed == served.cut == 0, f"{served}\n" + "\n".join(served.complaints)
        assert set(served.by_revision) == {"gpu", "cpu", "next"}
    finally:
        remove(world, NAME, SMALL, "v1", "v2")


def weights(world) -> dict[str, int]:
    """What has a share of the requests now."""
    seen = rows(world.kubectl.get("mdep", NAME, MODELS_NAMESPACE))
    return {name: row["weight"] for name, row in seen.items() if row.get("weight")}
