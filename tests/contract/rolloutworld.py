"""Operator, gateways with their Envoys and API server as processes; engines are fakes, a kubelet is played by hand.

One deployment `chat` of `stable` and `candidate` on one pod, with traffic; what is wrong with the candidate is put into
its answers by its gateways, as a rehearsal does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.contract.apiserver import ApiServer
from tests.contract.gateway_process import GatewayProcess, becomes, digest_of
from tests.contract.operator_process import (
    BASE_SPEC,
    Cluster,
    Object,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
)
from tests.contract.ports import PODS_ON_LOOPBACK
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Record, Traffic
from tuneyard.api import names
from tuneyard.api.drill import Fault
from tuneyard.systems.kube.client import MERGE

BASE, MODEL, STABLE, CANDIDATE, NEXT = "tiny", "chat", "stable", "candidate", "next"
REVISIONS: dict[str, str | None] = {STABLE: "one", CANDIDATE: "two", NEXT: "three"}
"""`next` is listed only by who commits it."""


class RolloutWorld:
    """`async with RolloutWorld(...) as world:`; then `stable` serves everything."""

    def __init__(self, server: ApiServer, folder: Path, rollout: Object, *, gateways: int = 2) -> None:
        self.cluster = Cluster(server, f"rollout-{folder.name}".replace("_", "-")[:50].lower().rstrip("-"))
        self.rollout = rollout
        settings = {"watchNamespaces": [self.cluster.namespace]}
        self.gateways = [
            GatewayProcess(server, folder, name=f"gateway-{n}", settings=settings) for n in range(gateways)
        ]
        self.operator = OperatorProcess(
            server,
            folder / "operator",
            gateways=",".join(g.entry for g in self.gateways),
            settings=settings,
            prelude=PODS_ON_LOOPBACK,
        )
        self.pod = Upstream("pod-0")
        self.traffics: Sequence[Traffic] = ()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.pod)
            await asyncio.to_thread(self._apply)
            stack.enter_context(self.operator)
            for gateway in self.gateways:
                await stack.enter_async_context(gateway)
            for gateway in self.gateways:
                await gateway.ready()
            await self.until(lambda r: r.get("stable") == STABLE and r.get("phase") == "Completed", "stable is stable")
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _apply(self) -> None:
        self.cluster.apply("BaseModel", BASE, BASE_SPEC)
        for adapter in filter(None, REVISIONS.values()):
            self.cluster.apply("LoRAAdapter", adapter, {**adapter_spec(BASE, adapter), "digest": digest_of(adapter)})
        self.cluster.pod("pod-0", BASE)
        self.cluster.verified("pod-0", "sha256:" + "ab" * 32)
        self.report()
        self.spec(0)

    def report(self, failed: Mapping[str, Object] | None = None) -> None:
        """The pod's agent says that it has loaded all adapters but these, and what it says of these."""
        loaded = {a: digest_of(a) for a in filter(None, REVISIONS.values())}
        self.cluster.report("pod-0", BASE, loaded, address=self.pod.address, failed=failed)

    def spec(self, candidate: int, **rollout: Any) -> None:
        """What a user applies: the candidate's weight, and changes of the rollout."""
        self.commit({STABLE: 100 - candidate, CANDIDATE: candidate}, **rollout)

    def commit(self, weights: dict[str, int], own: Object | None = None, **rollout: Any) -> None:
        """The same for any revisions; `own`: the last one's serving block, which gives it pods of its own."""
        self.rollout = {**self.rollout, **rollout}
        spec = deployment_spec(BASE, weights, REVISIONS)
        spec["revisions"][-1].update({"serving": own} if own else {})
        self.cluster.apply("ModelDeployment", MODEL, {**spec, "rollout": self.rollout})

    def spoil(self, **fault: int) -> None:
        """`errors` percent, or `delay_ms`, of the candidate's answers."""
        self._annotate(names.ANNOTATION_DRILL, Fault(revision=CANDIDATE, **fault).to_dict())

    def command(self, action: str) -> None:
        """What `tuneyard rollout` asks for, of the candidate."""
        self._annotate(names.ANNOTATION_COMMAND, {"id": action, "action": action, "revision": CANDIDATE})

    def _annotate(self, annotation: str, value: Object) -> None:
        body = {"metadata": {"annotations": {annotation: json.dumps(value)}}}
        self.cluster.api.request("PATCH", self.cluster.path("modeldeployments", MODEL), body=body, content_type=MERGE)

    async def served(self) -> list[Mapping[str, int]]:
        """The weights that each gateway's Envoy works with; revisions without any are left out."""
        key = f"{self.cluster.namespace}/{MODEL}"
        reports = [await gateway.applied() for gateway in self.gateways]
        return [{r: w for r, w in report.deployments[key].weights.items() if w} for report in reports]

    async def answered(self, count: int) -> list[Record]:
        """What became of requests that begin from now on, until so many have ended at each gateway."""
        since = time.time()
        await asyncio.gather(*(traffic.wait_for(count) for traffic in self.traffics))
        return [r for traffic in self.traffics for r in traffic.records if r.start >= since]

    async def ask_for(self, stack: AsyncExitStack, rate: float, body: Mapping[str, Any] | None = None) -> None:
        """Traffic through every gateway, until the stack's end."""
        load = Load([f"{self.cluster.namespace}/{MODEL}"], rate=rate, body=body or {"chunks": 3, "delay": 0.01})
        self.traffics = [await stack.enter_async_context(Traffic(g.url, load)) for g in self.gateways]

    async def status(self) -> Object:
        """status.rollout."""
        found = await asyncio.to_thread(self.cluster.status, "ModelDeployment", MODEL)
        rollout: Object = found.get("rollout") or {}
        return rollout

    async def until(self, holds: Callable[[Object], bool], what: str, within: float = 60.0) -> Object:
        """The first status.rollout of which that holds."""
        found: Object = {}

        async def check() -> bool:
            nonlocal found
            found = await self.status()
            return holds(found)

        try:
            await becomes(check, True, what, within)
        except AssertionError as error:
            raise AssertionError(f"{error}; {json.dumps(found, indent=1)}") from None
        return found
