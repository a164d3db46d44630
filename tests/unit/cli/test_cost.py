"""`tuneyard cost` over a folder of records and the example's prices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.planning.test_usage import record
from tuneyard.cli.main import run

EXAMPLE = Path(__file__).parents[3] / "examples" / "usage" / "prices.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "dt=2026-11-20"
    place.mkdir()
    lines = [
        record(requestId=str(n), pool="smollm2", adapter=f"a{n % 3}", promptTokens=10_000_000, cachedTokens=0).line()
        for n in range(6)
    ]
    lines.append(record(requestId="other", pool="unknown").line())
    (place / "gw-0-x-0-0.jsonl").write_bytes(b"".join(lines))
    return tmp_path


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", str(folder), "--prices", str(EXAMPLE), "--by", "adapter"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Cost by adapter from 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z",
        "",
        "ADAPTER                    USD      TOKENS  USD PER 1M TOKENS",
        "a0@sha256:aaaaaaaaaaaa  220.93  20,000,006              11.05",
        "a1@sha256:aaaaaaaaaaaa  220.93  20,000,006              11.05",
        "a2@sha256:aaaaaaaaaaaa  220.93  20,000,006              11.05",
        "total                   662.80  60,000,018              11.05",
        "",
        "Pools",
        "  POOL               USD      TOKENS  USD PER 1M TOKENS",
        "  models/smollm2  662.80  60,000,018              11.05",
        "",
        "3 fine-tunes with a pool each: 1,728.00 USD; shared pools saved 1,065.20 (62%)",
        "",
        "The same tokens at an API's prices",
        "  API                   USD  BREAK-EVEN TOKENS PER HOUR  NOW",
        "  a hosted fine-tune  18.00                   3,068,516   3%",
        "",
        "in no sum, for want of their hours: models/unknown",
    ]


def test_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", str(folder), "--prices", str(EXAMPLE), "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["total"]["cost"] == pytest.approx(720 * 0.80 + 310 * 0.28)
    assert told["unpriced"] == ["models/unknown"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is no YAML"),
        ("[]", "the file: Input should be"),
        ("nodes: {l4: 1}", "period: Field required"),
    ],
)
def test_prices_that_cannot_be_read(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    path = folder / "prices.yaml"
    if text is not None:
        path.write_text(text)
    assert run(["cost", str(folder), "--prices", str(path)]) == 1
    assert said in capsys.readouterr().err
