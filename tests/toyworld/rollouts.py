"""One ModelDeployment, its pods and two gateways in memory, for histories of its rollout; the operator is one pass.

Rules, as in the real thing: a gateway serves what it last saw; a status is written onto the version that it was planned
from; the record is an object of its own, and what is deleted and created again has another uid and no status. Every
revision `vN` serves the adapter `vN` in the shared pool; `own` ones have pods of their own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from tests.builders import (
    T0,
    VOLUME,
    Situation,
    adapter,
    base_model,
    child_of,
    deployment,
    digest,
    failed,
    loaded,
    pod,
    revision,
)
from tests.toyworld.asking import Asking
from tests.toyworld.counting import Counting
from tests.toyworld.gates import Gates
from tuneyard.api import names
from tuneyard.api.documents import AppliedDeployment, AppliedReport
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.answers import AnswersView
from tuneyard.planning.contents import content_hashes
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import ChildObservation, PodObservation, Problem
from tuneyard.planning.plan import Apply, Delete, Event, Plan
from tuneyard.planning.podreport import source_mark
from tuneyard.planning.pools import pool_of
from tuneyard.planning.revisions import revision_states
from tuneyard.planning.routes import ModelRoutes, model_routes

STEPS = [{"weight": 5, "hold": "5m"}, {"weight": 25, "hold": "10m"}]
PROGRESSIVE = {"mode": "Progressive", "steps": STEPS, "progressDeadline": "20m"}
GATEWAYS = ("g1", "g2")
WHOLE = {"v1": 0, "v2": 100}
_BASE = base_model(serving=ServingSpec(artifact_volumes=[VOLUME]))


@cache
def _adapter(name: str, contents: str) -> LoRAAdapterResource:
    """What is stored of an adapter with these contents; worlds of hundreds of passes look at it again and again."""
    stored = adapter(name, status=LoRAAdapterStatus(digest=digest(name)))
    return stored.model_copy(update={"spec": adapter(name, digest=contents).spec})


@dataclass
class RolloutWorld:
    """Begins with v1 at 100 %, stable and confirmed by both gateways."""

    rollout: dict[str, Any] = field(default_factory=lambda: dict(PROGRESSIVE))
    clock: datetime = T0
    ready: dict[str, bool] = field(default_factory=lambda: {"v1": True})
    broken: dict[str, Reason] = field(default_factory=dict)
    """Adapters that no pod can load."""
    lasting: bool | None = True
    """What pods say of how often they have tried those."""
    crashing: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)
    """Revisions with pods of their own."""
    editions: dict[str, int] = field(default_factory=dict)
    """Adapters that were replaced by another one of the same name: how often."""
    fetched: dict[str, int] = field(default_factory=dict)
    """Which of these pods know of, and have loaded."""
    events: list[Event] = field(default_factory=list)
    record: ChildObservation | None = None
    evidence: ChildObservation | None = None
    counting: dict[str, Counting] = field(default_factory=lambda: {name: Counting(name) for name in GATEWAYS})
    """What each gateway counts of answers."""
    old_gateways: bool = False
    """Gateways that do not say whose contents they count and serve."""
    gates: Gates = field(default_factory=Gates)
    asking: Asking = field(default_factory=Asking)
    """What Prometheus answers, where the rollout has checks of it."""
    stored: ModelDeploymentResource | None = None
    views: dict[str, ModelRoutes] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    _version: int = 0

    def __post_init__(self) -> None:
        self.spec({"v1": 100})
        self.settle()
        self.events.clear()

    # -- what users do ---------------------------------------------------------------------------------------------

    def spec(self, traffic: dict[str, int], listed: list[str] | None = None, **rollout: Any) -> None:
        """Apply a spec with these weights; every revision in `traffic` is listed, or exactly those in `listed`."""
        self.rollout = {k: v for k, v in {**self.rollout, **rollout}.items() if v is not None}
        revisions = [
            revision(n, n, serving=ServingSpec() if n in self.own else None) for n in listed or sorted(traffic)
        ]
        before = self.stored
        wanted = deployment(
            revisions=revisions,
            traffic={n: w for n, w in traffic.items() if n in [r.name for r in revisions]},
            rollout=RolloutSpec.from_dict(self.rollout) if self.rollout else None,
        )
        if before is not None and before.spec == wanted.spec:
            return
        meta = before.metadata if before else wanted.metadata
        status = before.status if before else ModelDeploymentStatus()
        generation = (before.metadata.generation if before else 0) + 1
        self._store(wanted.model_copy(update={"metadata": meta.model_copy(update={"generation": generation})}), status)

    def command(self, action: str, revision: str | None = None, id_: str = "one", contents: str | None = None) -> None:
        """Set the annotation."""
        known = self.now
        named = {key: value for key, value in (("revision", revision), ("contentHash", contents)) if value}
        text = json.dumps({"id": id_, "action": action, **named})
        meta = known.metadata.model_copy(update={"annotations": {names.ANNOTATION_COMMAND: text}})
        self._store(known.model_copy(update={"metadata": meta}), known.status)

    def lose_status(self) -> None:
        self._store(self.now, ModelDeploymentStatus())

    def recreate(self) -> None:
        """A forced sync: another uid, the same spec and annotations, no status."""
        known = self.now
        self.gates.orphaned(known.metadata.uid)
        meta = known.metadata.model_copy(update={"uid": f"uid-{self._version}"})
        self._store(known.model_copy(update={"metadata": meta}), ModelDeploymentStatus())

    def replace(self, name: str) -> None:
        """The adapter is deleted and created with other contents, and loaded at once."""
        self.editions[name] = self.fetched[name] = self.editions.get(name, 0) + 1

    # -- what goes on ----------------------------------------------------------------------------------------------

    def wait(self, minutes: float) -> None:
        self.clock += timedelta(minutes=minutes)

    def gateway(self, name: str) -> None:
        """A gateway sees the newest state of everything."""
        self.views[name] = self.routes()

    def routes(self) -> ModelRoutes:
        """What a gateway serves that sees just this state."""
        return model_routes(self.now, self.adapters(), (_BASE,), self._pods(self.now))

    @property
    def traffic(self) -> dict[str, int]:
        """What the spec gives each revision."""
        return {r.name: self.now.spec.weight_of(r.name) for r in self.now.spec.revisions}

    def reconcile(self, *, crash: bool = False) -> Plan:
        """One pass; `crash`: it ends between its actions and its status, whichever comes first."""
        known = self.now
        plan = self.plan = plan_modeldeployment(self.situation().deployment())
        if not plan.status_first:
            self._execute(plan)
        said = plan.status_first or not crash
        if said and isinstance(plan.status, ModelDeploymentStatus) and plan.status != known.status:
            self._store(known, ModelDeploymentStatus.from_dict(plan.status.to_dict()))
            self.events += plan.events
        if plan.status_first and not crash:
            self._execute(plan)
        return plan

    def _execute(self, plan: Plan) -> None:
        for action in plan.actions:
            if self.gates.takes(action):
                self.gates.execute(action, self.clock)
            elif isinstance(action, Apply):
                self._version += 1
                obj = json.loads(json.dumps(action.object))
                obj["metadata"]["resourceVersion"] = str(self._version)
                self._put(obj["metadata"]["name"], child_of(obj))
            elif isinstance(action, Delete):
                self._put(action.name, None)

    def settle(self) -> RolloutStatus:
        """Operator and gateways until nothing changes; no time passes."""
        for _ in range(60):
            before = (self.stored, dict(self.views), self.record, self.evidence, dict(self.gates.objects))
            self.reconcile()
            self.views = dict.fromkeys(GATEWAYS, self.routes())
            if before == (self.stored, self.views, self.record, self.evidence, self.gates.objects):
                return self.status
        raise AssertionError(f"not quiet: {self.status}")

    # -- looking at it ---------------------------------------------------------------------------------------------

    @property
    def now(self) -> ModelDeploymentResource:
        assert self.stored is not None
        return self.stored

    @property
    def status(self) -> RolloutStatus:
        return self.now.status.rollout or RolloutStatus()

    @property
    def weights(self) -> dict[str, int]:
        """What the status says is served."""
        return {t.revision: t.weight for t in self.now.status.traffic if t.weight}

    @property
    def conditions(self) -> dict[str, tuple[str, str]]:
        return {c.type: (c.status, c.reason) for c in self.now.status.conditions}

    def adapters(self) -> tuple[LoRAAdapterResource, ...]:
        return tuple(_adapter(r.name, self._bytes(r.name, self.editions)) for r in self.now.spec.revisions)

    def situation(self) -> Situation:
        deployed = self.now
        return Situation(
            bases=(_BASE,),
            adapters=self.adapters(),
            deployments=(deployed,),
            pods=tuple(self._pods(deployed)),
            children=tuple(child for child in (self.record, self.evidence) if child),
            applied=tuple(
                AppliedReport(
                    gateway=name,
                    version=1,
                    deployments={
                        "/".join(deployed.metadata.key): AppliedDeployment(
                            uid=view.uid,
                            generation=view.generation,
                            weights=view.weights,
                            contents={} if self.old_gateways else view.contents,
                        )
                    },
                )
                for name, view in sorted(self.views.items())
            ),
            gateways_expected=len(GATEWAYS),
            answers=self._answers(deployed),
            gates=self.gates.seen_by(deployed, self.clock),
            checks=self.asking.seen_by(deployed),
            settings=self.asking.settings,
            demand=self.gates.demand(deployed),
            now=self.clock,
        )

    def _answers(self, deployed: ModelDeploymentResource) -> AnswersView:
        """Gateways that judge what the spec names."""
        analysis, meta = deployed.spec.analysis, deployed.metadata
        if analysis is None:
            return AnswersView((), len(GATEWAYS))
        views = {n: {} if self.old_gateways or n not in self.views else self.views[n].contents for n in self.counting}
        told = (c.heard(meta.key, meta.uid, analysis.slo, self.clock, views[n]) for n, c in self.counting.items())
        return AnswersView(tuple(h for h in told if h is not None), len(GATEWAYS))

    def _put(self, name: str, child: ChildObservation | None) -> None:
        if name == names.rollout_evidence(self.now.metadata.name):
            self.evidence = child
        else:
            self.record = child

    def _pods(self, deployed: ModelDeploymentResource) -> list[PodObservation]:
        """A pod of the shared pool with all that are loaded there, and one of each own pool."""
        shared = [r.name for r in deployed.spec.revisions if r.name not in self.own]
        reports = {
            n: failed(why.value, "as the test has it", lasting=self.lasting).model_copy(
                update={"source": source_mark(adapter(n).spec.source), "wished": self._bytes(n, self.fetched)}
            )
            for n, why in self.broken.items()
            if n in shared
        }
        up = [n for n in shared if self.ready.get(n) and n not in self.broken]
        reports |= {n: loaded(n, digest=digest(f"{n}-{self.fetched[n]}")) for n in up if n in self.fetched}
        found = [pod("a", *up, reports=reports)]
        for listed in deployed.spec.revisions:
            name = listed.name
            if name not in self.own:
                continue
            crash = Problem(Reason.ENGINE_CRASHED, "engine ended with exit code 1 (OOMKilled) after 3 restarts")
            serving = [name] if self.ready.get(name) and name not in self.crashing else []
            found.append(
                pod(
                    f"own-{name}",
                    *serving,
                    pool=pool_of(deployed, listed),
                    engine="Ready" if serving else "Starting",
                    problem=crash if name in self.crashing else None,
                )
            )
        return found

    @staticmethod
    def _bytes(name: str, editions: dict[str, int]) -> str:
        edition = editions.get(name, 0)
        return digest(f"{name}-{edition}" if edition else name)

    def _store(self, resource: ModelDeploymentResource, status: ModelDeploymentStatus) -> None:
        self._version += 1
        meta = resource.metadata.model_copy(update={"resource_version": str(self._version)})
        self.stored = resource.model_copy(update={"metadata": meta, "status": status})


def canary(traffic: dict[str, int] | None = None, **rollout: Any) -> RolloutWorld:
    """v1 is stable, v2 is loaded and has just been given weight."""
    world = RolloutWorld()
    world.ready["v2"] = True
    world.spec(traffic or WHOLE, **rollout)
    world.settle()
    return world


def finished(**rollout: Any) -> RolloutWorld:
    """v2 has held both steps."""
    world = canary(**rollout)
    later(world, 5)
    later(world, 10)
    return world


def reasons(world: RolloutWorld) -> list[str]:
    return [e.reason.value for e in world.events if e.reason is not Reason.WEIGHT_CHANGED]


def later(world: RolloutWorld, minutes: float) -> RolloutStatus:
    world.wait(minutes)
    return world.settle()


def rejected(world: RolloutWorld) -> list[tuple[str, str]]:
    return [(v.revision, v.reason) for v in world.status.verdicts or ()]


def hashes(world: RolloutWorld) -> dict[str, str | None]:
    """What each revision is now."""
    return content_hashes(revision_states(world.situation().deployment(), world.now))
