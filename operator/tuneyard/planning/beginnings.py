"""When an engine that takes adapters only at its start begins, the first time or anew, and with which.

Rules:
- the first time it waits for all files that come soon: beginning twice costs whoever is served in between;
- later it begins anew for new adapters, never to get rid of old ones: these lose their names alone;
- while somebody is served by it, it waits for its turn, which the plan gives: one pod of a pool after the other.
"""

from __future__ import annotations

import math

from tuneyard.api.documents import PlannedAdapter
from tuneyard.planning.agentstate import Failure, Prepared, State, current, is_put_off, within_room
from tuneyard.planning.engines import Loading

_ATTEMPTS = 3
Ready = tuple[tuple[PlannedAdapter, Prepared], ...]


def beginning(state: State, now: float) -> Ready | None:
    """The adapters to begin with now; None: it goes on as it is."""
    if state.loading is not Loading.AT_START or state.plan is None:
        return None
    ready, awaited = _to_begin_with(state, now)
    if awaited or any(kind in ("engine", "begin") for kind, _ in state.working):
        return None
    if state.begun is not None and _names(ready) <= state.begun:
        return None
    serves = state.engine.healthy and state.engine.answers
    may = state.begun is None or not serves or bool(state.plan.turns)
    return ready if may else None


def asks_for_turn(state: State) -> bool:
    """Whether it has to begin anew for adapters that lie ready."""
    if state.loading is not Loading.AT_START or state.begun is None:
        return False
    ready, awaited = _to_begin_with(state, math.inf)
    hopeful = tuple((a, p) for a, p in ready if _is_hopeful(state.failures.get(a.name)))
    return not awaited and not _names(hopeful) <= state.begun


def _is_hopeful(failure: Failure | None) -> bool:
    """Whether a turn is worth it; one that failed again and again may be tried in the turn of another."""
    return failure is None or (failure.attempts < _ATTEMPTS and failure.retry_at < math.inf)


def _names(ready: Ready) -> frozenset[str]:
    return frozenset(p.engine_name for _, p in ready)


def _to_begin_with(state: State, now: float) -> tuple[Ready, bool]:
    """The planned adapters whose files lie ready, and whether others are still coming that are worth waiting for."""
    served = within_room(state)
    ready: list[tuple[PlannedAdapter, Prepared]] = []
    awaited = False
    for planned in state.plan.adapters if state.plan else []:
        if planned.name not in served or is_put_off(state, planned, now):
            continue
        prepared = current(state, planned)
        if prepared is not None:
            ready.append((planned, prepared))
        else:
            # what is slow or has failed may take for ever: nobody else's adapter waits for it
            awaited = awaited or not (planned.name in state.slow or planned.name in state.failures)
    return tuple(ready), awaited
