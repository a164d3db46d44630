"""The toy world's operator: executes plans as the runtime does, on an old view or with a crash if it is told to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from tests.builders import Situation
from tests.toyworld.server import Key, Resource
from tests.toyworld.world import PARTS, World
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.plan import Delete, Event, Plan

PLANS: dict[str, Callable[[Situation, str], Plan]] = {
    "BaseModel": lambda s, name: plan_basemodel(s.base_model(name)),
    "LoRAAdapter": lambda s, name: plan_loraadapter(s.adapter(name)),
    "ModelDeployment": lambda s, name: plan_modeldeployment(s.deployment(name)),
}


@dataclass
class Operator:
    """Executes plans as the runtime does; `events` is everything it told."""

    world: World
    events: list[Event] = field(default_factory=list)
    _seen: dict[Key, int] = field(default_factory=dict)
    _due: dict[Key, datetime] = field(default_factory=dict)

    def reconcile(self, key: Key, *, behind: int = 0, crash_after: int | None = None) -> Plan:
        """One pass over one object: on an old view, or ending after so many actions without a status.

        Where the status comes first it ends after that and one action less.
        """
        kind, name = key
        world = self.world
        view = replace(world.history[max(0, len(world.history) - 1 - behind)], now=world.clock)
        seen = world.changes
        plan = PLANS[kind](view, name)
        if any(isinstance(a, Delete) for a in plan.actions):
            # who deletes asks the API server itself for references and Deployments
            now, kept = world.situation(), tuple(c for c in view.children if c.kind != "Deployment")
            fresh = tuple(c for c in now.children if c.kind == "Deployment")
            view = replace(view, deployments=now.deployments, children=(*kept, *fresh))
            plan = PLANS[kind](view, name)
        said = plan.status_first and crash_after != 0 and self._say(view, key, plan)
        if said or not plan.status_first:
            for action in plan.actions[: None if crash_after is None else crash_after - said]:
                world.execute(action)
        if crash_after is not None:
            return plan
        if not plan.status_first:
            self._say(view, key, plan)
        self._seen[key] = seen
        self._due.pop(key, None)
        if plan.requeue_after is not None:
            self._due[key] = world.clock + timedelta(seconds=max(0.0, plan.requeue_after))
        return plan

    def _say(self, view: Situation, key: Key, plan: Plan) -> bool:
        """Write the status and tell the events; whether that was possible."""
        kind, name = key
        known = next((r for r in _resources(view, kind) if r.metadata.name == name), None)
        if known is None or plan.status is None or not self.world.put_status(kind, known.metadata, plan.status):
            return False
        self.events += plan.events
        return True

    def settle(self) -> None:
        """No more faults: every wake-up arrives, every part moves, time passes to what is due, until all is quiet."""
        world = self.world
        self._seen.clear()
        for _ in range(400):
            before = world.changes
            for key in sorted(world.resources):
                if (
                    self._seen.get(key) != world.changes
                    or self._due.get(key, world.clock + timedelta(1)) <= world.clock
                ):
                    self.reconcile(key)
            for part in PARTS.values():
                part(world)
            if world.changes != before or any(self._seen.get(k) != world.changes for k in world.resources):
                continue
            self._due = {k: d for k, d in self._due.items() if k in world.resources}
            if not self._due:
                return
            world.clock = max(world.clock + timedelta(seconds=1), min(self._due.values()))
            world.remember()
        raise AssertionError(f"not quiet after 400 rounds: {world.digest()}")


def _resources(view: Situation, kind: str) -> tuple[Resource, ...]:
    found: dict[str, tuple[Resource, ...]] = {
        "BaseModel": view.bases,
        "LoRAAdapter": view.adapters,
        "ModelDeployment": view.deployments,
    }
    return found[kind]
