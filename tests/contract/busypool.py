"""A pool under load, planned and routed by real processes: API server, operator, gateway process and Envoy.

The pods are BusyPods. In place of their agents this process reads the plan and reports what it says as loaded, LOADING
seconds for each adapter, one at a time for a pod; what is withdrawn is reported gone at once and answers on.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, becomes, digest_of, engine_name_of
from tests.contract.operator_process import BASE_SPEC, Cluster, OperatorProcess, adapter_spec, deployment_spec
from tests.fakes.busypod import BusyPod
from tuneyard.api import names
from tuneyard.api.documents import PoolPlan, plan_text

BASE = "base"
LOADING = 0.3
_LOOKING = 0.1
_DIGEST = "sha256:" + "ab" * 32


class BusyPool:
    """`async with` it: every adapter is a model of its name, and is served once the block begins."""

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        namespace: str,
        adapters: list[str],
        *,
        pods: int,
        lora: dict[str, Any],
    ) -> None:
        """`lora`: of the base's serving block."""
        self.cluster = Cluster(server, namespace)
        self.adapters = adapters
        self.pods = [BusyPod(f"pod-{n}") for n in range(pods)]
        self.gateway = GatewayProcess(
            server, folder, name=f"{namespace}-gateway", settings={"watchNamespaces": [namespace]}
        )
        self.operator = OperatorProcess(
            server,
            folder / f"{namespace}-operator",
            gateways=self.gateway.entry,
            settings={"watchNamespaces": [namespace]},
        )
        self._lora = lora
        self._loaded: dict[str, list[str]] = {p.name: [] for p in self.pods}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for pod in self.pods:
                await stack.enter_async_context(pod)
            await asyncio.to_thread(self._apply)
            stack.enter_context(self.operator)
            await stack.enter_async_context(self.gateway)
            for pod in self.pods:
                task = asyncio.create_task(self._serve(pod), name=f"agent of {pod.name}")
                stack.callback(task.cancel)
            await self.gateway.ready()
            for adapter in self.adapters:
                await becomes(partial(self.gateway.answered_by, adapter), engine_name_of(adapter), adapter, 60.0)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        return self.gateway.url

    async def plan(self) -> PoolPlan | None:
        """The plan as it is stored."""
        found = await asyncio.to_thread(self.cluster.child, f"configmaps/{names.pool_plan(BASE)}")
        text = plan_text(found or {})
        return PoolPlan.model_validate_json(text) if text else None

    async def placed(self, adapter: str) -> list[str]:
        """The pods that the plan names for an adapter."""
        plan = await self.plan()
        return next((a.pods or [] for a in plan.adapters if a.name == adapter), []) if plan else []

    def _apply(self) -> None:
        serving = {**BASE_SPEC["serving"], "replicas": len(self.pods), "lora": self._lora}
        self.cluster.apply("BaseModel", BASE, {**BASE_SPEC, "serving": serving})
        for name in self.adapters:
            self.cluster.apply("LoRAAdapter", name, {**adapter_spec(BASE, name), "digest": digest_of(name)})
            spec = deployment_spec(BASE, {"v1": 100}, {"v1": name})
            self.cluster.apply("ModelDeployment", name, {**spec, "modelName": name})
        for pod in self.pods:
            self.cluster.pod(pod.name, BASE)
            self.cluster.verified(pod.name, _DIGEST)
            self._report(pod)

    def _report(self, pod: BusyPod) -> None:
        loaded = {name: digest_of(name) for name in self._loaded[pod.name]}
        self.cluster.report(pod.name, BASE, loaded, address=pod.address)

    async def _serve(self, pod: BusyPod) -> None:
        """As its agent does."""
        while True:
            plan = await self.plan()
            wanted = [a.name for a in plan.share(pod.name).adapters] if plan else []
            mine = self._loaded[pod.name]
            staying = [name for name in mine if name in wanted]
            new = next((name for name in wanted if name not in mine), None)
            if new is not None:
                await asyncio.sleep(LOADING)
                staying.append(new)
            if staying == mine:
                await asyncio.sleep(_LOOKING)
                continue
            self._loaded[pod.name] = staying
            await asyncio.to_thread(self._report, pod)
