"""What kstatus, and so Flux, says of the operator's statuses in every phase, by its own program."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml

from cluster import gobuild
from cluster.progress import Progress
from gitops.configmap import FOLDER
from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import BASE_SPEC, Cluster, adapter_spec, deployment_spec
from tuneyard.api import names
from tuneyard.api.crds import NEW_STATUS

Object = dict[str, Any]
KINDS = FOLDER / "resource_customizations" / names.GROUP
FLUX = {"Healthy": "Current", "Degraded": "Failed", "Progressing": "InProgress", "Suspended": "InProgress"}
"""What Argo CD shows -> what kstatus says. It knows nothing of waiting for a person: that is in progress."""


def kstatus(*documents: str) -> list[str]:
    program = gobuild.ensure(["kstatus"], Progress())["kstatus"]
    text = "---\n".join(documents)
    return subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout.split()


def test_what_kstatus_says_of_every_phase() -> None:
    """Flux waits for what is InProgress and gives up at once on what is Failed."""
    files = sorted(KINDS.glob("*/health_test.yaml"))
    tests = [(f.parent, t) for f in files for t in yaml.safe_load(f.read_text())["tests"]]
    said = kstatus(*((kind / t["inputPath"]).read_text() for kind, t in tests))
    wanted = [FLUX[t["healthStatus"]["status"]] for _, t in tests]
    named = [f"{kind.name} {t['inputPath']}" for kind, t in tests]
    assert dict(zip(named, said, strict=True)) == dict(zip(named, wanted, strict=True))


@pytest.mark.apiserver
def test_what_no_operator_has_seen_yet_is_not_done_for_kstatus(apiserver: ApiServer) -> None:
    """An object without any status would be: the API server gives new ones a generation that nobody has seen."""
    cluster = Cluster(apiserver, "kstatus")
    cluster.apply("BaseModel", "base", BASE_SPEC)
    cluster.apply("LoRAAdapter", "one", adapter_spec("base"))
    cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v1": 100}))
    made = [cluster.get(*key) for key in (("BaseModel", "base"), ("LoRAAdapter", "one"), ("ModelDeployment", "m"))]
    assert [m["status"] for m in made] == [NEW_STATUS] * 3
    assert kstatus(*(yaml.safe_dump(m) for m in made)) == ["InProgress"] * 3
