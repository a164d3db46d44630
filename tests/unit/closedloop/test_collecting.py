"""Feedback and the application's log become one; on the real S3 server in tests/contract/test_feedback_export.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from closedloop.__main__ import main
from closedloop.collecting import feedback_lines, joined
from closedloop.files import StepError, as_lines, read_lines
from tuneyard.api.feedback import FeedbackRecord

SAMPLE = Path(__file__).parents[3] / "examples" / "closed-loop" / "sample"


def feedback(request: str, minute: int = 0, score: float = -1, deployment: str = "ns/m", **more: Any) -> dict[str, Any]:
    time = f"2026-11-20T10:{minute:02}:00Z"
    return {"time": time, "requestId": request, "deployment": deployment, "score": score, "revision": "v1", **more}


def conversation(request: str, **more: Any) -> dict[str, Any]:
    return {"requestId": request, "messages": [{"role": "user", "content": "?"}], "answer": "!", **more}


def test_joined_by_request_id() -> None:
    found, counts = joined(
        [feedback("b", 2, text="no"), feedback("a", 1), feedback("gone"), feedback("x", deployment="ns/other")],
        [conversation("a"), conversation("b", correction="yes"), conversation("never-asked")],
        "ns/m",
    )
    assert [(f["requestId"], f["text"], f["correction"], f["answer"]) for f in found] == [
        ("a", None, None, "!"),
        ("b", "no", "yes", "!"),
    ]
    assert counts == {"feedback": 3, "ofOtherDeployments": 1, "notInTheLog": 1, "collected": 2}


def test_the_last_feedback_of_an_answer_counts() -> None:
    found, _ = joined([feedback("a", 5, score=1), feedback("a", 1, score=-1)], [conversation("a")], "ns/m")
    assert [f["score"] for f in found] == [1]


def test_what_is_not_feedback_is_refused() -> None:
    with pytest.raises(StepError, match="lacks deployment, score"):
        joined([{"time": "x", "requestId": "a"}], [], "ns/m")


def test_a_folder_from_a_day_on(tmp_path: Path) -> None:
    for day in ("2026-11-19", "2026-11-20"):
        (tmp_path / f"dt={day}").mkdir()
        (tmp_path / f"dt={day}" / "gw-1.jsonl").write_bytes(as_lines([{"day": day}]))
    (tmp_path / "notes.txt").write_text("not feedback")
    assert [r["day"] for r in feedback_lines(str(tmp_path))] == ["2026-11-19", "2026-11-20"]
    assert [r["day"] for r in feedback_lines(str(tmp_path), since="2026-11-20")] == ["2026-11-20"]
    with pytest.raises(StepError, match="is no folder"):
        feedback_lines(str(tmp_path / "nowhere"))


def test_lines_end_where_lines_end(tmp_path: Path) -> None:
    """Not at what else Unicode calls a line's end: users write that."""
    record = FeedbackRecord(
        time="2026-11-20T10:00:00Z",
        request_id="a",
        model="m",
        deployment="ns/m",
        revision="v1",
        score=-1,
        text="a\u2028b",
    )
    (tmp_path / "a.jsonl").write_bytes(record.line() + record.line())
    assert [r["text"] for r in read_lines(tmp_path / "a.jsonl")] == ["a\u2028b"] * 2
    (tmp_path / "b.jsonl").write_bytes(record.line() + b"{\n")
    with pytest.raises(StepError, match=r"b\.jsonl, line 2: not JSON"):
        read_lines(tmp_path / "b.jsonl")


def test_the_samples_feedback_is_what_is_exported() -> None:
    records = feedback_lines(str(SAMPLE / "feedback"))
    assert len(records) == 39
    for record in records:
        assert FeedbackRecord.from_dict(record).to_dict() == record


def test_collect_and_select_on_the_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, log = tmp_path / "run", str(SAMPLE / "conversations.jsonl")
    collect = ["collect", str(run), "--feedback", str(SAMPLE / "feedback"), "--log", log]
    assert main([*collect, "--deployment", "models/acme-support"]) == 0
    assert main(["select", str(run), "--previous", str(SAMPLE / "previous.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "collect: feedback 38, ofOtherDeployments 1, notInTheLog 1, collected 37",
        "select: badAnswers 33, withoutCorrection 1, notUsable 0, askedTwice 0, corrections 32, heldOut 8, "
        "fromPrevious 15, train 39",
    ]
    assert main(["select", str(run), "--least", "33"]) == 3
    assert main([*collect, "--deployment", "models/nobody"]) == 0
    assert main(["select", str(run)]) == 3
    assert main(["select", str(tmp_path / "nowhere")]) == 1
    assert "collected.jsonl cannot be read" in capsys.readouterr().err
