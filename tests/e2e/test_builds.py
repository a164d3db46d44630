"""A fine-tune merged into its base and quantised, in one manifest: built by a Job, compared by a gate, served to users.

The tiny base's adapter repeats the letter a: a model that has lost it says something else.
"""

from __future__ import annotations

import json

import pytest
import yaml

from demo.kubectl import ready
from demo.system import MODELS_NAMESPACE, NODE_ARTIFACTS
from tests.e2e.building import built, is_built
from tests.e2e.test_sources import SERVING
from tests.e2e.world import World, adapter, answer, ours, remove
from tests.traffic import Load, traffic_in_thread

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

LETTERS = "letters"
SMALL = f"{LETTERS}-int8"
ALONE = {**SERVING, "lora": {"enabled": False}}
ARTIFACTS = {"name": "artifacts", "hostPath": {"path": NODE_ARTIFACTS}}
MERGE = {"merge": {"baseModel": LETTERS, "adapter": f"{LETTERS}-a", "dtype": "float32"}}
ASKED = [{"role": "user", "content": "hello"}]


def deployment(weights):
    prompts = {"configMap": f"{LETTERS}-evals"}
    gate = {"name": "same-letters", "evaluation": {"prompts": prompts, "min": {"regex": 1}, "maxTokens": 8}}
    return ours(
        "ModelDeployment",
        LETTERS,
        revisions=[
            {"name": "original", "baseModel": LETTERS, "adapter": f"{LETTERS}-a"},
            {"name": "int8", "baseModel": SMALL},
        ],
        traffic=[{"revision": r, "weight": w} for r, w in weights.items()],
        routing={"allowRevisionHeader": True},
        rollout={"mode": "Progressive", "steps": [{"weight": 50, "hold": "5s"}], "gates": [gate]},
    )


def test_merged_quantised_compared_and_served_by_one_manifest(builds):
    kubectl, world = builds.kubectl, World(builds)
    source = {"volume": {"name": "artifacts", "path": "tiny-llama"}}
    world.apply(ours("BaseModel", LETTERS, source=source, serving={**SERVING, "artifactVolumes": [ARTIFACTS]}))
    world.apply(adapter(f"{LETTERS}-a", "adapters/tiny-adapter-a", base=LETTERS))
    lines = [json.dumps({"messages": ASKED, "check": {"regex": "^aaaaaaaa$"}})] * 2
    evals = {"prompts.jsonl": "\n".join(lines)}
    prompts = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{LETTERS}-evals"}, "data": evals}
    world.apply(yaml.safe_dump(prompts))
    world.apply(built(SMALL, [MERGE, {"quantize": {"scheme": "INT8"}}], ALONE))
    try:
        world.apply(deployment({"original": 100, "int8": 0}))
        kubectl.wait_for("mdep", LETTERS, ready, namespace=MODELS_NAMESPACE, timeout=600)
        seen = kubectl.wait_for("bmodel", SMALL, is_built, namespace=MODELS_NAMESPACE, timeout=900)
        build, digest = seen["status"]["build"], seen["status"]["digest"]
        assert (build["state"], build["attempt"]) == ("Succeeded", 1)
        assert digest.startswith("sha256:")
        assert {u["name"] for u in build["inputs"]} >= {LETTERS, f"{LETTERS}-a"}

        load = Load([LETTERS], rate=0.5, max_open=20, max_seconds=900.0, body={"messages": ASKED, "max_tokens": 8})
        with traffic_in_thread(builds.gateway, load) as traffic:
            world.apply(deployment({"original": 0, "int8": 100}))
            kubectl.wait_for(
                "mdep", LETTERS, lambda d: d["status"]["rollout"].get("stable") == "int8",
                namespace=MODELS_NAMESPACE, timeout=900,
            )  # fmt: skip
            traffic.wait_for(2)
            served = traffic.summary()
        assert served.failed == served.cut == 0, served
        assert served.by_revision["int8"]
        assert answer(world, LETTERS, "int8") == "aaaaaaaa"

        # the same first step is found, not made again
        world.apply(built(f"{LETTERS}-merged", [MERGE], ALONE))
        again = kubectl.wait_for("bmodel", f"{LETTERS}-merged", is_built, namespace=MODELS_NAMESPACE, timeout=300)
        (step,) = again["status"]["build"]["steps"]
        assert step["found"], "the other build made it"
    finally:
        remove(world, LETTERS, SMALL)
        kubectl.delete_unused("bmodel", f"{LETTERS}-merged", MODELS_NAMESPACE)
        kubectl.delete_unused("lora", f"{LETTERS}-a", MODELS_NAMESPACE)
        kubectl.delete_unused("bmodel", LETTERS, MODELS_NAMESPACE)
