"""A step that goes wrong in a way that nobody foresaw is told like any other failure, and tried again ever later."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.agent.states import after, plan, planned
from tuneyard.agent import performing
from tuneyard.agent.enginewatch import EngineWatch
from tuneyard.agent.fetching import FetchError, Shelf
from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.performing import Performer
from tuneyard.agent.snapshot import _document, _restored
from tuneyard.api.reasons import Reason
from tuneyard.planning.agent import Fetch, Probe
from tuneyard.planning.agentstate import EngineSeen, Fetched, Prepared, State
from tuneyard.planning.basefacts import BaseFacts
from tuneyard.systems.artifacts.download import FetchStopped
from tuneyard.systems.engines.vllm import Vllm


async def undrained() -> bool:
    return True


@dataclass
class Watch:
    """An engine of which nobody knows anything."""

    reference: object = None

    async def ask_base(self, _: float = 0.0) -> Any:
        return Said("base", 1)


@dataclass(frozen=True)
class Said:
    """An answer."""

    model: str
    word: int

    def equals(self, other: Said) -> bool:
        return self.word == other.word

    def is_broken(self, _: object) -> bool:
        return False


@dataclass
class Engine:
    """Answers with one word under every name."""

    word: int

    async def ask(self, name: str, _: int = 1) -> Said:
        return Said(name, self.word)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Broken(Shelf):
    """Fetches nothing."""

    error: Exception = field(default_factory=Exception)

    def fetch(self, *_: Any) -> Any:
        raise self.error


async def tried(error: Exception, times: int = 1) -> State:
    """What is known after fetching one adapter has failed that often."""
    knowledge = Knowledge(after(plan(planned("a"))))
    shelf = Broken(Path("/v"), Path("/a"), BaseFacts(2), 16, error=error)
    clock = Clock()
    performer = Performer(knowledge, shelf, cast(Vllm, None), cast(EngineWatch, Watch()), drain=undrained, clock=clock)
    for _ in range(times):
        performer.begin(Fetch(planned("a")))
        await knowledge.until(lambda state: not state.working)
        clock.now += 100
    return knowledge.state


@pytest.mark.parametrize(
    ("error", "reason", "text"),
    [
        (OverflowError("int too large"), Reason.ARTIFACT_UNREADABLE, "OverflowError: int too large"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), Reason.ARTIFACT_UNREADABLE, "UnicodeEncodeError"),
        (FetchError(Reason.ACCESS_DENIED, "the key is refused"), Reason.ACCESS_DENIED, "the key is refused"),
    ],
)
async def test_whatever_goes_wrong_with_an_adapter_is_told(error: Exception, reason: Reason, text: str) -> None:
    failure = (await tried(error)).failures["a"]
    assert (failure.reason, failure.attempts) == (reason, 1)
    assert text in failure.message
    failure.message.encode()


async def test_it_is_tried_again_later_and_later() -> None:
    failure = (await tried(ValueError("odd"), times=3)).failures["a"]
    assert failure.attempts == 3
    assert failure.retry_at > 200 + 2.0


async def test_a_fetch_that_is_told_to_stop_is_no_failure() -> None:
    assert (await tried(FetchStopped())).failures == {}


@dataclass(frozen=True)
class Held(Shelf):
    """Fetches until it is let go."""

    let_go: threading.Event = field(default_factory=threading.Event)

    def fetch(self, *_: Any) -> Any:
        self.let_go.wait(10)
        raise FetchStopped


async def test_a_fetch_for_an_earlier_plan_makes_no_adapter_of_this_one_overdue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(performing, "SLOW_AFTER", 0.0)
    knowledge = Knowledge(after(plan(planned("edited", path="new"), planned("same"))))
    shelf = Held(Path("/v"), Path("/a"), BaseFacts(2), 16)
    performer = Performer(
        knowledge, shelf, cast(Vllm, None), cast(EngineWatch, Watch()), drain=undrained, clock=Clock()
    )
    for one in (planned("edited", path="old"), planned("gone"), planned("same")):
        performer.begin(Fetch(one))
    await knowledge.until(lambda state: "same" in state.slow)
    assert knowledge.state.slow == {"same"}, "the others have been looked at before it"
    shelf.let_go.set()
    await knowledge.until(lambda state: not state.working)


@pytest.mark.parametrize(
    ("word", "given", "told"),
    [
        (2, None, None),
        (2, Reason.NAMES_ANOTHER_BASE, Reason.NAMES_ANOTHER_BASE),
        (1, None, Reason.ANSWERS_LIKE_BASE),
        (1, Reason.NAMES_ANOTHER_BASE, Reason.ANSWERS_LIKE_BASE),
    ],
)
async def test_a_proven_adapter_keeps_the_worst_warning(word: int, given: Any, told: Any) -> None:
    source = planned("a").source
    prepared = Prepared(source, "sha256:0", "a-0", 8, ("q_proj",), 1, given)
    knowledge = Knowledge(after(plan(planned("a")), Fetched("a", prepared), EngineSeen(frozenset({"base", "a-0"}))))
    engine, watch = cast(Vllm, Engine(word)), cast(EngineWatch, Watch())
    performer = Performer(knowledge, cast(Shelf, None), engine, watch, drain=undrained, clock=Clock())
    performer.begin(Probe(planned("a"), prepared))
    await knowledge.until(lambda state: bool(state.proven))
    assert knowledge.state.proven == {"a-0": told}
    assert _restored(after(), _document(knowledge.state), frozenset({"a-0"})).prepared == {"a": prepared}
