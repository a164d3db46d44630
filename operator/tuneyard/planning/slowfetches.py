"""Fetches that have taken long: nobody waits for them but who asked for them.

A pod fetches two artifacts at a time over the network, for all tenants of its pool. Rules:
- a fetch is slow after SLOW_AFTER seconds, for whatever reason: the artifact is large, its source is slow, or another
  pod has it in hand;
- a slow one keeps its place in the pod while nobody else waits for one, and gives it up to who is not slow; what has
  come stays in the cache and is gone on from;
- a pod's readiness does not wait for it (podspec.py);
- that lasts until it is there, or the plan asks for something else;
- a fetch for which the plan does not ask any more ends, slow or not: its place is another one's.
"""

from __future__ import annotations

from tuneyard.api.documents import PlannedAdapter
from tuneyard.planning.agentstate import State, current, is_put_off, within_room

SLOW_AFTER = 120.0
"""Seconds."""


def is_wanted(state: State, planned: PlannedAdapter) -> bool:
    """Whether what is fetched for this entry of a plan, maybe of an earlier one, is still what the plan asks for."""
    plan = state.plan
    return plan is None or any(a.name == planned.name and a.source == planned.source for a in plan.adapters)


def gives_way(state: State, planned: PlannedAdapter, now: float) -> bool:
    """Whether the fetch for this entry ends: nobody wants it any more, or it is slow and another one waits."""
    if not is_wanted(state, planned):
        return True
    if planned.name not in state.slow or state.plan is None:
        return False
    served = within_room(state)
    return any(
        a.source.is_remote
        and a.name in served
        and a.name not in state.slow
        and ("adapter", a.name) not in state.working
        and not is_put_off(state, a, now)
        and current(state, a) is None
        for a in state.plan.adapters
    )
