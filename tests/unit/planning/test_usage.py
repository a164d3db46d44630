"""Sums of tokens: what is added where, what bounds them, and that they come back as they were written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneyard.api.usage import UsageRecord
from tuneyard.planning.usage import IDLE_SECONDS, LOOK_SECONDS, Tokens, UsageSums, key_of, tokens_of
from tuneyard.planning.usagereport import UsageRow, usage_view

RECORD: dict[str, Any] = {
    "id": "r1",
    "time": "2026-11-20T10:00:00.123Z",
    "requestId": "r1",
    "attempt": 1,
    "gateway": "gw-0",
    "tenant": "acme",
    "model": "support",
    "deployment": "models/support",
    "revision": "v1",
    "contents": "c1",
    "pool": "llama",
    "adapter": "support-v1",
    "adapterDigest": "sha256:" + "a" * 64,
    "base": "llama",
    "baseDigest": "sha256:" + "b" * 64,
    "endpoint": "chat",
    "gate": False,
    "status": 200,
    "outcome": "ok",
    "promptTokens": 11,
    "cachedTokens": 4,
    "completionTokens": 3,
    "estimated": False,
}


def record(**change: Any) -> UsageRecord:
    """Another one where the request's id is another, unless `id` says something else."""
    return UsageRecord.from_dict({**RECORD, "id": change.get("requestId", RECORD["id"]), **change})


def added(sums: UsageSums, *records: UsageRecord, now: float = 0.0) -> UsageSums:
    sums.add([(key_of(r), tokens_of(r)) for r in records], now)
    return sums


def test_a_record_is_a_line_and_comes_back() -> None:
    line = record().line()
    assert line.endswith(b"\n")
    assert json.loads(line) == RECORD
    assert UsageRecord.model_validate_json(line) == record()


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": None},
        {"tenant": "other"},
        {"deployment": "models/x"},
        {"revision": "v2"},
        {"contents": "c2"},
        {"adapter": None, "adapterDigest": None},
        {"baseDigest": "sha256:" + "c" * 64},
        {"endpoint": "embeddings"},
        {"gate": True},
        {"estimated": True},
    ],
)
def test_what_differs_in_anything_is_summed_apart(change: dict[str, Any]) -> None:
    sums = added(UsageSums(), record(), record(requestId="r2"), record(**change))
    assert sorted(tokens for _, tokens in sums) == [Tokens(1, 11, 4, 3), Tokens(2, 22, 8, 6)]


def test_sums_come_back_as_they_were_written() -> None:
    sums = added(UsageSums(), record(), record(tenant=None), now=7.5)
    told = json.loads(json.dumps(sums.to_json()))
    again = UsageSums.from_json(told)
    assert list(again) == list(sums)
    assert again.to_json() == sums.to_json()
    copied = added(sums.copy(), record())
    assert list(sums) == list(again), "a copy is another one"
    assert next(iter(copied))[1].requests == 2


@pytest.mark.parametrize("told", [[[1]], [["x"] * 16], [None]])
def test_what_are_no_sums_is_refused(told: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        UsageSums.from_json(told)


def test_the_number_of_sums_is_bounded_and_nothing_is_lost_of_the_whole() -> None:
    sums = UsageSums(most=3)
    added(sums, *(record(tenant=f"t{n}") for n in range(10)))
    assert len(sums) == 4
    by_tenant = {key.tenant: tokens.requests for key, tokens in sums}
    assert by_tenant == {"t0": 1, "t1": 1, "t2": 1, "other": 7}
    added(sums, record(tenant="t1"), now=IDLE_SECONDS)
    added(sums, record(tenant="new"), now=IDLE_SECONDS)
    assert {key.tenant for key, _ in sums} == {"t1", "new"}, "those that were idle made room"


def test_idle_sums_are_looked_for_once_a_minute() -> None:
    """Each look goes through all of them."""

    class Counting(dict[Any, Any]):
        looks = 0

        def items(self) -> Any:
            self.looks += 1
            return super().items()

    sums = UsageSums(most=2)
    added(sums, record(tenant="a"), record(tenant="b"))
    sums._sums = told = Counting(sums._sums)
    added(sums, record(tenant="c"), now=IDLE_SECONDS - 1)
    assert told.looks == 1
    sums._sums = told = Counting(sums._sums)
    added(sums, *(record(tenant=f"t{n}") for n in range(100)), now=IDLE_SECONDS + LOOK_SECONDS - 2)
    assert told.looks == 0, "it was a moment ago"
    copied = sums.copy()
    added(copied, record(tenant="new"), now=IDLE_SECONDS + LOOK_SECONDS - 2)
    assert "new" not in {key.tenant for key, _ in copied}, "a copy knows that"
    added(copied, record(tenant="new"), now=IDLE_SECONDS + LOOK_SECONDS - 1)
    assert {key.tenant for key, _ in copied} == {"other", "new"}
    added(sums, record(tenant="new"), now=10 * IDLE_SECONDS)
    added(sums, record(tenant="newer"), record(tenant="newest"), now=IDLE_SECONDS)
    assert sums._looked == IDLE_SECONDS, "a clock that was set back stops nothing"


def test_a_view_sums_by_what_is_asked_and_counts_a_record_once() -> None:
    records = [
        record(),
        record(),
        record(id="2", tenant=None, deployment="models/x", promptTokens=100),
        record(id="3", estimated=True, promptTokens=5, completionTokens=2),
        record(id="4", time="2026-11-19T23:59:59.999Z"),
    ]
    view = usage_view(records, "deployment", since="2026-11-20T10:00:00Z")
    assert view.rows == [
        UsageRow(name="models/x", requests=1, prompt_tokens=100, cached_tokens=4, completion_tokens=3),
        UsageRow(
            name="models/support",
            requests=1,
            prompt_tokens=11,
            cached_tokens=4,
            completion_tokens=3,
            estimated_requests=1,
            estimated_prompt_tokens=5,
            estimated_completion_tokens=2,
        ),
    ]
    assert (view.total.requests, view.total.prompt_tokens, view.total.estimated_requests) == (2, 111, 1)


def test_what_clients_choose_makes_no_record_another_ones_copy() -> None:
    """The same request id, at the same time, at the same gateway: as many clients as like to may send it."""
    same = [record(id=f"run-0-{n}", requestId="mine") for n in range(3)]
    assert usage_view(same, "tenant").total.requests == 3
    assert usage_view([*same, *same, record(gateway="gw-1")], "tenant").total.requests == 4


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("tenant", ["acme", "-"]),
        ("deployment", ["models/support"]),
        ("revision", ["models/support v1", "models/support v2"]),
        ("adapter", ["support-v1@sha256:aaaaaaaaaaaa", "llama@sha256:bbbbbbbbbbbb"]),
    ],
)
def test_what_a_view_can_sum_by(by: Any, names: list[str]) -> None:
    base = record(id="2", tenant=None, revision="v2", adapter=None, adapterDigest=None, promptTokens=1)
    assert [row.name for row in usage_view([record(), base], by).rows] == names
