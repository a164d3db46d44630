"""Everything that takes part when an adapter idles and comes back, each as a process of its own or as it is: operator,
gateway, Envoy, API server, and a pod of agent, front and fake engine; only the kubelet's work is done by hand.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from models.tiny import build_tiny
from tests.contract import envoy
from tests.contract.agents import AgentRig, loaded
from tests.contract.apiserver import ApiServer
from tests.contract.engines import BASE, adapters
from tests.contract.fakegateway import MASTER
from tests.contract.gateway_process import GatewayProcess
from tests.contract.operator_process import (
    BASE_SPEC,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
)
from tests.contract.pods import pod_engine
from tests.contract.ports import PODS_ON_LOOPBACK
from tuneyard.agent.plans import follow_plan
from tuneyard.api import names
from tuneyard.api.documents import PodReport
from tuneyard.systems.kube.client import MERGE

TIMEOUT = 3
"""Seconds."""
_PRELUDE = f"""{PODS_ON_LOOPBACK}
from tuneyard.planning import idling
idling.LEAST_IDLE = {TIMEOUT}
"""
"""The operator, but for two things: pods are on loopback, and a test has no ten seconds."""
_BUSY = "busy"


class IdlingWorld:
    """Deployments of one adapter each on a pod; `busy` is asked all the time, the others only by a test."""

    def __init__(self, server: ApiServer, folder: Path, models: Sequence[str], *, places: int = 16) -> None:
        """`models`: of the others. `places`: how many adapters the pod holds."""
        self.cluster = Cluster(server, f"idling-{folder.name}".replace("_", "-")[:60].lower())
        settings = {"watchNamespaces": [self.cluster.namespace]}
        self.gateway = GatewayProcess(server, folder, settings=settings)
        self.operator = OperatorProcess(
            server,
            folder / "operator",
            token="operator-0",
            gateways=self.gateway.entry,
            settings=settings,
            prelude=_PRELUDE,
        )
        self.failures: list[object] = []
        """What went wrong with requests for `busy`."""
        self.busy_requests = 0
        self._server = server
        self._folder = folder
        self._models = (_BUSY, *models)
        self._places = places
        self._stack = AsyncExitStack()
        self._rig: AgentRig | None = None
        self._reports: asyncio.Queue[PodReport] = asyncio.Queue()

    @property
    def loaded(self) -> set[str]:
        """The adapters that the pod says it serves."""
        assert self._rig is not None
        return loaded(self._rig.report) if self._rig.published else set()

    def condition(self, model: str) -> tuple[str, str]:
        return self.cluster.condition("ModelDeployment", model, "Ready")

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(self._apply)
            stack.enter_context(self.operator)
            await stack.enter_async_context(self.gateway)
            await self._pod(stack)
            await self.gateway.ready()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _apply(self) -> None:
        lora = {"maxCpuLoras": self._places, "idleTimeout": f"{TIMEOUT}s"}
        serving = {**BASE_SPEC["serving"], "lora": lora}
        self.cluster.apply("BaseModel", BASE, {**BASE_SPEC, "serving": serving})
        for model in self._models:
            self.cluster.apply("LoRAAdapter", model, adapter_spec(BASE, model))
            spec = deployment_spec(BASE, {"v1": 100}, {"v1": model})
            self.cluster.apply("ModelDeployment", model, spec)

    async def _pod(self, stack: AsyncExitStack) -> None:
        """One pod with all its processes."""
        volumes = self._folder / "volumes"
        for model in self._models:
            shutil.copytree(adapters() / "adapter-a", volumes / "models" / model)
        engine = pod_engine("fake", build_tiny() / "base", BASE, self._places)
        engine.key = names.engine_key(MASTER, self.cluster.namespace, names.pool_name(BASE))
        stack.callback(engine.kill)
        await asyncio.to_thread(engine.start)
        front = await stack.enter_async_context(envoy.Front(self._folder, engine.port))
        self.cluster.pod("pod-0", BASE)
        self.cluster.verified("pod-0", "sha256:" + "ab" * 32)
        rig = AgentRig(
            engine,
            self._folder / "agent",
            max_cpu_loras=self._places,
            address=front.address,
            pod="pod-0",
            volumes=volumes,
        )
        rig.on_report = self._reports.put_nowait
        self._rig = await stack.enter_async_context(rig)
        publishing = asyncio.create_task(self._publish())
        stack.callback(publishing.cancel)
        settings = replace(rig.settings, namespace=self.cluster.namespace, pool=names.pool_name(BASE))
        informer = follow_plan(self._server.api(), settings, rig.agent.knowledge)
        stack.push_async_callback(asyncio.to_thread, informer.stop)

    async def _publish(self) -> None:
        """As the agent's own process does: the newest report onto its pod."""
        where = f"/api/v1/namespaces/{self.cluster.namespace}/pods/pod-0"
        while True:
            report = await self._reports.get()
            text = report.model_dump_json(by_alias=True, exclude_none=True)
            body = {"metadata": {"annotations": {names.ANNOTATION_ADAPTERS: text}}}
            await asyncio.to_thread(self._server.api().request, "PATCH", where, body=body, content_type=MERGE)

    async def ask(self, model: str, **more: Any) -> tuple[int, str]:
        """The status of the answer, and who it says answered or what is wrong."""
        asked = {"model": f"{self.cluster.namespace}/{model}", "messages": [{"role": "user", "content": "hi"}]}
        status, _, body = await self.gateway.rig.post({**asked, "max_tokens": 2, **more})
        return status, body.decode()

    async def keep_busy(self, stop: asyncio.Event) -> None:
        """Ask for `busy` some times a second."""
        while not stop.is_set():
            try:
                status, text = await self.ask(_BUSY)
                if status != 200:
                    self.failures.append((status, text))
            except aiohttp.ClientError as error:
                self.failures.append(error)
            self.busy_requests += 1
            await asyncio.sleep(0.2)

    async def until_idle(self, model: str, within: float = 60.0) -> float:
        """Wait until it says so and the gateway holds its requests; returns the seconds that it took.

        Before that the pod still answers, as one does that withdraws.
        """
        began = time.monotonic()
        await self.until(lambda: self.condition(model) == ("True", "Idle"), f"{model} is idle", within)
        key = f"{self.cluster.namespace}/{model}"
        await self.gateway.serves(key, lambda found: found.held == ["v1"], within)
        return time.monotonic() - began

    async def until_ready(self, *models: str) -> None:
        for model in models or self._models:
            await self.until(lambda m=model: self.condition(m) == ("True", "Ready"), f"{model} is ready")

    def said(self) -> object:
        """What everybody says, for when it is not what is expected."""
        told = {m: self.cluster.status("ModelDeployment", m) for m in self._models}
        return {"loaded": self.loaded, **told}

    async def until_awake(self, model: str) -> None:
        """Until nothing is left of its sleep."""

        def awake() -> bool:
            status = self.cluster.status("ModelDeployment", model)
            return self.condition(model) == ("True", "Ready") and "wakingSince" not in status

        await self.until(awake, f"{model} is awake")

    async def until(self, holds: Any, what: str, within: float = 60.0) -> None:
        deadline = time.monotonic() + within
        while not await asyncio.to_thread(holds):
            assert time.monotonic() < deadline, f"not within {within} s: {what}; {self.said()}"
            await asyncio.sleep(0.05)
