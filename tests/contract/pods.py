"""Model pods and a gateway without a cluster: engines, real fronts, agents, and the real Envoy before them.

What is left out of the way of a plan is the operator; what is left out of the way of a report is the API server: each
adapter is a model of its own name, its endpoints are the pods that say in their last report that they serve it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.contract import envoy
from tests.contract.agents import AgentRig, loaded
from tests.contract.engines import EngineProcess, own_engine
from tuneyard.api.documents import PlannedAdapter, PodReport
from tuneyard.api.serving import LoRASettings
from tuneyard.planning.routes import ModelRoutes


class ModelPods:
    """Pods behind one gateway; `async with ModelPods(...) as pods:` begins with all engines up and no adapter."""

    def __init__(
        self, folder: Path, engines: Sequence[EngineProcess], max_cpu_loras: int, *, volumes: Path | None = None
    ) -> None:
        """`volumes`: a folder of artifacts that all pods share; None: each has its own."""
        self.engines = list(engines)
        self.rigs: list[AgentRig] = []
        self.gateway = envoy.Rig(folder)
        self.leaving: set[str] = set()
        """Addresses of pods that are deleted and still there: for what no other pod has (endpoints.py)."""
        self._folder = folder
        self._max_cpu_loras = max_cpu_loras
        self._volumes = volumes
        self._stack = AsyncExitStack()
        self._fronts: dict[str, envoy.Front] = {}
        self._served: dict[str, tuple[str, ...]] = {}

    @property
    def url(self) -> str:
        """The gateway's."""
        return self.gateway.url

    def plan(self, *planned: PlannedAdapter) -> None:
        """This is the plan of all pods now."""
        for rig in self.rigs:
            rig.plan(*planned)

    def has(self, name: str, like: Path) -> PlannedAdapter:
        """A plan's entry for an adapter whose files are on every pod's volume."""
        entries = [rig.has(name, like) for rig in self.rigs]
        return entries[0]

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.gateway)
        for engine in self.engines:
            await self.start(engine)
        return self

    async def start(self, engine: EngineProcess) -> AgentRig:
        """One pod more, with an engine that does not run yet."""
        name = f"pod-{len(self._fronts)}"
        folder = self._folder / name
        folder.mkdir()
        self._stack.callback(engine.kill)
        await asyncio.to_thread(engine.start)
        front = self._fronts[name] = await self._stack.enter_async_context(envoy.Front(folder, engine.port))
        rig = AgentRig(
            engine,
            folder,
            max_cpu_loras=self._max_cpu_loras,
            address=front.address,
            pod=name,
            volumes=self._volumes,
        )
        rig.on_report = self._route
        self.rigs.append(await self._stack.enter_async_context(rig))
        return rig

    async def delete(self, rig: AgentRig) -> None:
        """A pod leaves as a deleted one does, and is gone when it is drained."""
        self.leaving.add(rig.report.address)
        self._route()
        await rig.agent.drain.drain()
        await self.lose(rig)

    async def lose(self, rig: AgentRig) -> None:
        """A pod is gone at once with all that runs in it, and everybody knows."""
        rig.on_report = lambda _: None
        self.rigs.remove(rig)
        self._fronts[rig.settings.pod].envoy.stop()
        rig.engine.kill()
        self._route()
        await rig.__aexit__(None, None, None)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _route(self, _: PodReport | None = None) -> None:
        """Give the gateway what the pods' last reports say."""
        reports = [rig.report for rig in self.rigs if rig.published]
        offered = [(r.address, loaded(r)) for r in reports if r.address not in self.leaving]
        leaving = [(r.address, loaded(r)) for r in reports if r.address in self.leaving]
        known = sorted({name for r in reports for name in r.adapters})
        served = {name: _having(offered, name) or _having(leaving, name) for name in known}
        changed = [self._model(name, reports, pods) for name, pods in served.items() if self._served.get(name) != pods]
        for name in self._served.keys() - served.keys():
            self.gateway.drop(name)
        self._served = served
        if changed:
            self.gateway.put(*changed)

    @staticmethod
    def _model(name: str, reports: Sequence[PodReport], pods: tuple[str, ...]) -> ModelRoutes:
        engine = next((a.engine_name for r in reports if (a := r.adapters.get(name)) and a.engine_name), None)
        return envoy.model(name, envoy.revision("only", 100, pods, engine=engine or name))


def _having(offered: Sequence[tuple[str, set[str]]], name: str) -> tuple[str, ...]:
    return tuple(address for address, names in offered if name in names)


def pod_engine(kind: str, base: Path, name: str, max_cpu_loras: int) -> EngineProcess:
    """An engine with the key that the gateway uses, and as many slots as a pool has by default."""
    engine = own_engine(kind, "--max-loras", str(LoRASettings().max_loras), max_cpu_loras=max_cpu_loras)
    engine.base, engine.name, engine.key = base, name, envoy.engine_key("default", "base")
    return engine
