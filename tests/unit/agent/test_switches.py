"""The front's two switches follow what is known, whatever happens in between; and what is known survives the agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.unit.agent.states import after
from tests.unit.agent.waiting import until
from tuneyard.agent import draining, healthswitch
from tuneyard.agent.draining import Drain
from tuneyard.agent.enginewatch import EngineWatch
from tuneyard.agent.front import Front, FrontError, Traffic
from tuneyard.agent.healthswitch import keep_health_switch
from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.snapshot import Snapshot
from tuneyard.planning.agentstate import (
    BaseProven,
    EngineGone,
    EnginePoisoned,
    EngineSeen,
    Event,
    Reference,
    ReferenceHeard,
)
from tuneyard.systems.engines.base import EngineError
from tuneyard.systems.engines.vllm import Vllm

UP: tuple[Event, ...] = (EngineSeen(frozenset({"base", "a-1"})), BaseProven())


def knowing(*events: Event) -> Knowledge:
    return Knowledge(after(*events))


class FakeFront(Front):
    """A front's switches and figures."""

    def __init__(self) -> None:
        self.draining = False
        self.unhealthy = False
        self.there = True
        self.asked = 0
        self.closed = 0
        self.before_closing: Callable[[], None] = lambda: None
        self.after_closing: Callable[[], None] = lambda: None

    async def traffic(self) -> Traffic:
        self.asked += 1
        return Traffic(0, 0)

    async def set_draining(self, draining: bool) -> None:
        if draining:
            self.before_closing()
            await asyncio.sleep(0.02)  # whoever opens it is quicker
        self._set("draining", draining)
        self.closed += draining
        if draining:
            self.after_closing()

    async def set_unhealthy(self, unhealthy: bool) -> None:
        self._set("unhealthy", unhealthy)

    def _set(self, name: str, value: bool) -> None:
        if not self.there:
            raise FrontError("away")
        setattr(self, name, value)


@asynccontextmanager
async def running(*tasks: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(draining, "_SAMPLE", 0.01)
    monkeypatch.setattr(healthswitch, "_PAUSE", 0.02)
    monkeypatch.setattr(healthswitch, "_AGAIN", 0.05)


async def drained_while(end: Callable[[FakeFront, Knowledge], None]) -> FakeFront:
    """The front after a drain during which the engine went and came back, as `end` arranges it."""
    front, knowledge = FakeFront(), knowing(*UP)
    drain = Drain(knowledge, front, 30.0, asyncio.get_running_loop().time)
    async with running(asyncio.create_task(drain.follow())):
        end(front, knowledge)
        assert not await asyncio.wait_for(drain.drain(), 5)
        await asyncio.sleep(0.05)
    return front


def gone(knowledge: Knowledge) -> Callable[[], None]:
    def engine_goes() -> None:
        for event in (EngineGone(), *UP):
            knowledge.tell(event)

    return engine_goes


async def test_an_engine_that_goes_before_the_front_is_closed_leaves_it_open() -> None:
    def arrange(front: FakeFront, knowledge: Knowledge) -> None:
        asyncio.get_running_loop().call_later(0.05, gone(knowledge))

    front = await drained_while(arrange)
    assert front.asked
    assert not front.closed, "not even for a moment"


@pytest.mark.parametrize("moment", ["before_closing", "after_closing"])
async def test_an_engine_that_goes_while_the_front_is_being_closed_leaves_it_open(moment: str) -> None:
    front = await drained_while(lambda front, knowledge: setattr(front, moment, gone(knowledge)))
    assert not front.draining


async def test_a_front_that_cannot_be_opened_at_once_is_opened_later() -> None:
    front = FakeFront()
    knowledge = knowing(*UP)
    drain = Drain(knowledge, front, 30.0, asyncio.get_running_loop().time)

    def engine_and_front_go() -> None:
        gone(knowledge)()
        front.there = False

    front.after_closing = engine_and_front_go
    async with running(asyncio.create_task(drain.follow())):
        drained = asyncio.create_task(drain.drain())
        await until(lambda: not front.there)
        front.there = True
        assert not await asyncio.wait_for(drained, 5)
        assert not front.draining


@pytest.mark.lasting
async def test_the_health_switch_follows_what_is_known() -> None:
    front, knowledge = FakeFront(), knowing(*UP)
    front.unhealthy = True  # an agent that ended between on and off has left it so
    async with running(asyncio.create_task(keep_health_switch(knowledge, front))):
        await until(lambda: not front.unhealthy)
        knowledge.tell(EnginePoisoned())
        await until(lambda: front.unhealthy)
        front.unhealthy = False  # a front that restarted has forgotten it
        await until(lambda: front.unhealthy)
        front.there = False
        await asyncio.sleep(0.1)
        knowledge.tell(EngineGone())
        await asyncio.sleep(0.1)
        assert front.unhealthy
        front.there = True
        await until(lambda: not front.unhealthy)


REFERENCE = Reference("word", ({"word": -0.5},))


def restarted(tmp_path: Path, before: Knowledge) -> Knowledge:
    """What another agent in the same pod begins with."""
    Snapshot(tmp_path / "agent.json").save(before.state)
    return Knowledge(Snapshot(tmp_path / "agent.json").restore(knowing().state, frozenset()))


def test_a_silenced_engine_stays_silenced_over_the_agent_s_restart(tmp_path: Path) -> None:
    after = restarted(tmp_path, knowing(*UP, ReferenceHeard(REFERENCE), EnginePoisoned()))
    assert after.state.engine.poisoned
    assert after.state.engine.reference == REFERENCE
    after.tell(UP[0])
    assert after.state.engine.poisoned, "it is the same engine"


def test_another_engine_is_not_taken_for_the_silenced_one(tmp_path: Path) -> None:
    after = restarted(tmp_path, knowing(*UP, EnginePoisoned()))
    after.tell(EngineSeen(frozenset({"base"})))
    assert not after.state.engine.poisoned, "it has lost its adapters"
    after = restarted(tmp_path, knowing(*UP, ReferenceHeard(REFERENCE), EnginePoisoned()))
    after.tell(EngineGone())
    assert after.state.engine == replace(knowing(EngineGone()).state.engine)


class Engine:
    """An engine whose base answers with a text, and with log-probabilities or a refusal of them."""

    def __init__(self) -> None:
        self.text = ""
        self.logprobs = False

    async def completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "logprobs" in body and not self.logprobs:
            return web.json_response({"error": {"message": "not JSON compliant"}}, status=400)
        tops = {"top_logprobs": [{self.text: -0.5}]} if "logprobs" in body else None
        return web.json_response({"model": body["model"], "choices": [{"text": self.text, "logprobs": tops}]})


@asynccontextmanager
async def watched(engine: Engine, knowledge: Knowledge) -> AsyncIterator[EngineWatch]:
    app = web.Application()
    app.add_routes([web.post("/v1/completions", engine.completions)])
    async with TestServer(app) as server, Vllm(str(server.make_url("/")), "k") as client:
        yield EngineWatch(knowledge, client, asyncio.get_running_loop().time)


async def test_the_answer_of_a_silenced_engine_is_no_measure() -> None:
    engine, knowledge = Engine(), knowing(*UP[:1])
    async with watched(engine, knowledge) as watch:
        for _ in range(2):
            with pytest.raises(EngineError):
                await watch.ask_base()
        assert knowledge.state.engine == knowing(*UP[:1]).state.engine, "it may be a moment's trouble"
        engine.text, engine.logprobs = "word", True
        await watch.ask_base()
        assert watch.reference is not None
        engine.text, engine.logprobs = "!", False
        await watch.ask_base()
        assert knowledge.state.engine.poisoned


async def test_an_engine_that_never_said_anything_is_restarted() -> None:
    engine, knowledge = Engine(), knowing(*UP[:1])
    async with watched(engine, knowledge) as watch:
        for _ in range(3):
            with pytest.raises(EngineError):
                await watch.ask_base()
    assert knowledge.state.engine.poisoned


async def test_a_new_agent_knows_what_an_engine_answers_that_is_not_silenced(tmp_path: Path) -> None:
    engine = Engine()
    engine.text = "!"  # with NaN the text may be the first word of the vocabulary
    knowledge = restarted(tmp_path, knowing(*UP, ReferenceHeard(REFERENCE)))
    knowledge.tell(UP[0])
    async with watched(engine, knowledge) as watch:
        await watch.ask_base()
    assert knowledge.state.engine.poisoned
