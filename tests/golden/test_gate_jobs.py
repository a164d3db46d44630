"""A gate -> the Job and what its pod is told, in gates/NAME.yaml.

`TUNEYARD_UPDATE=1` writes the files anew; read the diff before you commit it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import deployment
from tests.golden.test_plans import SETTINGS, UPDATE, printable
from tests.toyworld.gates import SPEED
from tuneyard.api.gates import Gate
from tuneyard.planning.driftruns import drift_key
from tuneyard.planning.gatejobs import companions, gate_key, job_object
from tuneyard.planning.gateobservations import GateJob, JobMark
from tuneyard.planning.plan import Redacted

FOLDER = Path(__file__).parent / "gates"
GRADED = {
    "name": "graded",
    "timeout": "5m",
    "evaluation": {
        "prompts": {"configMap": "acme-evals", "key": "refunds.jsonl"},
        "min": {"exactMatch": 0.8, "judge": 0.6},
        "judge": {"url": "https://llm.example.com/v1", "model": "grader", "secret": "grader"},
    },
}
GATES: dict[str, dict[str, Any]] = {"benchmark": SPEED, "evaluation": GRADED, "drift": GRADED}
TOKEN = "0f" * 32


@pytest.mark.parametrize("name", GATES)
def test_a_job_is_the_golden_one(name: str) -> None:
    gate = Gate.from_dict(GATES[name])
    mark = JobMark(gate=gate.name, key=gate_key("0123456789abcdef", gate), revision="v2", stable="v1", attempt=1)
    if name == "drift":
        update = {"revision": "v1", "drift": drift_key("0123456789abcdef", gate), "began": "2026-01-01T12:00:00Z"}
        mark = mark.model_copy(update=update)
    of = deployment()
    job = job_object(of, gate, mark, SETTINGS)
    made = GateJob(job["metadata"]["name"], "uid-of-the-job", "1", mark, "")
    found = [job, *companions(of, gate, made, Redacted(TOKEN), SETTINGS)]
    text = yaml.safe_dump_all([printable(o) for o in found], sort_keys=False, width=120)
    golden = FOLDER / f"{name}.yaml"
    if UPDATE:
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text)
    assert text == golden.read_text(), "run with TUNEYARD_UPDATE=1, then read the difference"
    assert TOKEN not in text
    assert "[redacted]" not in json.dumps(found), "what is written has the token"
