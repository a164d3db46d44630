"""Lines of Envoy's, the files they stand in, and what survives the end of the process that counts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tuneyard.api.external import ExternalPricing
from tuneyard.api.usage import Outcome, UsageRecord
from tuneyard.gateway import requestfiles, usage
from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.requestfiles import Piece, Place, RequestFiles
from tuneyard.gateway.usage import STATE, Usage, UsageMetrics, records_of
from tuneyard.systems.envoy.external import price_of, price_text
from tuneyard.systems.envoy.requestlog import SEPARATOR, Line, line_of, text_of
from tuneyard.systems.envoy.usage import usage_record

TOLD = Line(**dict.fromkeys(Line._fields, ""))._replace(
    time="2026-11-20T10:00:00.000Z",
    request_id="r1",
    attempt="1",
    model="support",
    path="/v1/chat/completions",
    route="weights",
    cluster="models/support/v1/c1",
    host="10.0.0.1:8000",
    status="200",
    flags="-",
    received="400",
    prompt="7",
    cached="2",
    completion="5",
    whole="true",
)


def told(**change: Any) -> Line:
    """A line that says something else in these fields, None: nothing."""
    return TOLD._replace(**{key: "" if value is None else str(value) for key, value in change.items()})


def line(**change: Any) -> bytes:
    return text_of(told(**change))


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
        # a deadline has no flag
        (
            {"details": "max_duration_timeout", "whole": None, "prompt": None, "completion": None, "chunks": 4},
            Outcome.FAILED,
            (100, 2, 4),
            True,
        ),
        (
            {"details": "max_duration_timeout", "status": 504, "whole": None, "completion": None},
            Outcome.FAILED,
            (0, 0, 0),
            False,
        ),
        ({"failed": True}, Outcome.FAILED, (7, 2, 5), False),
        ({"status": 404, "whole": None}, Outcome.REFUSED, (0, 0, 0), False),
        ({"status": 503, "flags": "UF", "whole": None}, Outcome.FAILED, (0, 0, 0), False),
        # an engine that tells no usage has worked all the same
        ({"whole": None, "prompt": None, "completion": None, "sent": 800}, Outcome.OK, (100, 2, 200), True),
        ({"whole": None, "prompt": None, "completion": None, "sent": 800, "chunks": 6}, Outcome.OK, (100, 2, 6), True),
        (
            {"whole": None, "prompt": None, "completion": None, "sent": 800, "path": "/v1/embeddings"},
            Outcome.OK,
            (100, 2, 0),
            True,
        ),
    ],
)
def test_what_is_the_engines_number_and_what_an_estimate(
    change: dict[str, Any], outcome: Outcome, tokens: tuple[int, int, int], estimated: bool
) -> None:
    record = usage_record(told(**change), "gw")
    assert record is not None
    assert record.outcome is outcome
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == tokens
    assert record.estimated is estimated


def test_whose_request_it_was() -> None:
    record = usage_record(told(cluster="models/a~b/v1~1/c1", tenant="acme", route="gate/v1", attempt=2), "gw-0")
    assert record is not None
    found = (record.deployment, record.revision, record.contents, record.tenant, record.gate, record.attempt)
    assert found == ("models/a.b", "v1.1", "c1", "acme", False, 2)


def test_what_an_api_served_and_at_which_price() -> None:
    said = {"external": "api.example:8443", "out": "acme chat /v1/embeddings", "path": "/v1/embeddings", "pool": None}
    record = usage_record(told(**said, price="0.15 0.075 0.6 EUR"), "gw")
    assert record is not None and record.price is not None
    assert (record.external, record.pool, record.tenant, record.model) == ("api.example:8443", None, "acme", "chat")
    assert record.price.to_dict() == {
        "inputPerMillion": 0.15, "cachedInputPerMillion": 0.075, "outputPerMillion": 0.6, "currency": "EUR",
    }  # fmt: skip
    assert UsageRecord.model_validate_json(record.line()) == record
    unpriced = usage_record(told(**said), "gw")
    assert unpriced is not None and unpriced.price is None


@pytest.mark.parametrize(
    "price",
    [
        {"inputPerMillion": 0, "outputPerMillion": 1e-7},
        {"inputPerMillion": 1_000_000, "cachedInputPerMillion": 0.1 + 0.2, "outputPerMillion": 2, "currency": "CHF"},
    ],
)
def test_prices_are_read_as_they_were_written(price: dict[str, Any]) -> None:
    pricing = ExternalPricing.from_dict(price)
    assert price_of(price_text(pricing)) == pricing


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
    record = usage_record(told(tenant=tenant, route=route), "gw", "id")
    assert record is not None
    assert record.gate is gate


@pytest.mark.parametrize(
    "change",
    [
        {"cluster": None},
        {"cluster": "nowhere"},
        {"path": "/v1/models"},
        # a route was chosen, and nobody asked: refused, spoiled by a rehearsal, or gone while it was held
        {"attempt": None, "status": 400, "whole": None},
        {"attempt": 0, "status": 502, "whole": None},
        {"attempt": 0, "status": 0, "flags": "DC", "whole": None},
    ],
)
def test_requests_to_no_engine_are_no_usage(change: dict[str, Any]) -> None:
    assert usage_record(told(**change), "gw") is None


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{}", line()[1:], line() + SEPARATOR.encode(), line(time="yesterday"), line(prompt="many")),
        *(line(price="1 2"), line(attempt="x"), line(status="OK"), line(tenant=SEPARATOR)),
    ],
)
def test_what_is_no_line_is_an_error_of_value(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        usage_record(line_of(text), "gw")


def test_lines_are_read_as_they_were_written() -> None:
    assert line_of(line(model="a b")) == told(model="a b")
    assert line_of(line().replace(b"r1", b"r\xff")).request_id == "r\ufffd", "a client may send any byte"


@pytest.mark.parametrize("half", [line()[:1], line()[:40], line()[:-1]])
def test_half_a_line_of_a_killed_envoy_costs_no_other(half: bytes) -> None:
    found, broken = records_of([line(), half + line(request_id="r2"), half], "gw", Place(3, 7), "run")
    assert [r.request_id for r in found] == ["r1", "r2"]
    assert [r.id for r in found] == ["run-3-7", f"run-3-{7 + len(line()) + 1}"]
    assert broken == 2


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_place_is_the_same_before_and_after_a_rename(tmp_path: Path) -> None:
    files = RequestFiles(tmp_path)
    assert files.read(Place(), 100) == Piece(Place(), [], Place())
    files.current.write_bytes(b"one\ntwo\nhal")
    first = files.read(Place(), 4)
    assert (first.lines, first.end) == ([b"one"], Place(0, 4))
    files.rotate()
    assert not files.reopened()
    second = files.read(first.end, 100)
    assert (second.lines, second.end) == ([b"two"], Place(0, 8))
    assert files.read(second.end, 100).end == second.end, "Envoy may write the rest yet"
    with (tmp_path / "requests.0.log").open("ab") as old:
        old.write(b"f\n")
    third = files.read(second.end, 100)
    assert third.lines == [b"half"]
    files.current.write_bytes(b"three\n")
    assert files.reopened()
    assert files.read(third.end, 100).end == Place(1, 0)
    assert files.read(Place(1, 0), 100).lines == [b"three"]


def test_half_a_line_of_a_killed_envoy_is_skipped(tmp_path: Path) -> None:
    files = RequestFiles(tmp_path)
    files.current.write_bytes(b"one\nhal")
    files.rotate()
    files.current.write_bytes(b"")
    assert files.read(Place(0, 4), 100) == Piece(Place(0, 4), [], Place(1, 0), broken=3)


def test_numbers_go_on_when_files_are_gone(tmp_path: Path) -> None:
    files = RequestFiles(tmp_path)
    for text in (b"a\n", b"b\n", b"c\n"):
        files.current.write_bytes(text)
        files.rotate()
    assert list(files.rotated()) == [0, 1, 2]
    assert files.over(4) == [0]
    files.remove_before(Place(2))
    assert files.read(Place(0, 0), 100) == Piece(Place(0, 0), [], Place(2, 0), lost=2)
    files.know(Place(3, 0))
    files.remove_before(Place(3))
    assert list(files.rotated()) == [2], "Envoy has not opened the name anew"
    files.current.write_bytes(b"d\n")
    files.remove_before(Place(3))
    assert files.newest() == 3
    assert files.read(Place(3, 0), 100).lines == [b"d"]
    files.rotate()
    assert list(files.rotated()) == [3]


def test_a_file_that_is_dropped_gives_its_room_back_and_keeps_its_number(tmp_path: Path) -> None:
    """Also where Envoy writes into it yet, and where it is the only one."""
    files = RequestFiles(tmp_path)
    with files.current.open("ab", buffering=0) as envoy:
        envoy.write(b"a\nb\n")
        files.rotate()
        assert files.drop(0, Place(0, 2)) == 2, "bytes that were not read"
        assert not files.rotated()
        assert not files.reopened(), "Envoy has to be asked yet"
        assert files.newest() == 1
        envoy.write(b"c\n")
        files.remove_before(Place(1))
        assert not files.reopened()
    assert files.read(Place(0, 2), 100) == Piece(Place(0, 2), [], Place(1, 0), lost=1)
    files.current.write_bytes(b"d\n")
    assert RequestFiles(tmp_path).newest() == 1, "for the next process too"
    assert files.read(Place(1, 0), 100).lines == [b"d"]
    assert files.after(Place(0, 2)) == files.after(Place(1, 0)) == 2
    files.know(Place(1))
    files.remove_before(Place(1))
    assert [path.name for path in tmp_path.iterdir()] == ["requests.log"]
    assert files.newest() == 1


# -- counting ------------------------------------------------------------------------------------------------------


class Envoys:
    """Opens its log anew when it is asked to."""

    def __init__(self, files: RequestFiles) -> None:
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
    files, registry = RequestFiles(folder), CollectorRegistry()
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
        patched.setattr(KeptState, "write", full)
        with pytest.raises(OSError, match="No space"):
            await first.count()
    assert number(first.page(), usage.REQUESTS) == 0
    await first.count()
    assert number(first.page(), usage.REQUESTS) == 1


async def test_unreadable_lines_and_sums_are_told_and_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "usage.0.json").write_text("{}")
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


async def test_a_full_volume_stops_counting_for_a_while_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Files are renamed and go, uncounted where there is no other way; then it counts again."""
    first, envoy, registry = counting(tmp_path)
    size = len(line()) + 1
    monkeypatch.setattr(requestfiles, "ROTATE_BYTES", 10 * size)
    monkeypatch.setattr(usage, "MOST_BYTES", 35 * size)
    room = 40

    def write(self: KeptState, value: object) -> None:
        if first.files.after(Place()) > room * size:
            raise OSError(28, "No space left on device")
        kept(self, value)

    kept = KeptState.write
    monkeypatch.setattr(KeptState, "write", write)

    async def turns(count: int) -> None:
        for _ in range(count):
            with first.files.current.open("ab") as log:
                log.write((line() + b"\n") * 10)
            await first.turn()

    await turns(3)
    assert number(first.page(), usage.REQUESTS) == 30
    room = 5
    await turns(1)
    assert (registry.get_sample_value("tuneyard_gateway_usage_stopped_seconds") or 0) > 0
    await turns(19)
    assert first.files.after(Place()) <= 45 * size, "and Envoy finds room"
    lost = registry.get_sample_value("tuneyard_gateway_usage_uncounted_files_total")
    assert lost is not None and lost > 0
    room = 1000
    await first.turn()
    assert number(first.page(), usage.REQUESTS) == (23 - lost) * 10
    assert registry.get_sample_value("tuneyard_gateway_usage_uncounted_files_total") == lost, "each once"
    assert registry.get_sample_value("tuneyard_gateway_usage_stopped_seconds") == 0
    assert envoy.asked >= 20
    await first.turn()
    assert (first.files.rotated(), first.files.newest()) == ({}, 23)
    assert caplog.text.count("No space left") == 1, "told once"


@pytest.mark.lasting
async def test_what_grew_while_nobody_was_there_is_counted_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, registry = counting(tmp_path)
    monkeypatch.setattr(usage, "MOST_BYTES", 1000)
    first.files.current.write_bytes((line() + b"\n") * 40_000)
    sizes = []
    for _ in range(5):
        await first.turn()
        sizes.append(first.files.after(Place()))
    assert sizes[-1] == 0
    assert number(first.page(), usage.REQUESTS) == 40_000
    assert registry.get_sample_value("tuneyard_gateway_usage_uncounted_files_total") == 0


async def test_an_end_without_room_is_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, _, _ = counting(tmp_path)
    first.files.current.write_bytes(line() + b"\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KeptState, "write", full)
    await first.close()
    assert "not everything was counted" in caplog.text


async def test_answers_without_usage_are_told(tmp_path: Path) -> None:
    first, _, registry = counting(tmp_path)
    untold: dict[str, Any] = {"whole": None, "prompt": None, "completion": None}
    first.files.current.write_bytes(line() + b"\n" + line(**untold) + b"\n" + line(flags="DC", **untold) + b"\n")
    await first.count()
    assert registry.get_sample_value("tuneyard_gateway_usage_untold_total") == 1
    assert 'source="estimate"} 2' in first.page()


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
