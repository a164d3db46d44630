"""kopf as event source: it only wakes, only for what the informers missed, and it never gives up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tuneyard.handlers import events
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key

M = Key(MODEL_DEPLOYMENT, "team", "m")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LATE_SECONDS", 0.01)


async def told(answers: list[bool], kind: str | None = "MODIFIED") -> list[Key]:
    """Who is woken by an event of version 7, when the informers answer so, one time after the other."""
    missed: list[Key] = []
    asked: list[tuple[Key, str]] = []

    def shown(key: Key, version: str) -> bool:
        asked.append((key, version))
        return answers[len(asked) - 1]

    meta: Any = {"namespace": "team", "name": "m", "resourceVersion": "7"}
    await events._waker(MODEL_DEPLOYMENT, shown, missed.append)(meta=meta, type=kind, body={}, logger=None)  # type: ignore[misc]
    assert set(asked) <= {(M, "7")}
    return missed


async def test_what_the_informers_show_wakes_nobody_again() -> None:
    assert await told([True]) == []


async def test_what_they_show_a_moment_later_wakes_nobody_again() -> None:
    assert await told([False, True]) == []


async def test_what_they_missed_is_woken_from_here() -> None:
    assert await told([False, False]) == [M]


async def test_deletions_are_left_to_the_informers_lists() -> None:
    assert await told([], "DELETED") == []


def test_back_offs_have_no_end_and_a_ceiling() -> None:
    first = list(itertools.islice(events.Backoffs(), 100))
    again = list(itertools.islice(events.Backoffs(), 100))
    assert len(first) == len(again) == 100
    assert max(first) <= 5.0
    assert min(first) >= 0.1
    assert first[0] <= 0.2 < first[-1]


def test_kopf_is_kept_from_everything_but_watching() -> None:
    found = events.settings()
    assert not found.posting.enabled
    assert found.scanning.disabled
    assert found.peering.standalone
    # the API server refuses "45.0"
    assert str(found.watching.server_timeout).isdecimal()
    assert found.watching.client_timeout and found.watching.client_timeout <= 75


def test_there_are_event_handlers_for_three_kinds_and_no_others() -> None:
    registry = events.registry(lambda *_: True, lambda _: None)
    ids = {str(handler.id) for handler in registry._watching.get_all_handlers()}
    assert ids == {"basemodels", "loraadapters", "modeldeployments"}
    for others in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert list(others.get_all_handlers()) == []
