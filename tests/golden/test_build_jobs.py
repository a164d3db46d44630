"""A build -> the ConfigMap that tells what to do, and the Job, in builds/NAME.yaml.

`TUNEYARD_UPDATE=1` writes the files anew; read the diff before you commit it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import BASE, Situation, adapter, base_model, digest
from tests.golden.test_plans import SETTINGS, UPDATE, printable
from tuneyard.api.build import BaseSource
from tuneyard.api.serving import ArtifactVolume, ServingSpec, VolumeClaim
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.buildobservations import BuildObservation, text_digest
from tuneyard.planning.plan import Apply

FOLDER = Path(__file__).parent / "builds"
MERGE: dict[str, Any] = {"merge": {"baseModel": BASE, "adapter": "v1", "dtype": "float32"}}
AWQ: dict[str, Any] = {"quantize": {"scheme": "AWQ", "calibration": {"configMap": "texts", "samples": 64}}}
BUILDS: dict[str, dict[str, Any]] = {
    "volume": {"output": {"volume": {"claimName": "built", "path": "models"}}, "steps": [MERGE, AWQ]},
    "claim": {"output": {"volume": {"claimName": "models"}}, "steps": [MERGE], "scratch": {"size": "80Gi"}},
    "bucket": {
        "output": {"s3": {"uri": "s3://models/built/", "credentials": {"name": "writer"}}},
        "steps": [MERGE],
        "resources": {"requests": {"cpu": 4}, "limits": {"memory": "32Gi"}},
        "nodeSelector": {"disk": "fast"},
        "tolerations": [{"key": "builds", "operator": "Exists"}],
        "timeout": "2h",
        "scratch": {"size": "100Gi", "storageClass": "fast"},
    },
}


@pytest.mark.parametrize("name", BUILDS)
def test_a_job_is_the_golden_one(name: str) -> None:
    claim = ArtifactVolume(name="models", persistent_volume_claim=VolumeClaim(claim_name="models"))
    base = base_model(digest=digest(BASE), serving=ServingSpec(artifact_volumes=[claim]))
    remote = Source(s3=S3Source(uri="s3://adapters/v1/"))
    built = base_model("built", source=BaseSource.from_dict({"build": BUILDS[name]}), serving=ServingSpec())
    seen = BuildObservation(
        adapters=(adapter("v1", source=remote, digest=digest("v1")),),
        calibrations={("texts", "prompts.jsonl"): text_digest("{}")},
    )
    situation = Situation(bases=(base, built), builds={"built": seen}, settings=SETTINGS)
    actions = plan_basemodel(situation.base_model("built")).actions
    found = [a.object for a in actions if isinstance(a, Apply) and "build" in a.object["metadata"]["name"]]
    text = yaml.safe_dump_all([printable(o) for o in found], sort_keys=False, width=120)
    golden = FOLDER / f"{name}.yaml"
    if UPDATE:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), "run with TUNEYARD_UPDATE=1, then read the difference"
