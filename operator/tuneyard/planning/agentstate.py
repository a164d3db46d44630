"""What an agent knows, and the events that change it (agentlearning.py); the time comes with those that need it.

What is where:
- `prepared`: adapters whose files lie checked in the pod, by adapter name; what the plan asks for elsewhere or with
  another digest is not prepared;
- `engine.models`: the names that the engine itself lists: the only truth about what is loaded;
- `proven`: engine names that have answered since this engine began; they survive the agent's own restart and not the
  engine's;
- `failures`: the last failure of an adapter, until it works or the plan asks for something else;
- `withdrawn`: since when gateways can know that an engine name of ours is not to be used any more, or since when the
  engine does not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeVar

from tuneyard.api.documents import PlannedAdapter, PodReport, PoolPlan, Transfer
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.planning.engines import Loading

MESSAGE = 800
"""Characters of a failure's message: it may hold names out of an artifact, which are of any length."""
FIRST_RETRY = 1.0
LONGEST_RETRY = 60.0
_K = TypeVar("_K")
_V = TypeVar("_V")


def _empty() -> Mapping[_K, _V]:
    return MappingProxyType({})


EngineState = Literal["Starting", "Ready", "Draining"]


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
    tls: bool = False
    """Whether the pod's front takes TLS."""
    loading: Loading = Loading.AT_RUN_TIME
    """When the engine takes adapters."""
    begun: frozenset[str] | None = None
    """Engine names that an engine which loads at start was told to begin with; None: it was told nothing yet."""
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


def current(state: State, planned: PlannedAdapter) -> Prepared | None:
    """The prepared files that the plan asks for."""
    prepared = state.prepared.get(planned.name)
    return prepared if prepared is not None and prepared.serves(planned) else None


def is_put_off(state: State, planned: PlannedAdapter, now: float) -> bool:
    """Whether the adapter has failed and is not tried yet."""
    failure = state.failures.get(planned.name)
    return failure is not None and now < failure.retry_at


def within_room(state: State) -> frozenset[str]:
    """Names of the planned adapters that have a place: what serves keeps its place, then in the plan's order."""
    adapters = state.plan.adapters if state.plan else []
    serving = [a.name for a in adapters if (p := current(state, a)) is not None and p.engine_name in state.proven]
    having = frozenset(serving)
    others = [a.name for a in adapters if a.name not in having]
    return frozenset((serving + others)[: state.max_cpu_loras])


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
class Begun:
    """The engine was told to begin anew with these engine names, and did."""

    names: frozenset[str]


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
    | Begun
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
EngineEvent = EngineSeen | EngineUnwell | EngineGone | EnginePoisoned | ReferenceHeard | BaseProven | Begun
