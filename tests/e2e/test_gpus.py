"""The example of a 70B base over four GPUs, up to the point where a GPU is needed: real scheduling onto GPUs of a node
that is only an object. Its pods are placed, and nobody runs them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo.kubectl import condition
from demo.system import MODELS_NAMESPACE, ROOT
from tests.e2e.world import World, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

EXAMPLE = ROOT / "examples" / "gpu" / "llama-3-3-70b.yaml"
PODS = "tuneyard.dev/base-model=llama-3-3-70b"
NODE = "gpu-node"
HAS = {"cpu": "64", "memory": "1Ti", "pods": "110", "nvidia.com/gpu": "8"}


def objects(path: Path, kind: str) -> list[str]:
    return [o["metadata"]["name"] for o in yaml.safe_load_all(path.read_text()) if o["kind"] == kind]


def node() -> dict[str, Any]:
    """Eight H100 behind the taint that GPU nodes usually have."""
    metadata = {"name": NODE, "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}
    taint = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": [taint]}}


def claim() -> str:
    """The claim that the example's pods mount, and what it is bound to."""
    size = {"storage": "1Ti"}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": "by-hand"}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "models-of-example"},
        "spec": {**common, "capacity": size, "hostPath": {"path": "/var/lib/nothing"}},
    }
    wanted = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {**common, "resources": {"requests": size}, "volumeName": "models-of-example"},
    }
    return yaml.safe_dump_all([volume, wanted])


def alive(world: World) -> None:
    """What a kubelet would say every ten seconds."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    well = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
    status = {"status": {"capacity": HAS, "allocatable": HAS, "conditions": [well]}}
    world.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", json.dumps(status))


@pytest.fixture
def gpus(world: World) -> Iterator[World]:
    try:
        world.apply(yaml.safe_dump(node()))
        world.apply(claim())
        yield world
    finally:
        ours = ("-n", MODELS_NAMESPACE, "delete", "--ignore-not-found")
        world.kubectl(*ours, "mdep", *objects(EXAMPLE, "ModelDeployment"))
        for short, kind in (("lora", "LoRAAdapter"), ("bmodel", "BaseModel")):
            for name in objects(EXAMPLE, kind):
                world.kubectl.delete_unused(short, name, MODELS_NAMESPACE)
        # no kubelet will ever say that its pods have ended
        world.kubectl("delete", "node", NODE)
        wait_until(lambda: gone(world), 120, "its pods are gone")
        world.kubectl(*ours, "pvc", "models")
        world.kubectl("delete", "pv", "models-of-example")


def gone(world: World) -> bool:
    world.kubectl(
        *("-n", MODELS_NAMESPACE, "delete", "pod", "-l", PODS, "--force", "--grace-period=0", "--ignore-not-found")
    )
    return not world.kubectl.items("pods", MODELS_NAMESPACE, PODS)


def test_the_70b_example_is_placed_on_four_gpus_a_replica(gpus: World) -> None:
    gpus.kubectl.apply(EXAMPLE, MODELS_NAMESPACE)

    def placed() -> list[dict[str, Any]]:
        alive(gpus)
        pods = gpus.kubectl.items("pods", MODELS_NAMESPACE, PODS)
        return [p for p in pods if p["spec"].get("nodeName")]

    wait_until(lambda: len(placed()) == 2, 60, "both replicas have a node")
    for pod in placed():
        engine = next(c for c in pod["spec"]["containers"] if c["name"] == "engine")
        assert pod["spec"]["nodeName"] == NODE
        assert engine["resources"]["limits"]["nvidia.com/gpu"] == "4"
        arguments = engine["args"]
        assert arguments[arguments.index("--tensor-parallel-size") + 1] == "4"
    # eight GPUs are taken: one replica more has no place, and its pod says so
    gpus.kubectl.merge("bmodel", "llama-3-3-70b", {"spec": {"serving": {"replicas": 3}}}, MODELS_NAMESPACE)
    wait_until(lambda: len(placed()) == 2 and without_place(gpus), 60, "no GPU is left for the third")
    waiting = gpus.kubectl.get("mdep", "globex-claims", MODELS_NAMESPACE)
    assert condition(waiting, "Ready") == "False", "nothing serves that no GPU runs"


def without_place(world: World) -> bool:
    pods = world.kubectl.items("pods", MODELS_NAMESPACE, PODS)
    said = [c.get("message", "") for p in pods for c in p.get("status", {}).get("conditions") or []]
    return any("Insufficient nvidia.com/gpu" in message for message in said)
