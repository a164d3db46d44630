"""An adapter that nobody asks for is unloaded from a real engine, and loaded again for the request that waits."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from openai import OpenAI

from demo.kubectl import condition, ready
from demo.system import MODELS_NAMESPACE
from tests.e2e.test_sources import SERVING
from tests.e2e.world import adapter, ours, reason_of, remove, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

VOLUME = {"name": "artifacts", "hostPath": {"path": "/var/lib/tuneyard/artifacts"}}
IDLE = "idle"


def loaded(world) -> set[str]:
    """The adapters that the base's pod says it has."""
    (pod,) = world.kubectl.items("pods", MODELS_NAMESPACE, f"tuneyard.dev/base-model={IDLE}")
    report = json.loads(pod["metadata"]["annotations"]["tuneyard.dev/adapters"])
    return {name for name, said in report["adapters"].items() if said["state"] == "Loaded"}


def idles(deployment) -> bool:
    return condition(deployment, "Ready") == "True" and reason_of(deployment, "Ready") == "Idle"


def test_an_adapter_idles_and_comes_back_for_the_next_request(world):
    serving = {**SERVING, "replicas": 1, "lora": {"maxRank": 8, "idleTimeout": "20s"}, "artifactVolumes": [VOLUME]}
    source = {"volume": {"name": "artifacts", "path": "tiny-llama"}}
    world.apply(ours("BaseModel", IDLE, source=source, serving=serving))
    world.apply(adapter(f"{IDLE}-a", "adapters/tiny-adapter-a", base=IDLE))
    revisions = [{"name": "v1", "baseModel": IDLE, "adapter": f"{IDLE}-a"}]
    client = OpenAI(base_url=f"{world.system.gateway}/v1", api_key="any", max_retries=0, timeout=120)

    def ask(**more):
        asked: dict[str, Any] = {"model": IDLE, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        return client.chat.completions.create(**asked, **more)

    try:
        traffic = [{"revision": "v1", "weight": 100}]
        world.apply(ours("ModelDeployment", IDLE, revisions=revisions, traffic=traffic))
        world.kubectl.wait_for("mdep", IDLE, ready, namespace=MODELS_NAMESPACE, timeout=400)
        assert ask().model.startswith(f"{IDLE}-a-")
        world.kubectl.wait_for("mdep", IDLE, idles, namespace=MODELS_NAMESPACE, timeout=120)
        wait_until(lambda: not loaded(world), 60, "the engine holds no adapter")

        began = time.monotonic()
        words = "".join(chunk.model for chunk in ask(stream=True))
        assert f"{IDLE}-a-" in words
        assert time.monotonic() - began < 60
        assert loaded(world) == {f"{IDLE}-a"}
        woken = world.kubectl.wait_for("mdep", IDLE, lambda d: ready(d) and not idles(d), namespace=MODELS_NAMESPACE)
        assert woken["status"]["traffic"][0]["readyEndpoints"] == 1
    finally:
        remove(world, IDLE, IDLE, "a")
