r"""An agent at work: state in the middle, watchers that tell it events, steps that it has carried out.

plan, engine, steps -- events --> Knowledge -- state --> next_steps --> Performer
                                                     \-> pod_report --> Publisher, Snapshot
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from aiohttp import web

from tuneyard.agent.draining import Drain
from tuneyard.agent.engineclients import client_of
from tuneyard.agent.enginewatch import EngineWatch
from tuneyard.agent.fetching import Shelf
from tuneyard.agent.front import Front
from tuneyard.agent.healthswitch import keep_health_switch
from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.pacing import Pace
from tuneyard.agent.performing import Performer
from tuneyard.agent.publishing import Publisher, Write
from tuneyard.agent.server import application
from tuneyard.agent.settings import Settings
from tuneyard.agent.snapshot import SNAPSHOT, Snapshot
from tuneyard.planning.agent import next_steps, next_time
from tuneyard.planning.agentstate import State
from tuneyard.planning.podreport import pod_report

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Agent:
    """The parts of a running agent."""

    knowledge: Knowledge
    drain: Drain


@asynccontextmanager
async def running_agent(
    settings: Settings, shelf: Shelf, write: Write, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Agent]:
    r"""An agent at work while the context lasts; `write` publishes its reports.

    It knows of plans what its snapshot says, until somebody tells `knowledge` another one. Should one of its tasks end
    by a bug, so does the context, with that error: a restarted agent takes nothing back, a limping one serves nobody.
    """
    snapshot = Snapshot(settings.run / SNAPSHOT)
    fresh = State(
        settings.address, settings.base_model, settings.max_cpu_loras, settings.tls, loading=settings.engine.adapters
    )
    knowledge = Knowledge(snapshot.restore(fresh, await asyncio.to_thread(shelf.clean)))
    front = Front(settings.front_admin)
    drain = Drain(knowledge, front, settings.drain_timeout, clock)
    publisher = Publisher(knowledge, write, clock)
    async with client_of(settings) as engine:
        knowledge.state = replace(knowledge.state, begun=engine.begun())
        watch = EngineWatch(knowledge, engine, clock)
        performer = Performer(knowledge, shelf, engine, watch, drain=drain.drain, clock=clock)
        async with _serving(application(knowledge, drain), settings.port), asyncio.TaskGroup() as group:
            work = [
                group.create_task(watch.run(), name="engine watch"),
                group.create_task(publisher.run(), name="publisher"),
                group.create_task(drain.follow(), name="end of draining"),
                group.create_task(keep_health_switch(knowledge, front), name="health switch"),
                group.create_task(_decide(knowledge, performer, publisher, snapshot, clock), name="decisions"),
            ]
            try:
                yield Agent(knowledge, drain)
            finally:
                for task in work:
                    task.cancel()
                await performer.stop()
                snapshot.save(knowledge.state)


async def _decide(
    knowledge: Knowledge, performer: Performer, publisher: Publisher, snapshot: Snapshot, clock: Callable[[], float]
) -> None:
    """After every change, and when a time has come: begin steps, publish, keep a snapshot.

    With hundreds of adapters a report and a snapshot take milliseconds each, and most changes are in neither.
    """
    told: object = None
    pace, transfers = Pace(clock), knowledge.state.transfers
    while True:
        knowledge.changed.clear()
        for step in next_steps(knowledge.state, clock()):
            performer.begin(step)
        if knowledge.state.transfers != transfers and pace.due(knowledge.state.transfers):
            transfers = knowledge.state.transfers
        if told != (told := (_told(knowledge.state), transfers)):
            publisher.offer(pod_report(knowledge.state))
            snapshot.save(knowledge.state)
        now = clock()
        until = next_time(knowledge.state, now)
        # not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the change
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if until is None else max(0.01, until - now)):
                await knowledge.changed.wait()


def _told(state: State) -> tuple[object, ...]:
    """What of the state a report or a snapshot is made of: not what is under way, nor who has requests."""
    engine = replace(state.engine, busy=None)
    return state.plan, state.prepared, state.proven, state.failures, state.slow, engine, state.draining


@asynccontextmanager
async def _serving(app: web.Application, port: int) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield
    finally:
        await runner.cleanup()
