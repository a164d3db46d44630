"""A pool that sleeps and wakes: operator, gateway, Envoy and API server are processes of their own. The kubelet's work
is done here: a pod is made when the pool's Deployment wants one and `starts` is set, and goes when it wants none.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from urllib3.exceptions import HTTPError

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, becomes
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    Object,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
)
from tests.contract.ports import PODS_ON_LOOPBACK
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.systems.kube.client import ApiError

TIMEOUT = 3
"""Seconds."""
BASE = "tiny"
DIGEST = "sha256:" + "cd" * 32
_PRELUDE = f"""{PODS_ON_LOOPBACK}
from tuneyard.planning import idling
idling.LEAST_IDLE = {TIMEOUT}
"""
"""The operator, but for two things: pods are on loopback, and a test has no ten seconds."""


class ColdPool:
    """`plain` serves the base, `tuned` an adapter, both from one pool of one pod."""

    def __init__(
        self, server: ApiServer, folder: Path, *, cold_start: Object | None = None, address: str | None = None
    ) -> None:
        """`cold_start`: routing.coldStart of `plain`; `address`: of an engine in place of `upstream`."""
        self.cluster = Cluster(server, f"cold-{folder.name}".replace("_", "-")[:60].lower())
        settings = {"watchNamespaces": [self.cluster.namespace]}
        self.gateway = GatewayProcess(server, folder, settings=settings)
        self.operator = OperatorProcess(
            server,
            folder / "operator",
            gateways=self.gateway.entry,
            settings={**settings, "tuneyardNamespace": NAMESPACE},
            prelude=_PRELUDE,
        )
        self.upstream = Upstream("engine", keep=10_000)
        self.starts = asyncio.Event()
        """Pods that are wanted come up."""
        self.reported = 0.0
        """When the newest pod said that it serves, by time.monotonic."""
        self._cold_start, self._address = cold_start, address
        self._stack = contextlib.AsyncExitStack()
        self._pods = 0

    def key(self, model: str = "plain") -> str:
        return f"{self.cluster.namespace}/{model}"

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await asyncio.to_thread(self._apply)
            stack.enter_context(self.operator)
            await stack.enter_async_context(self.upstream)
            await stack.enter_async_context(self.gateway)
            self.starts.set()
            kubelet = asyncio.create_task(self._kubelet())
            stack.callback(kubelet.cancel)
            await self.gateway.ready()
            await self.until(lambda: self.ready("plain") == ("True", "Ready"), "plain is ready")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _apply(self) -> None:
        serving = {**BASE_SPEC["serving"], "scaleToZeroAfter": f"{TIMEOUT}s"}
        self.cluster.apply("BaseModel", BASE, {**BASE_SPEC, "serving": serving})
        self.cluster.apply("LoRAAdapter", "tuned", {**adapter_spec(BASE), "digest": DIGEST})
        routing = {"routing": {"coldStart": self._cold_start}} if self._cold_start else {}
        self.cluster.apply("ModelDeployment", "plain", deployment_spec(BASE, {"v1": 100}) | routing)
        self.cluster.apply("ModelDeployment", "tuned", deployment_spec(BASE, {"v1": 100}, {"v1": "tuned"}))

    # -- the kubelet -------------------------------------------------------------------------------------------------

    @property
    def wanted(self) -> int | None:
        """Pods that the pool's Deployment wants; None: there is none."""
        found = self.cluster.child(f"apps/v1:deployments/{names.pool_deployment(names.pool_name(BASE))}")
        return None if found is None else found["spec"]["replicas"]

    async def _kubelet(self) -> None:
        has = False
        while True:
            try:
                wanted = await asyncio.to_thread(lambda: self.wanted)
            except (ApiError, HTTPError):
                wanted = None  # nobody knows while the API server is away
            if wanted and not has and self.starts.is_set():
                await asyncio.to_thread(self._start)
                has = True
            elif wanted == 0 and has:
                await asyncio.to_thread(self._end)
                has = False
            await asyncio.sleep(0.02)

    def _start(self) -> None:
        self._pods += 1
        name = f"pod-{self._pods}"
        self.cluster.pod(name, BASE)
        self.cluster.verified(name, "sha256:" + "ab" * 32)
        self.reported = time.monotonic()
        self.cluster.report(name, BASE, {"tuned": DIGEST}, address=self._address or self.upstream.address)

    def _end(self) -> None:
        path = f"/api/v1/namespaces/{self.cluster.namespace}/pods/pod-{self._pods}"
        self.cluster.api.request("DELETE", path, body={"gracePeriodSeconds": 0})

    # -- what is seen ------------------------------------------------------------------------------------------------

    def ready(self, model: str) -> tuple[str, str]:
        return self.cluster.condition("ModelDeployment", model, "Ready")

    def sleeps(self) -> bool:
        """Whether it has no pods, and everybody says so."""
        told = [self.ready("plain"), self.ready("tuned"), self.cluster.condition("BaseModel", BASE, "Ready")]
        return self.wanted == 0 and told == [("True", "Idle"), ("True", "Idle"), ("True", "Asleep")]

    async def asleep(self) -> None:
        """Until nobody has asked for long enough, its pod is gone and the gateway knows it."""
        await self.until(self.sleeps, "it sleeps")
        await self.gateway.serves(self.key(), lambda found: found.held == ["v1"])

    async def ask(self, model: str = "plain", **more: Any) -> tuple[int, str | None, bytes]:
        """Status, retry-after and body of the answer."""
        asked = {"model": self.key(model), "messages": [{"role": "user", "content": "hi"}], **more}
        status, headers, body = await self.gateway.rig.post(asked)
        return status, headers.get("retry-after"), body

    def asking(
        self, count: int, model: str = "plain", **more: Any
    ) -> list[asyncio.Task[tuple[int, str | None, bytes]]]:
        return [asyncio.create_task(self.ask(model, **more)) for _ in range(count)]

    async def holds(self, count: int) -> None:
        await becomes(self.gateway.held, count, f"{count} requests wait")

    async def until(self, holds: Callable[[], object], what: str, within: float = 60.0) -> None:
        deadline = time.monotonic() + within
        while not await asyncio.to_thread(holds):
            said = {n: self.cluster.status("ModelDeployment", n) for n in ("plain", "tuned")}
            said["base"] = self.cluster.status("BaseModel", BASE)
            assert time.monotonic() < deadline, f"not within {within} s: {what}; {self.wanted} {said}"
            await asyncio.sleep(0.05)
