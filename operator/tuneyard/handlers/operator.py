"""The operator, put together: what watches, who leads, what works, and in which order they start and end.

Rules:
- start: everything is watched at once, also while another replica leads, so that a takeover finds the informers warm;
- keys are worked on only while this process leads, and only after every first list has come and every gateway has
  answered (or failed to): planning from half a view would rewrite what is right;
- a lost lease ends the process at once, without any tidying up: somebody else is writing already;
- an orderly end finishes the passes under way, then gives the lease up.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.handlers.events import EventSource
from tuneyard.handlers.health import Health, HealthServer
from tuneyard.planning.observations import EngineKeys
from tuneyard.planning.settings import Settings
from tuneyard.runtime.checking import Checking
from tuneyard.runtime.execute import Executor
from tuneyard.runtime.gateways import Gateways, gateway_addresses
from tuneyard.runtime.growing import Growing
from tuneyard.runtime.keys import Key
from tuneyard.runtime.looking import Looking
from tuneyard.runtime.metrics import Metrics
from tuneyard.runtime.queue import WorkQueue
from tuneyard.runtime.reconcile import Reconciler
from tuneyard.runtime.scaling import Scaling
from tuneyard.runtime.wakes import Wakes
from tuneyard.runtime.workers import Workers
from tuneyard.runtime.world import CONFIG_MAP, World
from tuneyard.systems.kube.client import Api, ApiError
from tuneyard.systems.kube.events import Events
from tuneyard.systems.kube.lease import LeaderLease

_log = logging.getLogger(__name__)

LEASE = "tuneyard-operator"
_GATEWAYS_SECONDS = 3.0
_PASSES_SECONDS = 10.0
_RENEWAL_SECONDS = 7.0


class Operator:
    """One operator process."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        master: bytes,
        *,
        identity: str,
        health_port: int,
        gateways: Mapping[str, str] | None = None,
        on_lost: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        """`gateways`: name -> host:port, in place of the pods of Tuneyard's namespace."""
        self._api = api
        self._fixed_gateways = gateways
        self._on_lost = on_lost
        self.stopping = threading.Event()
        self._working = threading.Event()
        self.metrics = Metrics()
        self.queue = WorkQueue()
        self.world = World(api, settings)
        self.wakes = Wakes(self.world, self.queue.add, self.queue.add_all)
        self.lease = LeaderLease(api, settings.tuneyard_namespace, LEASE, identity)
        self._events = Events(api, identity)
        growing, scaling = Growing(self.world), Scaling(self.world)
        looking = Looking(self.world, self.queue.add_after)
        self._gateways = Gateways(
            names.observe_token(master),
            self._on_gateways,
            # where an apply fails the status does not say what is wanted: the load would wake the base every second
            lambda asked: self.queue.not_failing([*growing.concerned(asked), *scaling.concerned(asked)]),
            looking.concerns,
        )
        self._checks = Checking(settings.prometheus, self._deployment, looking.concerns, self.world.evidence)
        self._kopf = EventSource(self._shown, self._on_missed)
        executor = Executor(api, self._events, self.world.applied, self.metrics, self.lease.holds)
        self._reconciler = Reconciler(
            api,
            self.world,
            self.wakes,
            executor,
            keys=EngineKeys(master),
            settings=settings,
            gateways=self._gateways.view,
            checks=self._checks.of,
        )
        self._workers = Workers(self.queue, self._reconciler.reconcile, self.metrics)
        ages = {resource: informer.age for resource, informer in self.world.informers().items()}
        self.metrics.watch_ages(ages)
        self.metrics.drifts(self.world.drifts)
        self.metrics.statuses(self.world.statuses)
        self.metrics.queue(self.queue.__len__, self.queue.oldest)
        health = Health(ages, self._api_answers, self.world.synced)
        self.health = HealthServer(health_port, health, self.metrics.registry)
        self.world.gateways.listen(lambda _change, _pod: self._follow_gateways())
        self.world.deployments.informer.listen(self._checks.changed)
        self.world.children[CONFIG_MAP].informer.listen(self._checks.recorded)

    def run(self) -> None:
        """Work until `stopping` is set."""
        self.health.start()
        self.world.start()
        self._events.start()
        self._kopf.start()
        keeper = threading.Thread(target=self._lead, name="lease", daemon=True)
        keeper.start()
        self.stopping.wait()
        ended = self._workers.stop(_PASSES_SECONDS) if self._working.is_set() else True
        # a renewal that is under way would take the lease back
        keeper.join(_RENEWAL_SECONDS)
        self._end(ended)

    def _lead(self) -> None:
        """Wait for the lease and for a whole view, then let the workers begin; renew until the end."""
        if not self.lease.acquire(self.stopping):
            return
        self.metrics.leader.set(1)
        threading.Thread(target=self._begin, name="begin", daemon=True).start()
        self.lease.keep(self.stopping, self._on_lost)

    def _begin(self) -> None:
        began = time.monotonic()
        while not self.world.wait_synced(1.0):
            if self.stopping.is_set():
                return
        self._follow_gateways()
        while not self._gateways.answered() and time.monotonic() - began < _GATEWAYS_SECONDS:
            self.stopping.wait(0.05)
        if self.stopping.is_set():
            return
        self._working.set()
        self.queue.add_all(self.wakes.everything())
        self._workers.start()
        self._checks.start(self.wakes.deployments())
        _log.info("working, %.1f s after the lease was taken", time.monotonic() - began)

    def _end(self, ended: bool) -> None:
        if not ended:
            _log.warning("passes are still under way; the lease runs out by itself")
        else:
            self.lease.release()
        self._gateways.stop()
        self._checks.stop()
        self._kopf.stop()
        self._events.stop()
        self.world.stop()
        self.health.stop()

    def _deployment(self, namespace: str, name: str) -> ModelDeploymentResource | None:
        return self.world.deployments.get(namespace, name) if self.world.in_scope(namespace) else None

    # -- what wakes ------------------------------------------------------------------------------------------------

    def _shown(self, key: Key, resource_version: str) -> bool:
        """Whether the informers show this version, or a newer one, of what exists; they have woken its key then."""
        seen = self.world.raw(key)
        if seen is None:
            return False
        version = str(seen["metadata"].get("resourceVersion"))
        newer = version.isdecimal() and resource_version.isdecimal() and int(version) >= int(resource_version)
        return newer or version == resource_version

    def _on_missed(self, key: Key) -> None:
        """An informer did not show what kopf saw: look at it, and at the API server's own word."""
        if self.world.in_scope(key.namespace):
            self._reconciler.distrust(key)
            self.queue.add(key)

    def _on_gateways(self, changed: Iterable[Key] | None) -> None:
        if self._working.is_set():
            keys = self.wakes.deployments() if changed is None else changed
            self.queue.add_all(keys)

    def _follow_gateways(self) -> None:
        # only who leads asks: an answer is of use to nobody else
        if self.lease.holds():
            found = self._fixed_gateways
            self._gateways.follow(gateway_addresses(self.world.gateways.items()) if found is None else found)

    def _api_answers(self) -> bool:
        try:
            self._api.request("GET", "/version", timeout=(2.0, 2.0))
        except ApiError as error:
            return not error.unreachable
        return True
