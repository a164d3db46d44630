"""`tuneyard cost` over a folder of records and the example's prices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.unit.cli.test_report import Balanced
from tests.unit.planning.test_hostedcost import hosted, million
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


def test_hosted_and_own(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dt=2026-11-20" / "gw-1-x-0-0.jsonl").write_bytes(
        hosted(11, deployment="models/support", **million(20, 10, 2)).line()
        + hosted(12, None, revision="free", **million(1)).line()
    )
    assert run(["cost", str(folder), "--prices", str(EXAMPLE), "--by", "deployment"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Cost by deployment from 2026-11-01T00:00:00Z to 2026-12-01T00:00:00Z",
        "",
        "DEPLOYMENT         USD     OWN  HOSTED      TOKENS  USD PER 1M TOKENS",
        "models/support  708.80  662.80   46.00  82,000,018               8.64",
        "total           708.80  662.80   46.00  82,000,018               8.64",
        "",
        "Pools",
        "  POOL               USD      TOKENS  USD PER 1M TOKENS",
        "  models/smollm2  662.80  60,000,018              11.05",
        "",
        "Hosted",
        "  API            USD      TOKENS  USD PER 1M TOKENS",
        "  api.example  46.00  22,000,000               2.09",
        "",
        "Hosted and own",
        "             USD  SHARE      TOKENS  SHARE  USD PER 1M TOKENS",
        "  hosted   46.00     6%  22,000,000    27%               2.09",
        "  own     662.80    94%  60,000,018    73%              11.05",
        "  total   708.80   100%  82,000,018   100%               8.64",
        "",
        "3 fine-tunes with a pool each: 1,728.00 USD; shared pools saved 1,065.20 (62%)",
        "",
        "The same tokens at an API's prices",
        "  API                   USD  BREAK-EVEN TOKENS PER HOUR  NOW",
        "  a hosted fine-tune  18.00                   3,068,516   3%",
        "",
        "in no sum, for want of their hours: models/unknown",
        "",
        "in no sum, for want of a price in USD: models/a free",
    ]
    page = tmp_path / "cost.html"
    assert run(["cost", str(folder), "--prices", str(EXAMPLE), "--html", str(page)]) == 0
    text, look = page.read_text(), Balanced()
    look.feed(text)
    assert (look.open, look.wrong) == ([], [])
    told = "api.example", '<td class="n">46.00</td>', "for want of a price in USD: models/a free"
    assert all(words in text for words in told)
    # 662.80 in 720 hours: what is hosted is no part of the pools' line
    assert [line for line in re.findall(r'text-anchor="end">([\d.]+)</text>', text) if line == "0.92"] == ["0.92"]


def test_everything_hosted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dt=2026-11-05").mkdir()
    (tmp_path / "dt=2026-11-05" / "gw-0-x-0-0.jsonl").write_bytes(hosted(1, **million(2)).line())
    (tmp_path / "prices.yaml").write_text("period: {since: 2026-11-01, until: 2026-12-01}\n")
    given = ["cost", str(tmp_path), "--prices", str(tmp_path / "prices.yaml")]
    assert run(given) == 0
    text = capsys.readouterr().out
    assert "Pools" not in text
    assert "total       4.00  0.00    4.00  2,000,000               2.00" in text.splitlines()
    assert run([*given, "--html", str(tmp_path / "cost.html")]) == 0
    assert "Pools" not in (tmp_path / "cost.html").read_text()


def test_for_programs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cost", str(folder), "--prices", str(EXAMPLE), "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["total"]["cost"] == pytest.approx(720 * 0.80 + 310 * 0.28)
    assert told["unpriced"] == ["models/unknown"]


def test_a_page_with_the_break_even_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    apis = "  - {name: <b>dear</b>, prompt: 30, completion: 120}\n"
    prices.write_text(EXAMPLE.read_text().replace("apis:\n", f"apis:\n{apis}"))
    page = tmp_path / "cost.html"
    assert run(["cost", str(folder), "--prices", str(prices), "--by", "adapter", "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    look = Balanced()
    look.feed(text)
    assert (look.open, look.wrong) == ([], [])
    assert "<b>dear" not in text and "&lt;b&gt;dear" in text
    assert "now: 83.3k" in text
    evens = dict(re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', text))
    (pools,) = re.findall(r'<line x1="70.0" y1="([\d.]+)" x2="900.0" y2="([\d.]+)" stroke="#2563b0"', text)
    assert len(evens) == 2 and {*evens.values(), *pools} == {pools[0]}, "where an API's line meets the pools'"
    assert all(70 < float(cx) <= 900 for cx in evens)
    assert "3,068,516" in text and "a0@sha256:aaaaaaaaaaaa" in text and "models/unknown" in text


def test_a_page_without_anything_to_compare(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text(EXAMPLE.read_text().partition("apis:")[0])
    assert run(["cost", str(folder), "--prices", str(prices), "--html", str(tmp_path / "cost.html")]) == 0
    assert "<svg" not in (tmp_path / "cost.html").read_text()
    capsys.readouterr()
    assert run(["cost", str(folder), "--prices", str(prices), "--html", str(tmp_path / "no" / "cost.html")]) == 1
    assert "cost.html cannot be written: No such file" in capsys.readouterr().err


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
