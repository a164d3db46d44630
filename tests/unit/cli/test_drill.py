"""What a rehearsal makes, when it refuses, and the times that it tells."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.builders import deployment, revision
from tuneyard.api.analysis import AnalysisSpec
from tuneyard.api.drill import Fault, fault_of
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentSpec, ModelDeploymentStatus
from tuneyard.api.rollout import RolloutSpec, RolloutStatus, Verdict
from tuneyard.api.serving import ServingSpec
from tuneyard.cli.drill import fault_from, key_from, render
from tuneyard.cli.drillplan import Answer, drill_name, drill_object, drilled, result
from tuneyard.cli.errors import UserError

SLO = {"slo": {"errorRate": "1%"}, "minRequests": 50}
STEPS = {"mode": "Progressive", "steps": [{"weight": 1, "hold": "5m"}, {"weight": 50}], "analysis": SLO}
ERRORS = Fault(revision="drill", errors=100)
VERDICT = Verdict(
    revision="drill", content_hash="x", reason="AnalysisFailed", evidence="all bad", at="2026-01-01T00:00:00Z"
)


def test_requests_carry_the_key_that_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text("sk-of-the-file\n")
    monkeypatch.delenv("TUNEYARD_API_KEY", raising=False)
    assert (key_from(None), key_from(file)) == (None, "sk-of-the-file")
    monkeypatch.setenv("TUNEYARD_API_KEY", "sk-of-the-environment")
    assert (key_from(None), key_from(file)) == ("sk-of-the-environment", "sk-of-the-file")
    with pytest.raises(UserError, match="--api-key"):
        key_from(tmp_path / "missing")


def chat(**fields: Any) -> ModelDeploymentResource:
    chosen = {
        "revisions": [revision("v1", "one"), revision("v2", "two")],
        "traffic": {"v1": 0, "v2": 100},
        "rollout": RolloutSpec.from_dict(STEPS),
        "status": ModelDeploymentStatus(rollout=RolloutStatus(phase="Progressing", stable="v1", candidate="v2")),
        **fields,
    }
    return deployment("chat", **chosen)


def test_both_revisions_are_what_is_stable_under_a_name_of_its_own() -> None:
    made = drill_object(chat(), drilled(chat(), own_pods=False), ERRORS, weight=10, token="t1")
    assert made["metadata"]["name"] == "chat-drill"
    assert fault_of(made["metadata"]["annotations"]) == ERRORS
    spec = ModelDeploymentSpec.from_dict(made["spec"])
    assert spec.model_name == "chat-drill"
    assert [(r.name, r.adapter, r.base_model) for r in spec.revisions] == [
        ("stable", "one", chat().spec.revisions[0].base_model),
        ("drill", "one", chat().spec.revisions[0].base_model),
    ]
    assert {t.revision: t.weight for t in spec.traffic} == {"stable": 100, "drill": 0}
    assert spec.rollout is not None
    assert spec.rollout.analysis == AnalysisSpec.from_dict(SLO)
    assert [(s.weight, s.hold) for s in spec.rollout.steps or ()] == [(10, "24h")]
    assert spec.rollout.retry_token == "t1", "the verdict of the last rehearsal does not count"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rollout": RolloutSpec.from_dict({**STEPS, "analysis": None})}, "has no spec.rollout.analysis"),
        ({"rollout": None}, "has no spec.rollout.analysis"),
        ({"rollout": RolloutSpec.from_dict({"analysis": SLO})}, "mode: Progressive"),
        ({"rollout": RolloutSpec.from_dict({**STEPS, "mode": "Manual"})}, "mode: Progressive"),
        ({"status": ModelDeploymentStatus()}, "has no stable revision yet"),
        ({"serving": ServingSpec()}, "--own-pods"),
        ({"revisions": [revision("v1", "one", serving=ServingSpec())], "traffic": {"v1": 100}}, "--own-pods"),
    ],
)
def test_where_nothing_can_be_rehearsed_it_says_what_to_do(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        drilled(chat(**fields), own_pods=False)


def test_own_pods_are_a_choice() -> None:
    assert drilled(chat(serving=ServingSpec()), own_pods=True).name == "v1"


def test_names_stay_within_their_length() -> None:
    assert drill_name("x" * 253) == "x" * 247 + "-drill"


def test_times_begin_with_the_first_answer_that_the_fault_has_spoiled() -> None:
    good = [Answer(t / 10, t / 10 + 0.05, 200, "stable") for t in range(50)]
    bad = [Answer(1.0, 1.1, 502, "drill"), Answer(1.5, 1.6, 502, "drill"), Answer(3.0, 3.3, 200, "drill")]
    found = result([*good, *bad, Answer(4.0, 4.1, 503, "stable")], ERRORS, 10, VERDICT, decided=2.6)
    assert (found.requests, found.spoiled) == (54, 2), "half of its answers may still be good"
    assert (found.seconds_to_detect, found.seconds_to_roll_back) == (1.5, 1.9)
    assert found.rolled_back
    assert (found.reason, found.evidence) == ("AnalysisFailed", "all bad")


def test_a_delay_spoils_what_the_candidate_has_answered() -> None:
    slow = Fault(revision="drill", delay_ms=1000)
    answers = [Answer(0, 0.1, 200, "stable"), Answer(1, 2.1, 200, "drill"), Answer(1.2, 1.3, 503)]
    found = result(answers, slow, 10, None, None)
    assert (found.spoiled, found.rolled_back) == (1, False)
    assert (found.seconds_to_detect, found.seconds_to_roll_back) == (None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ERRORS),
        ({"errors": 20}, Fault(revision="drill", errors=20)),
        ({"delay": "5s"}, Fault(revision="drill", delay_ms=5000)),
        ({"delay": "300ms", "errors": 5}, Fault(revision="drill", errors=5, delay_ms=300)),
    ],
)
def test_a_fault_is_errors_unless_something_else_is_said(given: dict[str, Any], expected: Fault) -> None:
    assert fault_from(argparse.Namespace(**{"errors": None, "delay": None, **given})) == expected


@pytest.mark.parametrize("given", [{"errors": 0}, {"errors": 101}, {"delay": "2m"}, {"delay": "soon"}, {"delay": "0s"}])
def test_what_is_no_fault_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        fault_from(argparse.Namespace(**{"errors": None, "delay": None, **given}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"errors":1}', '{"revision":"v1","errors":101}', json.dumps({"revision": "v", "delayMs": -1})],
)
def test_an_annotation_that_cannot_be_read_is_no_fault(text: str) -> None:
    assert fault_of({"tuneyard.dev/drill": text}) is None
    assert ObjectMeta(name="x", namespace="y").annotations == {}


def test_a_result_is_told_in_a_table() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(result([Answer(1.0, 1.1, 502, "drill")], ERRORS, 10, VERDICT, decided=2.6)))
    text = console.export_text()
    assert "rolled back by itself" in text
    assert "1.50 s" in text
    assert "AnalysisFailed: all bad" in text
