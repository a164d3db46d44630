"""From what a gateway knows to what its Envoy does, and back: which weights are really in force.

Rules:
- a change marks models; marked models are computed and sent together, once, in the next turn of the event loop: a burst
  of pod reports costs one push, a single edit waits for nothing;
- a model whose routes come out the same is not sent;
- a deployment counts as applied when Envoy has acknowledged the routes that were computed from that generation, also
  when they are the same bytes as before;
- the report's version grows with every change of what is applied, so that the operator can wait for the next one.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial

from tuneyard.api.documents import AppliedDeployment, AppliedReport
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.versions import Version
from tuneyard.gateway.world import World
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.envoy.ads import AdsServer
from tuneyard.systems.envoy.outside import SYSTEM_CA
from tuneyard.systems.envoy.translate import (
    LIST,
    EngineKey,
    GateToken,
    ModelResources,
    list_resources,
    model_resources,
)

Listing = Callable[[Iterable[ModelRoutes]], ModelResources]

_log = logging.getLogger(__name__)


class Publisher:
    """Keeps Envoy at what the world says."""

    def __init__(
        self,
        name: str,
        world: World,
        key: EngineKey,
        metrics: Metrics,
        gate_token: GateToken | None = None,
        *,
        listing: Listing = list_resources,
        authority: str = "",
        tls_expected: bool = False,
        authorities: str = SYSTEM_CA,
    ) -> None:
        """`name`: the gateway's, for its report; `key` derives engine keys, `gate_token` the tokens of gates.

        `listing` makes the answer to GET /v1/models; `authority`: who signs the certificates of pods, in PEM;
        `tls_expected`: pods are to take TLS; `authorities`: a file of Envoy's, who signs for external APIs.
        """
        self._name = name
        self._world = world
        self._listing = listing
        self._resources = partial(
            model_resources,
            key=key,
            gate_token=gate_token,
            authority=authority,
            tls_expected=tls_expected,
            authorities=authorities,
        )
        self._metrics = metrics
        self.ads = AdsServer(self._acknowledged)
        self.on_change: Callable[[str], None] = lambda _: None
        """Gets the name of a model whose routes are others, or have come into force."""
        self.before_publish: Callable[[], None] = lambda: None
        """Called before what has changed is sent: others may put theirs beside it."""
        self._routes: dict[str, ModelRoutes] = {}
        self._marked: set[str] = set()
        self._scheduled = False
        self._open = False
        self._unconfirmed: set[str] = set()
        self._applied: dict[str, tuple[str, AppliedDeployment]] = {}
        """By model: `namespace/name` of its deployment, and what of it is in force."""
        self._told: dict[str, AppliedDeployment] = {}
        self._version = Version()

    # -- to Envoy ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to send: the world is complete enough to serve from. Once is enough."""
        if not self._open:
            self._open = True
            self.mark(self._world.models())
            self._flush()

    @property
    def opened(self) -> bool:
        """Whether Envoy is being fed."""
        return self._open

    def mark(self, models: Iterable[str]) -> None:
        """The routes of these models may be others now."""
        self._marked.update(models)
        if self._marked and self._open and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        marked, self._marked = self._marked, set()
        now = asyncio.get_running_loop().time()
        before = set(self._routes)
        for model in sorted(marked):
            self._send(model, self._world.routes(model, now))
        if self._routes.keys() != before or not self.ads.has(LIST):
            self.ads.put(LIST, self._listing(self._routes.values()))
        self.before_publish()
        self.ads.publish()
        self._confirm()

    def _send(self, model: str, routes: ModelRoutes | None) -> None:
        if routes == self._routes.get(model):
            return
        self._metrics.pushes.inc()
        if routes is None:
            del self._routes[model]
            self.ads.drop(model)
        else:
            self._routes[model] = routes
            self.ads.put(model, self._resources(routes))
        self._unconfirmed.add(model)
        self.on_change(model)

    # -- from Envoy ----------------------------------------------------------------------------------------------

    def _acknowledged(self) -> None:
        self._metrics.refusals.set(self.ads.refusals)
        self._confirm()

    def _confirm(self) -> None:
        """Take up what has come into force."""
        confirmed = {model for model in self._unconfirmed if self.ads.in_force(model)}
        if not confirmed:
            return
        self._unconfirmed -= confirmed
        for model in sorted(confirmed):
            self._applied.pop(model, None)
            routes = self._routes.get(model)
            if routes is not None:
                # last in, so that of a deployment's old and new model name the new one is told
                held = [r.name for r in routes.revisions if r.held]
                applied = AppliedDeployment(
                    uid=routes.uid,
                    generation=routes.generation,
                    weights=routes.weights,
                    contents=routes.contents,
                    held=held,
                    lacking={r.name: r.external.lacks for r in routes.revisions if r.external and r.external.lacks},
                )
                self._applied[model] = (f"{routes.namespace}/{routes.deployment}", applied)
            self.on_change(model)
        told = dict(self._applied.values())
        if told != self._told:
            self._told = told
            self._version.grow()

    def report(self) -> AppliedReport:
        """What is in force now."""
        return AppliedReport(gateway=self._name, version=self._version.number, deployments=dict(self._told))

    async def report_after(self, version: int, within: float) -> AppliedReport:
        """The report as soon as its version is another than `version`, or after `within` seconds."""
        await self._version.other_than(version, within)
        return self.report()

    def routes(self, model: str) -> ModelRoutes | None:
        """The routes of a model as Envoy should have them."""
        return self._routes.get(model)

    def model_of(self, deployment: str) -> ModelRoutes | None:
        """What is routed of a ModelDeployment (`namespace/name`)."""
        return next((r for r in self._routes.values() if f"{r.namespace}/{r.deployment}" == deployment), None)

    @property
    def routed(self) -> dict[str, frozenset[str]]:
        """The revisions of each ModelDeployment (`namespace/name`) that is routed."""
        return {f"{r.namespace}/{r.deployment}": frozenset(r.weights) for r in self._routes.values()}

    @property
    def models(self) -> int:
        """How many models are routed."""
        return len(self._routes)
