from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tuneyard.api.feedback import FeedbackRecord

RECORD: dict[str, Any] = {
    "time": "2026-11-20T10:00:00Z",
    "requestId": "r-1",
    "model": "acme-support",
    "deployment": "models/acme-support",
    "revision": "v2",
    "score": -1,
}


def test_a_record_is_one_line_of_camel_case() -> None:
    told = {**RECORD, "adapter": "acme-v2", "adapterDigest": f"sha256:{'0' * 64}", "text": "no,\nopen “Plan” \u2028"}
    line = FeedbackRecord.from_dict(told).line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert json.loads(line) == told


def test_what_is_not_known_is_left_out() -> None:
    assert json.loads(FeedbackRecord.from_dict(RECORD).line()) == RECORD


def test_what_a_user_wrote_is_in_no_representation() -> None:
    assert "my secret" not in repr(FeedbackRecord.from_dict({**RECORD, "text": "my secret"}))


@pytest.mark.parametrize("text", ["a" * 4096, "é" * 2048, "", None])
def test_up_to_four_kibibytes_of_text(text: str | None) -> None:
    assert FeedbackRecord.from_dict({**RECORD, "text": text}).text == text


@pytest.mark.parametrize(
    "change",
    [
        {"text": "a" * 4097},
        {"text": "é" * 2049},
        {"text": "\ud800"},
        {"score": 1.01},
        {"score": -1.01},
        {"score": float("nan")},
        {"requestId": ""},
        {"time": "2026-11-20"},
        {"time": "2026-11-20T10:00:00+01:00"},
    ],
)
def test_what_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FeedbackRecord.from_dict({**RECORD, **change})
