"""An agent at work beside an engine, with volumes and folders of a test, and everything it publishes."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.contract.engines import EngineProcess, adapters
from tests.contract.ports import free_port
from tuneyard.agent.basefiles import gguf_base_of
from tuneyard.agent.enginetold import VLLM, EngineTold
from tuneyard.agent.fetching import Shelf, read_base
from tuneyard.agent.obtaining import Obtainer
from tuneyard.agent.running import Agent, running_agent
from tuneyard.agent.settings import Settings
from tuneyard.api.documents import AdapterReport, PlannedAdapter, PodReport, PoolPlan
from tuneyard.api.sources import Source, VolumeSource
from tuneyard.planning.agentstate import PlanChanged


class AgentRig:
    """One pod's agent; `async with AgentRig(engine, folder) as rig:` runs it, and `restart` again with its memory."""

    def __init__(
        self,
        engine: EngineProcess,
        folder: Path,
        *,
        max_cpu_loras: int = 16,
        address: str = "10.0.0.1:8080",
        obtainer: Obtainer | None = None,
        pod: str = "pod-0",
        volumes: Path | None = None,
        told: EngineTold = VLLM,
        drain_timeout: float = 30.0,
    ) -> None:
        """`address`: of the pod's front, as the report names it; `volumes`: a folder that pods share.

        `obtainer` gets what comes over the network.
        """
        self._obtainer = obtainer
        self.published: list[tuple[float, PodReport]] = []
        """(monotonic time, report) in order."""
        self.on_report: Callable[[PodReport], None] = lambda _: None
        self.settings = Settings(
            pod=pod,
            namespace="default",
            uid=f"uid-of-{pod}",
            address=address,
            pool="pool",
            base_model=engine.name,
            base_path=engine.base,
            max_rank=16,
            max_cpu_loras=max_cpu_loras,
            engine=told,
            drain_timeout=drain_timeout,
            engine_key=engine.key,
            engine_url=engine.url,
            port=free_port(),
            volumes=volumes or folder / "artifacts",
            adapters=folder / "adapters",
            run=folder / "run",
            front_admin=folder / "front-admin.sock",
        )
        self.engine = engine
        self.api_there = asyncio.Event()
        self.api_there.set()
        self._agent: Agent | None = None
        self._stack = AsyncExitStack()
        self._told = asyncio.Event()
        for path in (self.settings.volumes / "models", self.settings.run):
            path.mkdir(parents=True, exist_ok=True)

    @property
    def agent(self) -> Agent:
        assert self._agent is not None
        return self._agent

    @property
    def report(self) -> PodReport:
        """What was published last."""
        return self.published[-1][1]

    def has(self, name: str, like: Path | None = None) -> PlannedAdapter:
        """A plan's entry for the adapter `name`; its files are a copy of `like` on the volume (default: adapter-a)."""
        target = self.settings.volumes / "models" / name
        if not target.exists():
            shutil.copytree(like or adapters() / "adapter-a", target, symlinks=True)
        return PlannedAdapter(name=name, source=Source(volume=VolumeSource(name="models", path=name)))

    def plan(self, *planned: PlannedAdapter) -> None:
        """This is the plan now."""
        self.follow(PoolPlan(pool="pool", base_model=self.settings.base_model, adapters=list(planned)))

    def follow(self, plan: PoolPlan) -> None:
        """The pod's share of this is its plan now."""
        self.agent.knowledge.tell(PlanChanged(plan.share(self.settings.pod)))

    async def until(self, holds: Callable[[PodReport], bool], what: str, within: float = 120.0) -> PodReport:
        """Wait for a published report of which something holds."""
        deadline = time.monotonic() + within
        while not (self.published and holds(self.report)):
            self._told.clear()
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._told.wait()
            except TimeoutError:
                last = self.report.to_dict() if self.published else None
                raise AssertionError(f"not within {within} s: {what}; published last: {last}") from None
        return self.report

    async def until_loaded(self, *names: str, within: float = 120.0) -> Mapping[str, AdapterReport]:
        """Wait until exactly these are published as loaded."""
        found = await self.until(lambda r: loaded(r) == set(names), f"loaded are {names}", within)
        return found.adapters

    async def restart(self) -> None:
        """End the agent and begin it again, with what its volume keeps."""
        await self._stack.aclose()
        self._stack = AsyncExitStack()
        await self.__aenter__()

    async def __aenter__(self) -> Self:
        settings, base = self.settings, read_base(self.settings.base_path)
        gguf = gguf_base_of(settings.base_path)
        shelf = Shelf(settings.volumes, settings.adapters, base, 16, self._obtainer, gguf=gguf)
        self._agent = await self._stack.enter_async_context(running_agent(settings, shelf, self._write))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _write(self, report: PodReport) -> None:
        await self.api_there.wait()
        self.published.append((time.monotonic(), report))
        self._told.set()
        self.on_report(report)


def loaded(report: PodReport) -> set[str]:
    """Names that requests may be sent for."""
    if report.engine != "Ready":
        return set()
    return {name for name, adapter in report.adapters.items() if adapter.state == "Loaded"}


def pinned(planned: PlannedAdapter, report: AdapterReport) -> PlannedAdapter:
    """The entry once the operator has pinned the digest that was reported."""
    return planned.model_copy(update={"digest": report.digest})
