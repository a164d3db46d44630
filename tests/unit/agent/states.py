"""What an agent knows, as the events that it learned it from."""

from __future__ import annotations

from tuneyard.api.documents import PlannedAdapter, PoolPlan
from tuneyard.api.sources import Source, VolumeSource
from tuneyard.planning.agentlearning import learned
from tuneyard.planning.agentstate import Event, PlanChanged, State


def planned(name: str, digest: str | None = None, path: str = "") -> PlannedAdapter:
    return PlannedAdapter(name=name, source=Source(volume=VolumeSource(name="m", path=path or name)), digest=digest)


def plan(*adapters: PlannedAdapter) -> PlanChanged:
    return PlanChanged(PoolPlan(pool="p", base_model="base", adapters=list(adapters)))


def after(*events: Event, state: State | None = None, room: int = 4) -> State:
    state = state or State("10.0.0.1:8080", "base", room)
    for event in events:
        state = learned(state, event)
    return state
