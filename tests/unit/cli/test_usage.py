"""`tuneyard usage` over a folder of records."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.planning.test_usage import record
from tuneyard.cli.errors import UserError
from tuneyard.cli.main import run
from tuneyard.cli.usage import since_of

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for day, number in (("2026-11-19", 1), ("2026-11-20", 2)):
        place = tmp_path / f"dt={day}"
        place.mkdir()
        lines = [record(requestId=f"{day}-{n}", time=f"{day}T10:00:00.5Z").line() for n in range(number)]
        (place / "gw-0-x-0-0.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "dt=2026-11-20" / "notes.txt").write_text("something else")
    return tmp_path


def test_a_table_with_a_total(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Usage by deployment",
        "",
        "DEPLOYMENT      REQUESTS  PROMPT  CACHED  COMPLETION",
        "models/support         3      33      12           9",
        "total                  3      33      12           9",
    ]


def test_estimates_stand_beside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = record(requestId="left", estimated=True, promptTokens=1000, completionTokens=2, outcome="left")
    (folder / "dt=2026-11-20" / "more.jsonl").write_bytes(left.line())
    assert run(["usage", str(folder), "--since", "2026-11-20", "--by", "tenant"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Usage by tenant since 2026-11-20T00:00:00Z",
        "",
        "TENANT  REQUESTS  PROMPT  CACHED  COMPLETION  NOT FINISHED (ESTIMATES)",
        "acme           2      22       8           6  1: 1,000 + 2",
        "total          2      22       8           6  1: 1,000 + 2",
    ]


def test_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", str(folder), "-o", "json", "--since", "2026-11-21"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["rows"], told["total"]["requests"], told["since"]) == ([], 0, "2026-11-21T00:00:00Z")
    assert run(["usage", str(folder), "--since", "2026-11-21"]) == 0
    assert "no records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("24h", "2026-11-19T12:00:00Z"),
        ("7d", "2026-11-13T12:00:00Z"),
        ("2026-11-01", "2026-11-01T00:00:00Z"),
        ("2026-11-01T10:00:00+02:00", "2026-11-01T08:00:00Z"),
    ],
)
def test_since(text: str, since: str) -> None:
    assert since_of(text, NOW) == since


def test_what_cannot_be_read_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--since soon is no time"):
        since_of("soon", NOW)
    assert run(["usage", str(folder / "nowhere")]) == 1
    assert "is no folder" in capsys.readouterr().err
    (folder / "dt=2026-11-20" / "more.jsonl").write_text('{"time": "2026-11-20T10:00:00Z"}\n')
    assert run(["usage", str(folder)]) == 1
    assert "more.jsonl holds no record of usage: id: Field required" in capsys.readouterr().err
