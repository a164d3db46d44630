"""Lines of Envoy's, the files they stand in, and what survives the end of the process that counts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tuneyard.api.usage import Outcome
from tuneyard.gateway import usage
from tuneyard.gateway.usage import STATE, Usage, UsageMetrics
from tuneyard.gateway.usagefiles import Piece, Place, UsageFiles
from tuneyard.systems.envoy.usage import USAGE_FORMAT, usage_record

TOLD: dict[str, Any] = dict.fromkeys(USAGE_FORMAT) | {
    "time": "2026-11-20T10:00:00.000Z",
    "id": "r1",
    "attempt": 1,
    "model": "support",
    "path": "/v1/chat/completions",
    "route": "weights",
    "cluster": "models/support/v1/c1",
    "status": 200,
    "flags": "-",
    "bytes": 400,
    "prompt": 7,
    "cached": 2,
    "completion": 5,
    "whole": True,
}


def line(**change: Any) -> bytes:
    return json.dumps({**TOLD, **change}).encode()


@pytest.mark.parametrize(
    ("change", "outcome", "tokens", "estimated"),
    [
        ({}, Outcome.OK, (7, 2, 5), False),
        ({"chunks": 4}, Outcome.OK, (7, 2, 5), False),
        ({"flags": "DC"}, Outcome.LEFT, (7, 2, 5), False),  # after the engine has said everything
        (
            {"flags": "DC", "whole": None, "prompt": None, "completion": None, "chunks": 4},
            Outcome.LEFT,
            (100, 2, 4),
            True,
        ),
        ({"flags": "DC", "whole": None, "prompt": 9, "completion": 6, "chunks": 4}, Outcome.LEFT, (9, 2, 6), True),
        (
            {"flags": "DC", "status": 0, "whole": None, "prompt": None, "completion": None},
            Outcome.LEFT,
            (100, 2, 0),
            True,
        ),
        ({"flags": "UC", "whole": None, "prompt": None, "chunks": 3}, Outcome.FAILED, (100, 2, 5), True),
        ({"failed": True}, Outcome.FAILED, (7, 2, 5), False),
        ({"status": 404, "whole": None}, Outcome.REFUSED, (0, 0, 0), False),
        ({"status": 503, "flags": "UF", "whole": None}, Outcome.FAILED, (0, 0, 0), False),
    ],
)
def test_what_is_the_engines_number_and_what_an_estimate(
    change: dict[str, Any], outcome: Outcome, tokens: tuple[int, int, int], estimated: bool
) -> None:
    record = usage_record(line(**change), "gw")
    assert record is not None
    assert record.outcome is outcome
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == tokens
    assert record.estimated is estimated


def test_whose_request_it_was() -> None:
    record = usage_record(line(cluster="models/a~b/v1~1/c1", tenant="acme", route="gate/v1", attempt=None), "gw-0")
    assert record is not None
    told = (record.deployment, record.revision, record.contents, record.tenant, record.gate, record.attempt)
    assert told == ("models/a.b", "v1.1", "c1", "acme", False, 0)


@pytest.mark.parametrize(
    ("tenant", "route", "gate"),
    [
        (None, "gate/v1", True),
        ("tuneyard/gate", "gate/v1", True),
        ("acme", "gate/v1", False),
        (None, "weights", False),
        ("acme", "revision/v1", False),
    ],
)
def test_what_is_billed_to_nobody(tenant: str | None, route: str, gate: bool) -> None:
    record = usage_record(line(tenant=tenant, route=route), "gw")
    assert record is not None
    assert record.gate is gate


@pytest.mark.parametrize("change", [{"cluster": None}, {"cluster": "nowhere"}, {"path": "/v1/models"}])
def test_requests_to_no_engine_are_no_usage(change: dict[str, Any]) -> None:
    assert usage_record(line(**change), "gw") is None


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}x", line(time="yesterday"), line(prompt="many")])
def test_what_is_no_line_is_an_error_of_value(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        usage_record(text, "gw")


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_place_is_the_same_before_and_after_a_rename(tmp_path: Path) -> None:
    files = UsageFiles(tmp_path)
    assert files.read(Place(), 100) == Piece(Place(), [], Place())
    files.current.write_bytes(b"one\ntwo\nhal")
    first = files.read(Place(), 4)
    assert (first.lines, first.end) == ([b"one"], Place(0, 4))
    files.rotate()
    assert not files.reopened()
    second = files.read(first.end, 100)
    assert (second.lines, second.end) == ([b"two"], Place(0, 8))
    assert files.read(second.end, 100).end == second.end, "Envoy may write the rest yet"
    with (tmp_path / "usage.0.log").open("ab") as old:
        old.write(b"f\n")
    third = files.read(second.end, 100)
    assert third.lines == [b"half"]
    files.current.write_bytes(b"three\n")
    assert files.reopened()
    assert files.read(third.end, 100).end == Place(1, 0)
    assert files.read(Place(1, 0), 100).lines == [b"three"]


def test_half_a_line_of_a_killed_envoy_is_skipped(tmp_path: Path) -> None:
    files = UsageFiles(tmp_path)
    files.current.write_bytes(b"one\nhal")
    files.rotate()
    files.current.write_bytes(b"")
    assert files.read(Place(0, 4), 100) == Piece(Place(0, 4), [], Place(1, 0), broken=3)


def test_numbers_go_on_when_files_are_gone(tmp_path: Path) -> None:
    files = UsageFiles(tmp_path)
    for text in (b"a\n", b"b\n", b"c\n"):
        files.current.write_bytes(text)
        files.rotate()
    assert list(files.rotated()) == [0, 1, 2]
    assert files.over(4) == [0]
    files.remove_before(Place(2))
    assert files.read(Place(0, 0), 100) == Piece(Place(0, 0), [], Place(2, 0), lost=2)
    files.know(Place(3, 0))
    files.remove_before(Place(3))
    files.current.write_bytes(b"d\n")
    assert files.newest() == 3
    assert files.read(Place(3, 0), 100).lines == [b"d"]
    files.rotate()
    assert list(files.rotated()) == [3]


# -- counting ------------------------------------------------------------------------------------------------------


class Envoys:
    """Opens its log anew when it is asked to."""

    def __init__(self, files: UsageFiles) -> None:
        self._files = files
        self.asked = 0
        self.keeps_back = b""

    async def reopen(self) -> bool:
        self.asked += 1
        with self._files.current.open("ab") as log:
            log.write(self.keeps_back)
        self.keeps_back = b""
        return True


def counting(folder: Path) -> tuple[Usage, Envoys, CollectorRegistry]:
    files, registry = UsageFiles(folder), CollectorRegistry()
    envoy = Envoys(files)
    return Usage("gw", files, folder / STATE, envoy.reopen, UsageMetrics(registry)), envoy, registry


def number(page: str, name: str) -> int:
    return sum(int(told.rsplit(" ", 1)[1]) for told in page.splitlines() if told.startswith(name + "{"))


async def test_a_process_goes_on_where_the_one_before_stood(tmp_path: Path) -> None:
    first, _, _ = counting(tmp_path)
    first.files.current.write_bytes(line() + b"\n" + line(tenant="acme") + b"\n" + line()[:9])
    await first.count()
    with first.files.current.open("ab") as log:
        log.write(line()[9:] + b"\n")
    second, _, _ = counting(tmp_path)
    assert second.page() == first.page()
    await second.count()
    await second.count()
    assert number(second.page(), usage.REQUESTS) == 3
    assert number(second.page(), usage.TOKENS) == 3 * (7 + 2 + 5)


async def test_what_was_not_kept_is_shown_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _, _ = counting(tmp_path)
    first.files.current.write_bytes(line() + b"\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(usage, "replace", full)
        with pytest.raises(OSError, match="No space"):
            await first.count()
    assert number(first.page(), usage.REQUESTS) == 0
    await first.count()
    assert number(first.page(), usage.REQUESTS) == 1


async def test_unreadable_lines_and_sums_are_told_and_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / STATE).write_text("{}")
    first, _, registry = counting(tmp_path)
    first.files.current.write_bytes(b"not a line\n" + line() + b"\n")
    await first.count()
    assert number(first.page(), usage.REQUESTS) == 1
    assert registry.get_sample_value("tuneyard_gateway_usage_unreadable_total") == 1
    assert "begin anew" in caplog.text
    assert "not a line" not in caplog.text


async def test_the_end_has_what_envoy_kept_back(tmp_path: Path) -> None:
    first, envoy, _ = counting(tmp_path)
    first.files.current.write_bytes(line() + b"\n")
    envoy.keeps_back = line() + b"\n"
    await first.close()
    assert number(first.page(), usage.REQUESTS) == 2
    assert envoy.asked == 2


async def test_labels_are_those_of_the_record(tmp_path: Path) -> None:
    first, _, _ = counting(tmp_path)
    first.files.current.write_bytes(line(tenant="acme", adapter="a", adapter_digest="sha256:" + "a" * 64) + b"\n")
    await first.count()
    (told,) = [t for t in first.page().splitlines() if t.startswith(usage.REQUESTS + "{")]
    assert told == (
        'tuneyard_usage_requests_total{tenant="acme",namespace="models",deployment="support",revision="v1",contents="c1",'
        f'adapter="a",adapter_digest="sha256:{"a" * 64}",base="",base_digest="",endpoint="chat",gate="false",'
        'source="engine"} 1'
    )
