"""The closed loop of examples/closed-loop, for real on the small model: from feedback to what is proposed in Git."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from closedloop.judging import verdict
from demo import closedloop as demo
from models.artifact import digest
from models.smollm2 import build_smollm2
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.planning.adapterchecks import violations
from tuneyard.planning.basefacts import base_facts
from tuneyard.systems.artifacts.safetensors import check_finite, read_header

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("loop") / "run"
    assert demo.learn(run, demo.EPOCHS) == 0
    return run


def told(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_the_adapter_is_one_that_pods_take(run: Path) -> None:
    adapter, base = run / "adapter", build_smollm2()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == demo.BASE_NAME
    assert str(base) not in (adapter / "adapter_config.json").read_text()
    facts = base_facts(
        json.loads((base / "config.json").read_text()),
        [entry.tensor for entry in read_header(base, "model.safetensors")],
    )
    entries = read_header(adapter, "adapter_model.safetensors")
    assert violations(config, [entry.tensor for entry in entries], facts, max_rank=8) == []
    check_finite(adapter, "adapter_model.safetensors", entries, {})


def test_it_is_trained_from_the_base_and_says_so(run: Path) -> None:
    training = told(run, "training.json")
    assert training["baseDigest"] == digest(build_smollm2())
    assert training["digest"] == digest(run / "adapter")
    assert training["datasetHash"] == told(run, "selection.json")["datasetHash"]


def test_it_has_learnt_and_the_verdict_is_the_rules(run: Path) -> None:
    found = told(run, "evaluation.json")
    scores: dict[str, dict[str, list[float]]] = {}
    for kind in ("heldout", "regression"):
        rows = [answer for answer in found["answers"] if answer["set"] == kind]
        scores[kind] = {name: [row[name]["score"] for row in rows] for name in ("base", "current", "candidate")}
    assert len(scores["heldout"]["base"]) == 8
    assert len(scores["regression"]["base"]) == 15
    again = verdict(scores["heldout"], scores["regression"])
    assert again["better"] == found["better"]
    assert found["regression"]["current"] > 0.95, "the current adapter still knows what it was taught"
    assert found["heldout"]["candidate"] > found["heldout"]["base"] + 0.2


def test_only_what_is_better_is_proposed(run: Path, tmp_path: Path) -> None:
    repo = demo.repository(tmp_path / "repo")
    better = told(run, "evaluation.json")["better"]
    assert demo.propose(run, repo) == (0 if better else 3)
    branches = subprocess.run(
        ["git", "-C", str(repo), "branch", "--list"], capture_output=True, text=True, check=True
    ).stdout
    assert ("propose/acme-support-v4" in branches) == better
    if better:
        shown = ["git", "-C", str(repo), "show", "propose/acme-support-v4:models/acme-support-v4.yaml"]
        text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
        assert LoRAAdapterResource.from_dict(yaml.safe_load(text)).spec.digest == digest(run / "adapter")
