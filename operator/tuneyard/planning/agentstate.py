"""What an agent knows, and how each event changes it. Pure: the time comes with the events that need it.

What is where:
- `prepared`: adapters whose files lie checked in the pod, by adapter name; what the plan asks for elsewhere or with
  another digest is not prepared;
- `engine.models`: the names that the engine itself lists: the only truth about what is loaded;
- `proven`: engine names that have answered since this engine began; they survive the agent's own restart and not the
  engine's;
- `failures`: the last failure of an adapter, until it works or the plan asks for something else;
- `withdrawn`: since when gateways can know that an engine name of ours is not to be used any more, or since when the
  engine does not know it.

Invariant: nothing is proven that the engine does not list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

from tuneyard.api.documents import PlannedAdapter, PodReport, PoolPlan, Transfer
from tuneyard.api.names import short_hash
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.planning.remedies import clipped

MESSAGE = 800
"""Characters of a failure's message: it may hold names out of an artifact, which are of any length."""
FIRST_RETRY = 1.0
LONGEST_RETRY = 60.0
_K = TypeVar("_K")
_V = TypeVar("_V")


def _empty() -> Mapping[_K, _V]:
    return MappingProxyType({})


@dataclass(frozen=True)
class Prepared:
    """An adapter whose files lie in the pod, copied, hashed and found right."""

    source: Source
    digest: str
    engine_name: str
    rank: int
    target_modules: tuple[str, ...]
    size_bytes: int
    warning: Reason | None = None
    """What its files leave in doubt; it is served all the same."""

    def serves(self, planned: PlannedAdapter) -> bool:
        """Whether this is what the plan asks for."""
        return self.source == planned.source and planned.digest in (None, self.digest)


@dataclass(frozen=True)
class Failure:
    """Why an adapter is not served, and when it is tried again."""

    planned: PlannedAdapter
    reason: Reason
    message: str
    digest: str | None = None
    attempts: int = 1
    retry_at: float = 0.0
    """On the clock of the events; infinite for bytes that harmed an engine."""


class Reference(NamedTuple):
    """What the base answered first in an engine's life, in values that can be kept; the measure of later answers."""

    text: str
    logprobs: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Engine:
    """The engine as last seen."""

    seen: bool = False
    healthy: bool = False
    answers: bool = False
    """Whether the base has generated a token since this engine began: only then it may be asked by others."""
    models: frozenset[str] = frozenset()
    """All names that it lists, the base's too."""
    busy: frozenset[str] | None = None
    """Names of adapters with requests in the engine; None: not known."""
    poisoned: bool = False
    """Whether it answers health checks but no longer generates."""
    reference: Reference | None = None


@dataclass(frozen=True)
class State:
    """Everything an agent knows."""

    address: str
    base_model: str
    max_cpu_loras: int
    plan: PoolPlan | None = None
    engine: Engine = Engine()
    prepared: Mapping[str, Prepared] = field(default_factory=_empty)
    proven: Mapping[str, Reason | None] = field(default_factory=_empty)
    """By engine name; the value is a warning."""
    failures: Mapping[str, Failure] = field(default_factory=_empty)
    on_disk: frozenset[str] = frozenset()
    """Engine names that have a folder in the pod."""
    withdrawn: Mapping[str, float] = field(default_factory=_empty)
    working: frozenset[tuple[str, str]] = frozenset()
    """(kind of instruction, name) of what is under way."""
    transfers: Mapping[str, Transfer] = field(default_factory=_empty)
    """By adapter name, how far the files are that are coming over the network."""
    slow: frozenset[str] = frozenset()
    """Names of adapters whose files have been coming for long (slowfetches.py)."""
    draining: bool = False
    published: PodReport | None = None
    """What others can read: the last report that this agent has written, as it was written."""


# events


@dataclass(frozen=True)
class PlanChanged:
    """The plan was read."""

    plan: PoolPlan


@dataclass(frozen=True)
class EngineSeen:
    """The engine answered and lists these names; `busy` None where it does not tell who has requests."""

    models: frozenset[str]
    busy: frozenset[str] | None = None


@dataclass(frozen=True)
class EngineUnwell:
    """The engine hangs or says that it is not healthy; it is not known to have begun anew."""


@dataclass(frozen=True)
class EngineGone:
    """Nothing listens: whatever comes back has no adapters."""


@dataclass(frozen=True)
class EnginePoisoned:
    """The engine is healthy by its own word and generates nothing."""


@dataclass(frozen=True)
class ReferenceHeard:
    """The base's first sound answer."""

    reference: Reference


@dataclass(frozen=True)
class BaseProven:
    """The engine generated a token with the base alone."""


@dataclass(frozen=True)
class Fetching:
    """An adapter's files are coming over the network."""

    name: str
    transfer: Transfer


@dataclass(frozen=True)
class Slow:
    """An adapter's files have been coming for long."""

    name: str


@dataclass(frozen=True)
class Fetched:
    """An adapter's files lie in the pod and are right."""

    name: str
    prepared: Prepared


@dataclass(frozen=True)
class Proven:
    """The engine answered with an adapter."""

    name: str
    engine_name: str
    warning: Reason | None = None


@dataclass(frozen=True)
class Failed:
    """Reading, loading or asking an adapter did not work."""

    planned: PlannedAdapter
    reason: Reason
    message: str
    now: float
    digest: str | None = None
    for_ever: bool = False


@dataclass(frozen=True)
class Unloaded:
    """The engine no longer knows a name; requests that run with it still may."""

    engine_name: str
    now: float


@dataclass(frozen=True)
class Removed:
    """An adapter's folder is gone."""

    engine_name: str


@dataclass(frozen=True)
class Published:
    """The report stands where gateways read it."""

    report: PodReport
    now: float


@dataclass(frozen=True)
class Began:
    """An instruction is being carried out."""

    key: tuple[str, str]


@dataclass(frozen=True)
class Ended:
    """An instruction is over, however it went; what it found out is another event."""

    key: tuple[str, str]


@dataclass(frozen=True)
class DrainAsked:
    """The pod is leaving."""


Event = (
    PlanChanged
    | EngineSeen
    | EngineUnwell
    | EngineGone
    | EnginePoisoned
    | ReferenceHeard
    | BaseProven
    | Fetching
    | Slow
    | Fetched
    | Proven
    | Failed
    | Unloaded
    | Removed
    | Published
    | Began
    | Ended
    | DrainAsked
)
EngineEvent = EngineSeen | EngineUnwell | EngineGone | EnginePoisoned | ReferenceHeard | BaseProven


def learned(state: State, event: Event) -> State:
    """The state after an event."""
    match event:
        case PlanChanged(plan):
            return _after_plan(state, plan)
        case EngineSeen() | EngineUnwell() | EngineGone() | EnginePoisoned() | ReferenceHeard() | BaseProven():
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
            return replace(state, failures={**state.failures, event.planned.name: _failure(state, event)})
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


def current(state: State, planned: PlannedAdapter) -> Prepared | None:
    """The prepared files that the plan asks for."""
    prepared = state.prepared.get(planned.name)
    return prepared if prepared is not None and prepared.serves(planned) else None


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


EngineState = Literal["Starting", "Ready", "Draining"]
