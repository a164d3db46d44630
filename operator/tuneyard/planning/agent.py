"""What an agent does next: level-triggered, from everything it knows.

Rules:
- files are read and checked before the engine hears of an adapter; also while the engine starts;
- downloads take as long as their source likes, so they wait for each other and hold up no adapter of a volume, and slow
  ones no quick one (slowfetches.py);
- a new adapter goes Fetch -> Load -> Probe; each step begins only when the one before is seen to have worked;
- an engine is offered to others only when its base has answered once (some die at their first request);
- what the plan no longer asks for goes the other way: the report without it is published, gateways get `GRACE` to drop
  it, then it is unloaded; its folder goes when nobody generates with it any more, because an engine that misses the
  folder of an adapter dies with every stream (engines.md, fact 1);
- the engine never holds more adapters than --max-cpu-loras;
- an adapter that failed has its files kept, is taken out of the engine and tried again later;
- an engine that is healthy by its own word but generates nothing gets nothing more to do: it is restarted (by failing
  its health checks, which needs no step: tuneyard.agent.healthswitch);
- an engine that takes adapters only when it begins (`Begin`) is begun once all files are there that come soon; later it
  begins anew for new ones when it is this pod's turn (the plan says so) or nobody is served by it anyway;
- a draining pod begins nothing and removes nothing.

Steps are values; the executor starts every step it is told and says when it is over. A step is told only while it is
not under way, so that telling twice does no harm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tuneyard.api.documents import PlannedAdapter
from tuneyard.planning.agentstate import Prepared, State, current, is_put_off, within_room
from tuneyard.planning.beginnings import beginning
from tuneyard.planning.engines import Loading

GRACE = 3.0
"""Seconds between publishing that an adapter is going and unloading it: gateways hear of it in milliseconds."""
_MOST_FETCHES = 2
"""Of each kind. Each takes a thread, of which a node with one core gives the agent five; a download 48 MiB too."""
_MOST_ENGINE_STEPS = 8


@dataclass(frozen=True)
class Fetch:
    """Copy, hash and check an adapter's files."""

    planned: PlannedAdapter

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("adapter", self.planned.name)


@dataclass(frozen=True)
class ProbeBase:
    """Ask the engine for a token with the base alone."""

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("base", "")


@dataclass(frozen=True)
class Load:
    """Load an adapter into the engine under its engine name."""

    planned: PlannedAdapter
    prepared: Prepared

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("engine", self.prepared.engine_name)


@dataclass(frozen=True)
class Probe:
    """Ask the engine for a token with an adapter, and the base for one afterwards."""

    planned: PlannedAdapter
    prepared: Prepared

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("engine", self.prepared.engine_name)


@dataclass(frozen=True)
class Unload:
    """Take a name out of the engine."""

    engine_name: str

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("engine", self.engine_name)


@dataclass(frozen=True)
class Remove:
    """Delete an adapter's folder."""

    engine_name: str

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("engine", self.engine_name)


@dataclass(frozen=True)
class Begin:
    """Have an engine that loads at start begin anew with these adapters, after the pod has been drained."""

    adapters: tuple[tuple[PlannedAdapter, Prepared], ...]

    @property
    def key(self) -> tuple[str, str]:
        """What must not run twice at a time."""
        return ("begin", "")


Step = Fetch | ProbeBase | Begin | Load | Probe | Unload | Remove


def next_steps(state: State, now: float) -> list[Step]:
    """The steps to begin now, in order."""
    if state.plan is None or state.draining or state.engine.poisoned:
        return []
    base: list[Step] = [ProbeBase()] if state.engine.healthy and not state.engine.answers else []
    begun_with = beginning(state, now)
    base += [] if begun_with is None else [Begin(begun_with)]
    return [step for step in base if step.key not in state.working] + [*_forward(state, now), *_backward(state, now)]


def next_time(state: State, now: float) -> float | None:
    """When to look again although nothing happens, as a time; None: only when something happens."""
    times = [f.retry_at for f in state.failures.values()]
    times += [since + GRACE for since in state.withdrawn.values()]
    return min((t for t in times if now < t < math.inf), default=None)


def wanted_names(state: State) -> frozenset[str]:
    """Engine names of the prepared adapters that the plan asks for."""
    plan = state.plan
    return frozenset(p.engine_name for a in (plan.adapters if plan else []) if (p := current(state, a)) is not None)


def _forward(state: State, now: float) -> Iterator[Step]:
    """Steps towards serving what the plan asks for."""
    served = within_room(state)
    fetches = _free_fetches(state)
    engine_steps = _MOST_ENGINE_STEPS - sum(kind == "engine" for kind, _ in state.working)
    room = state.max_cpu_loras - len(_held(state))
    adapters = state.plan.adapters if state.plan else []
    for planned in sorted(adapters, key=lambda a: a.name in state.slow):
        if planned.name not in served or is_put_off(state, planned, now):
            continue
        prepared = current(state, planned)
        step = Fetch(planned) if prepared is None else _engine_step(state, planned, prepared)
        if step is None or step.key in state.working:
            continue
        if isinstance(step, Fetch):
            remote = planned.source.is_remote
            fetches[remote] -= 1
            if fetches[remote] >= 0:
                yield step
        else:
            engine_steps -= 1
            room -= isinstance(step, Load)
            if engine_steps >= 0 and (room >= 0 or isinstance(step, Probe)):
                yield step


def _free_fetches(state: State) -> dict[bool, int]:
    """How many fetches may begin over the network (True) and from volumes (False)."""
    known = {a.name: a.source.is_remote for a in (state.plan.adapters if state.plan else [])}
    # one that has left the plan ends sometime all the same: the network's, which may be long, are the stricter guess
    under_way = [known.get(name, True) for kind, name in state.working if kind == "adapter"]
    return {remote: _MOST_FETCHES - under_way.count(remote) for remote in (True, False)}


def _engine_step(state: State, planned: PlannedAdapter, prepared: Prepared) -> Load | Probe | None:
    if not state.engine.healthy or prepared.engine_name in state.proven:
        return None
    if prepared.engine_name not in state.engine.models:
        # one that loads at start can give a name back that was taken from an adapter, and no more
        there = state.loading is not Loading.AT_START or prepared.engine_name in (state.begun or ())
        return Load(planned, prepared) if there else None
    return Probe(planned, prepared)


def _backward(state: State, now: float) -> Iterator[Step]:
    """Steps that take away what the plan no longer asks for, and what has failed."""
    if not state.engine.seen:
        return
    wanted, refused = wanted_names(state), _refused(state, now)
    for name in sorted((state.engine.models | state.on_disk) - {state.base_model}):
        if ("engine", name) in state.working or _expected(state, name):
            continue
        loaded = name in state.engine.models
        if loaded and name in refused:
            yield Unload(name)  # it was never published
        elif name in wanted or now < state.withdrawn.get(name, math.inf) + GRACE:
            continue
        elif loaded and state.engine.healthy:
            yield Unload(name)
        elif not loaded and name in state.on_disk and _is_idle(state, name):
            yield Remove(name)


def leaving_names(state: State) -> frozenset[str]:
    """Engine names whose folder is to go as soon as nobody generates with them."""
    return state.on_disk - state.engine.models - wanted_names(state)


def _is_idle(state: State, name: str) -> bool:
    """Whether nobody generates with a name for sure."""
    return state.engine.busy is not None and name not in state.engine.busy


def _refused(state: State, now: float) -> frozenset[str]:
    """Engine names whose adapter has failed and waits: never published, they may be unloaded at any time."""
    plan = state.plan
    return frozenset(
        p.engine_name
        for a in (plan.adapters if plan else [])
        if is_put_off(state, a, now) and (p := current(state, a)) is not None and p.engine_name not in state.proven
    )


def _expected(state: State, engine_name: str) -> bool:
    """Whether a name that is not prepared may turn out to be wanted, once files that are being read are known."""
    return any(kind == "adapter" and engine_name.rpartition("-")[0] == name for kind, name in state.working)


def _held(state: State) -> frozenset[str]:
    """Engine names that take a place in the engine, loads under way included."""
    loading = frozenset(name for kind, name in state.working if kind == "engine")
    return (state.engine.models - {state.base_model}) | loading
