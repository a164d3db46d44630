"""How each event changes what an agent knows (agentstate.py). Pure: the time comes with the events that need it.

Invariant: nothing is proven that the engine does not list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from tuneyard.api.documents import PlannedAdapter, PodReport, PoolPlan
from tuneyard.api.names import short_hash
from tuneyard.planning.agentstate import (
    FIRST_RETRY,
    LONGEST_RETRY,
    MESSAGE,
    BaseProven,
    Began,
    Begun,
    DrainAsked,
    Ended,
    Engine,
    EngineEvent,
    EngineGone,
    EnginePoisoned,
    EngineSeen,
    EngineUnwell,
    Event,
    Failed,
    Failure,
    Fetched,
    Fetching,
    PlanChanged,
    Proven,
    Published,
    ReferenceHeard,
    Removed,
    Slow,
    State,
    Unloaded,
)
from tuneyard.planning.remedies import clipped

_V = TypeVar("_V")


def learned(state: State, event: Event) -> State:
    """The state after an event."""
    match event:
        case PlanChanged(plan):
            return _after_plan(state, plan)
        case (
            EngineSeen() | EngineUnwell() | EngineGone() | EnginePoisoned() | ReferenceHeard() | BaseProven() | Begun()
        ):
            return _after_engine(state, event)
        case Began(key):
            return replace(state, working=state.working | {key})
        case Ended(key):
            transfers = _without(state.transfers, key[1]) if key[0] == "adapter" else state.transfers
            return replace(state, working=state.working - {key}, transfers=transfers)
        case DrainAsked():
            return replace(state, draining=True)
        case Published(report, now):
            return replace(state, withdrawn=_withdrawn(state, report, now), published=report)
        case _:
            return _after_step(state, event)


def _after_step(state: State, event: Fetching | Slow | Fetched | Proven | Failed | Unloaded | Removed) -> State:
    """What a step has found out or done."""
    match event:
        case Fetching(name, transfer):
            return replace(state, transfers={**state.transfers, name: transfer})
        case Slow(name):
            return replace(state, slow=state.slow | {name})
        case Fetched(name, prepared):
            known, on_disk = {**state.prepared, name: prepared}, state.on_disk | {prepared.engine_name}
            return replace(state, prepared=known, on_disk=on_disk, slow=state.slow - {name})
        case Proven(name, engine_name, warning):
            if engine_name not in state.engine.models:
                return state  # it began anew meanwhile
            proven = {**state.proven, engine_name: warning}
            withdrawn = _without(state.withdrawn, engine_name)
            return replace(state, proven=proven, withdrawn=withdrawn, failures=_without(state.failures, name))
        case Failed():
            failure = _failure(state, event)
            wish = next((a for a in state.plan.adapters if a.name == event.planned.name), None) if state.plan else None
            if wish is not None and not _same_wish(failure, wish):
                return state  # what began before the plan asked for something else
            return replace(state, failures={**state.failures, event.planned.name: failure})
        case Unloaded(engine_name, now):
            models = state.engine.models - {engine_name}
            return replace(
                state,
                engine=replace(state.engine, models=models),
                proven=_without(state.proven, engine_name),
                withdrawn={**state.withdrawn, engine_name: now},
            )
        case Removed(engine_name):
            return replace(
                state,
                on_disk=state.on_disk - {engine_name},
                withdrawn=_without(state.withdrawn, engine_name),
                prepared={n: p for n, p in state.prepared.items() if p.engine_name != engine_name},
            )


def _after_plan(state: State, plan: PoolPlan) -> State:
    """Another plan is another chance for every adapter whose entry changed; failures of the unchanged stay."""
    planned = {adapter.name: adapter for adapter in plan.adapters}
    failures = {name: failure for name, failure in state.failures.items() if _same_wish(failure, planned.get(name))}
    before = {adapter.name: adapter.source for adapter in (state.plan.adapters if state.plan else [])}
    slow = frozenset(name for name in state.slow if name in planned and planned[name].source == before.get(name))
    return replace(state, plan=plan, failures=failures, slow=slow)


def _same_wish(failed: Failure, planned: PlannedAdapter | None) -> bool:
    """Whether the plan asks for what has failed; that its digest was pinned meanwhile changes nothing."""
    if planned is None or planned.source != failed.planned.source:
        return False
    pinned = failed.planned.digest is None and planned.digest == failed.digest
    return pinned or planned.digest == failed.planned.digest


def _after_engine(state: State, event: EngineEvent) -> State:
    engine = state.engine
    match event:
        case ReferenceHeard(reference):
            return replace(state, engine=replace(engine, reference=reference))
        case Begun(names):
            # what it had proven was another process's, whether or not anybody saw it go
            fresh = Engine(seen=True, busy=frozenset())
            return replace(state, begun=names, engine=fresh, proven={}, draining=False)
        case EngineGone():
            # whatever it was drained for has happened; should it come back, the pod is not leaving
            return replace(state, engine=Engine(seen=True, busy=frozenset()), proven={}, draining=False)
        case EngineUnwell():
            return replace(state, engine=replace(engine, seen=True, healthy=False))
        case EnginePoisoned():
            return replace(state, engine=replace(engine, poisoned=True))
        case BaseProven():
            return replace(state, engine=replace(engine, answers=engine.healthy))
        case EngineSeen(models, busy):
            # an engine that lost a name it had proven has begun anew unseen: everything has to be proven again
            anew = not state.proven.keys() <= models
            # an agent that was away knows of a silenced engine; one that lists less than it did is another
            cured = anew or not (engine.seen or engine.models <= models)
            seen = Engine(
                seen=True,
                healthy=True,
                answers=engine.answers and not anew,
                models=models,
                busy=busy,
                poisoned=engine.poisoned and not cured,
                reference=None if anew else engine.reference,
            )
            return replace(state, engine=seen, proven={} if anew else state.proven)


def _failure(state: State, event: Failed) -> Failure:
    """The failure with the next attempt's time: 1 s, doubled up to 60 s, each shortened by up to a quarter."""
    before = state.failures.get(event.planned.name)
    attempts = before.attempts + 1 if before is not None and before.planned == event.planned else 1
    delay = min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(attempts - 1, 10))
    # pods must not come back together: a hash of who and how often is jitter enough, and keeps this pure
    jitter = int(short_hash(state.address, event.planned.name, str(attempts)), 16) / 0xFFFFFFFF
    retry_at = math.inf if event.for_ever else event.now + delay * (1.0 - 0.25 * jitter)
    return Failure(event.planned, event.reason, clipped(event.message, MESSAGE), event.digest, attempts, retry_at)


def _withdrawn(state: State, report: PodReport, now: float) -> dict[str, float]:
    """Since when a published report does not offer a name, for every name of ours that is still around."""
    offered = {a.engine_name for a in report.adapters.values() if a.state == "Loaded"}
    around = (state.on_disk | state.engine.models) - {state.base_model} - offered
    return {name: state.withdrawn.get(name, now) for name in around if name is not None}


def _without(values: Mapping[str, _V], name: str) -> dict[str, _V]:
    return {key: value for key, value in values.items() if key != name}
