"""Model pods whose plan is the operator's own: adapters spread over engines, real fronts, agents and Envoy.

What is left out of the way of a plan is the API server: every report wakes the planning, the plan goes to the agents as
its ConfigMap is read. Pods come and go as those of a Deployment, under names of their own.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.builders import KEYS, NAMESPACE, SETTINGS, adapter, base_model, child_of, deployment, revision
from tests.contract.agents import AgentRig, loaded
from tests.contract.engines import BASE as ENGINES_BASE
from tests.contract.engines import EngineProcess, adapters
from tests.contract.pods import ModelPods, pod_engine
from tuneyard.agent.plans import read_plan
from tuneyard.api.documents import PodReport, PoolPlan
from tuneyard.api.serving import ArtifactVolume, HostPath, LoRASettings, ServingSpec
from tuneyard.planning import children
from tuneyard.planning.agentstate import PlanChanged
from tuneyard.planning.observations import BaseModelObservation, ChildObservation, PodObservation
from tuneyard.planning.poolplan import wanted_plan
from tuneyard.planning.pools import plan_of, pools_of

_GATHERING = 0.02
_BETWEEN_PASSES = 0.2
"""Seconds; an operator has a core of its own, here planning takes turns with all agents."""
VOLUME = ArtifactVolume(name="models", host_path=HostPath(path="/var/lib/models"))


def fake_engine(places: int) -> EngineProcess:
    """A fake engine that holds so many adapters."""
    return pod_engine("fake", EngineProcess("fake", 0).base, ENGINES_BASE, max_cpu_loras=places)


class SpreadPods(ModelPods):
    """Pods that share adapters as the operator plans it; each adapter is a model of its name at the gateway."""

    def __init__(self, folder: Path, names: Sequence[str], *, pods: int, places: int, copies: int) -> None:
        volumes = folder / "artifacts"
        for name in names:
            shutil.copytree(adapters() / "adapter-a", volumes / "models" / "adapters" / name)
        super().__init__(folder, [fake_engine(places) for _ in range(pods)], places, volumes=volumes)
        lora = LoRASettings(max_cpu_loras=places, copies=copies)
        self._base = base_model(ENGINES_BASE, serving=ServingSpec(artifact_volumes=[VOLUME], replicas=pods, lora=lora))
        self._adapters = tuple(adapter(name, base=ENGINES_BASE) for name in names)
        self._deployments = tuple(deployment(n, revisions=[revision("v1", n, base=ENGINES_BASE)]) for n in names)
        self._config_map: ChildObservation | None = None
        self._plan: PoolPlan | None = None
        self._woken = asyncio.Event()
        self._routing = False
        self._told: dict[str, PoolPlan | None] = {}
        self.longest_pass = 0.0
        """Seconds."""

    @property
    def planned(self) -> PoolPlan:
        """The plan as it stands."""
        assert self._plan is not None
        return self._plan

    def places(self) -> dict[str, frozenset[str]]:
        """The pods that the plan names for each adapter."""
        return {a.name: frozenset(a.pods or ()) for a in self.planned.adapters}

    def having(self) -> dict[str, frozenset[str]]:
        """The pods that offer each adapter."""
        offered = [(rig.settings.pod, loaded(rig.report)) for rig in self.rigs if rig.published]
        return {
            a.metadata.name: frozenset(p for p, names in offered if a.metadata.name in names) for a in self._adapters
        }

    def settled(self, copies: int) -> bool:
        """Whether the plan knows the pods, and every adapter is on as many as it should be and on no other."""
        staying = sorted(r.settings.pod for r in self.rigs if r.settings.address not in self.leaving)
        known = self._plan is not None and self.planned.pods == staying
        places = self.places() if known else {}
        return known and all(len(p) == copies and places.get(name) == p for name, p in self.having().items())

    async def until_settled(self, copies: int, within: float = 120.0) -> float:
        """Wait until it is; returns the seconds that it took."""
        began = time.monotonic()
        while not self.settled(copies):
            assert time.monotonic() - began < within, f"not settled after {within} s: {self.having()}"
            await asyncio.sleep(0.05)
        return time.monotonic() - began

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        # as a Deployment makes its pods: all are there before the first of them serves
        planning = asyncio.create_task(self._plan_for_ever(), name="planning")
        self._stack.callback(planning.cancel)
        self._woken.set()
        await self.gateway.serve()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)

    def _route(self, _: PodReport | None = None) -> None:
        """As gateways do it: all that has changed within some milliseconds at once."""
        self._woken.set()
        if not self._routing:
            self._routing = True
            asyncio.get_running_loop().call_later(_GATHERING, self._route_now)

    def _route_now(self) -> None:
        self._routing = False
        super()._route()

    async def start(self, engine: EngineProcess) -> AgentRig:
        rig = await super().start(engine)
        self._woken.set()
        return rig

    async def _plan_for_ever(self) -> None:
        """Pass after pass, as soon as somebody has said something new."""
        while True:
            await self._woken.wait()
            await asyncio.sleep(_BETWEEN_PASSES)
            self._woken.clear()
            rigs = list(self.rigs)
            began = time.monotonic()
            config_map, wait = await asyncio.to_thread(
                self._pass, [_observed(rig, rig.settings.address in self.leaving) for rig in rigs]
            )
            self.longest_pass = max(self.longest_pass, time.monotonic() - began)
            if wait is not None:
                asyncio.get_running_loop().call_later(wait, self._woken.set)
            before, self._config_map = self._config_map, child_of(config_map)
            if before is not None and before.content_hash == self._config_map.content_hash:
                continue
            self._plan = plan_of(self._config_map)
            for rig in rigs:
                plan = read_plan(config_map, rig.settings.pod)
                if plan is not None and plan != self._told.get(rig.settings.pod):
                    self._told[rig.settings.pod] = plan
                    rig.agent.knowledge.tell(PlanChanged(plan))

    def _pass(self, pods: Iterable[PodObservation]) -> tuple[children.Json, float | None]:
        observed = BaseModelObservation(
            base=self._base,
            deployments=self._deployments,
            adapters=self._adapters,
            pods=tuple(pods),
            children=(),
            siblings=(self._base,),
            keys=KEYS,
            settings=SETTINGS,
            now=datetime.now(UTC),
        )
        (pool,) = pools_of(self._base, self._deployments)
        wanted = wanted_plan(observed, pool, self._config_map, children.pool_deployment(pool, self._base, SETTINGS))
        return children.pool_plan(pool, self._base, wanted.plan, wanted.marks, None), min(wanted.waits, default=None)


def _observed(rig: AgentRig, leaving: bool) -> PodObservation:
    """The pod as its Deployment's pods are seen: ready once it has its share, and for good then."""
    report = rig.report if rig.published else None
    waits = report is None or bool(report.awaits_share) or any(a.state == "Loading" for a in report.adapters.values())
    return PodObservation(
        name=rig.settings.pod,
        uid=rig.settings.uid,
        namespace=NAMESPACE,
        pool=ENGINES_BASE,
        base_model=ENGINES_BASE,
        created="2026-01-01T00:00:00Z",
        ready=report is not None and report.engine == "Ready" and (leaving or not waits),
        deleted=leaving,
        report=report,
    )
