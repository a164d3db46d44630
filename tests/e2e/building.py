"""Bases that Jobs of the cluster make, on a claim of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import yaml

from cluster import images
from demo.kubectl import condition
from demo.system import MODELS_NAMESPACE, NODE_ARTIFACTS, RELEASE, ROOT, System, helm
from tests.e2e.world import ours

CLAIM = "built-models"


@contextmanager
def able_to_build(system: System) -> Iterator[System]:
    """An installation with the images for builds and for llama.cpp, and a volume for results."""
    given = ["--reuse-values", "--wait", "--timeout", "3m"]
    for field, image in (("buildTools", "build-tools"), ("llamaCpp", "llama-cpp")):
        given += ["--set", f"images.{field}.ref={images.load(system.provider, images.build(image))}"]
    chart = str(ROOT / "charts" / "tuneyard")
    subprocess.run([*helm(system.provider), "upgrade", RELEASE, chart, *given], check=True, stdout=subprocess.DEVNULL)
    # results are written by the pods' user, on a folder that the node mounts
    folder = system.provider.artifacts() / "volume"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    system.kubectl.apply(_volume(), MODELS_NAMESPACE)
    try:
        yield system
    finally:
        system.kubectl("-n", MODELS_NAMESPACE, "delete", "pvc", CLAIM, "--wait=false")
        system.kubectl("delete", "pv", CLAIM, "--wait=false")


def built(name: str, steps: Sequence[Mapping[str, Any]], serving: Mapping[str, Any]) -> str:
    """A BaseModel that a Job makes."""
    build = {
        "output": {"volume": {"claimName": CLAIM, "path": "built"}},
        "steps": list(steps),
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
    }
    return ours("BaseModel", name, source={"build": build}, serving=dict(serving))


def is_built(base: dict[str, Any]) -> bool:
    """Whether its build is done."""
    return condition(base, "Built") == "True"


def _volume() -> str:
    size, modes = {"storage": "5Gi"}, ["ReadWriteMany"]
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": CLAIM},
        "spec": {
            "capacity": size,
            "accessModes": modes,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": f"{NODE_ARTIFACTS}/volume"},
            "claimRef": {"namespace": MODELS_NAMESPACE, "name": CLAIM},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {"accessModes": modes, "storageClassName": "", "volumeName": CLAIM, "resources": {"requests": size}},
    }
    return yaml.safe_dump_all([volume, claim])
