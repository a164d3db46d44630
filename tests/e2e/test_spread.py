"""More adapters than one pod holds, on real engines: each is where the plan says, and answers under its own name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from openai import OpenAI

from demo.kubectl import ready
from demo.system import MODELS_NAMESPACE
from models.copies import make_copies
from tests.e2e.test_sources import SERVING
from tests.e2e.world import adapter, ours, remove, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

ADAPTERS = [f"s{number:02}" for number in range(12)]
ROOM = 8
VOLUME = {"name": "artifacts", "hostPath": {"path": "/var/lib/tuneyard/artifacts"}}


def placed(world) -> dict[str, set[str]]:
    """Adapters that each pod has loaded."""
    pods = world.kubectl.items("pods", MODELS_NAMESPACE, "tuneyard.dev/base-model=spread")
    reports = {p["metadata"]["name"]: p["metadata"].get("annotations", {}).get("tuneyard.dev/adapters") for p in pods}
    return {
        pod: {name for name, said in json.loads(report)["adapters"].items() if said["state"] == "Loaded"}
        for pod, report in reports.items()
        if report
    }


def test_twelve_adapters_over_two_engines_that_hold_eight(world):
    folder = world.system.provider.artifacts() / "adapters" / "spread"
    make_copies(world.system.provider.artifacts() / "adapters" / "tiny-adapter-a", folder, len(ADAPTERS))
    found = sorted(p for p in folder.iterdir() if p.is_dir())
    for path in (folder, *folder.rglob("*")):
        Path(path).chmod(0o755 if path.is_dir() else 0o644)
    serving = {**SERVING, "replicas": 2, "lora": {"maxLoras": 2, "maxRank": 8, "maxCpuLoras": ROOM}}
    source = {"volume": {"name": "artifacts", "path": "tiny-llama"}}
    world.apply(ours("BaseModel", "spread", source=source, serving={**serving, "artifactVolumes": [VOLUME]}))
    for name, path in zip(ADAPTERS, found, strict=True):
        world.apply(adapter(f"spread-{name}", f"adapters/spread/{path.name}", base="spread"))
    revisions = [{"name": name, "baseModel": "spread", "adapter": f"spread-{name}"} for name in ADAPTERS]
    traffic = [{"revision": ADAPTERS[0], "weight": 100}]
    routing = {"allowRevisionHeader": True}
    try:
        world.apply(ours("ModelDeployment", "spread", revisions=revisions, traffic=traffic, routing=routing))
        world.kubectl.wait_for("mdep", "spread", ready, namespace=MODELS_NAMESPACE, timeout=400)
        # the deployment is ready with the one revision that gets traffic; the others come in the pods' own time
        everything = {f"spread-{name}" for name in ADAPTERS}
        wait_until(lambda: set().union(*placed(world).values()) == everything, 120, "every adapter is on a pod")
        having = placed(world)
        assert len(having) == 2
        assert all(len(names) <= ROOM for names in having.values()), having
        client = OpenAI(base_url=f"{world.system.gateway}/v1", api_key="any", max_retries=0, timeout=120)
        for name in ADAPTERS:
            said = client.chat.completions.create(
                model="spread",
                messages=[{"role": "user", "content": "hello"}],
                max_tokens=2,
                extra_headers={"x-revision": name},
            )
            assert said.model.startswith(f"spread-{name}-")
            world.kubectl.wait_for(
                "lora",
                f"spread-{name}",
                lambda o: o["status"]["loaded"] == "1/1",
                namespace=MODELS_NAMESPACE,
                timeout=30,
            )
    finally:
        remove(world, "spread", "spread", *ADAPTERS)
