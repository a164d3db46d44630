"""What a gateway watches: the three kinds (in all namespaces, or in those of the settings), and the metadata of model
pods in every namespace that has ModelDeployments.

Rules:
- pods are followed as metadata alone, namespace by namespace: that is all that gateways may see (their rights are bound
  in namespaces with BaseModels only, by the operator);
- pods that have ended (evicted, failed) are none, although their objects stay: a field selector leaves them out;
- the first list of each watch replaces what a snapshot said of it, watch by watch: none waits for another;
- a watch that the API server refuses (403: the rights went with the namespace's last BaseModel; 404) says nothing about
  this process: a restart would change nothing, and every gateway would be restarted at once;
- the world is complete enough to serve from when it came from a snapshot, or when every watch has listed once; one that
  is forbidden is not waited for longer than PATIENCE.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuneyard.api.names import API_VERSION, LABEL_POOL
from tuneyard.gateway.metrics import Metrics
from tuneyard.gateway.world import Kind, World, key_of
from tuneyard.systems.kube.client import Api, ApiError, Object
from tuneyard.systems.kube.informers import Informer, on_loop
from tuneyard.systems.kube.watching import Change

PATIENCE = 10.0
"""Seconds that a first list is waited for while others have come."""
STALE = 150.0
"""Seconds of silence that no working watch has: each ends after 45 s, and a bookmark comes before."""
_LOOK = 0.02
_EXAMINE = 20.0
"""Seconds between two looks at watches that say nothing."""

_PLURALS: dict[Kind, str] = {"deployment": "modeldeployments", "adapter": "loraadapters", "base": "basemodels"}
_ALIVE = "status.phase!=Failed,status.phase!=Succeeded"

_log = logging.getLogger(__name__)


@dataclass
class _Watch:
    kind: Kind
    namespace: str | None
    """None: all."""
    informer: Informer
    since: float
    listed: bool = False
    """Its first list has come, and is on its way into the world."""
    taken: bool = False
    """Its first list has replaced what was known before."""
    refused: bool = False
    """It is silent because the API server refuses it."""


class Watches:
    """Feeds the world, and says which models a change touches."""

    def __init__(
        self,
        api: Api,
        world: World,
        touched: Callable[[set[str]], None],
        *,
        namespaces: Sequence[str],
        metrics: Metrics,
    ) -> None:
        """`namespaces`: those to watch, none for all. `touched` is called in the loop's thread for every change."""
        self._api = api
        self._world = world
        self._touched = touched
        self._namespaces = namespaces
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._watches: dict[tuple[Kind, str | None], _Watch] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self.completed = asyncio.Event()
        """Set once `complete` has been seen."""
        self._running: list[asyncio.Task[None]] = []
        self._stopping: set[asyncio.Task[None]] = set()
        for kind in (*_PLURALS, "pod"):
            metrics.age(kind, functools.partial(self._age, kind))

    def start(self) -> None:
        """Begin to watch."""
        for kind in _PLURALS:
            everywhere: Sequence[str | None] = self._namespaces or (None,)
            for where in everywhere:
                self._watch(kind, where)
        self._running = [self._loop.create_task(self._follow()), self._loop.create_task(self._examine())]

    async def stop(self) -> None:
        """End all watches."""
        for task in self._running:
            task.cancel()
        if self._expiry is not None:
            self._expiry.cancel()
        informers = [watch.informer for watch in self._watches.values()]
        await asyncio.gather(*(asyncio.to_thread(i.stop) for i in informers), *self._stopping)

    @property
    def complete(self) -> bool:
        """Whether every watch has listed once, or has been forbidden to for too long."""
        now = self._loop.time()
        kinds = all(w.taken for w in self._watches.values() if w.kind != "pod")
        pods = all(w.taken or now - w.since > PATIENCE for w in self._watches.values() if w.kind == "pod")
        return kinds and pods

    def alive(self) -> bool:
        """False when a watch has been silent for too long although the API server answers others: a restart helps.

        While it answers nobody, a restart would only lose time.
        """
        if self._loop.time() - self._started < STALE:
            return True
        ages = [watch.informer.age() for watch in self._watches.values() if watch.taken and not watch.refused]
        return not ages or max(ages) < STALE or min(ages) > STALE / 3

    def _age(self, kind: Kind) -> float:
        ages = [w.informer.age() for w in list(self._watches.values()) if w.kind == kind]
        return max(ages, default=0.0)

    # -- watching ------------------------------------------------------------------------------------------------

    def _watch(self, kind: Kind, namespace: str | None) -> None:
        change = on_loop(self._loop, functools.partial(self._change, kind))
        where = f"/namespaces/{namespace}" if namespace is not None else ""
        if kind == "pod":
            informer = Informer(
                self._api,
                f"/api/v1{where}/pods",
                change,
                label_selector=LABEL_POOL,
                field_selector=_ALIVE,
                metadata_only=True,
            )
        else:
            informer = Informer(self._api, f"/apis/{API_VERSION}{where}/{_PLURALS[kind]}", change)
        self._watches[kind, namespace] = _Watch(kind, namespace, informer, self._loop.time())
        informer.start()

    async def _follow(self) -> None:
        """Take first lists as they come, and follow pods where deployments are."""
        while True:
            for watch in list(self._watches.values()):
                # what the list told is in the loop's queue when `synced` is seen, and in the world a look later
                if watch.listed and not watch.taken:
                    watch.taken = True
                    listed = [key_of(item) for item in watch.informer.items()]
                    self._tell(self._world.forget_others(watch.kind, watch.namespace, listed, self._loop.time()))
                watch.listed = watch.informer.synced
            self._follow_namespaces()
            if self.complete:
                self.completed.set()
            await asyncio.sleep(_LOOK)

    async def _examine(self) -> None:
        """Find out which of the silent watches are refused."""
        while True:
            for watch in list(self._watches.values()):
                silent = watch.taken and watch.informer.age() > STALE / 3
                watch.refused = silent and await asyncio.to_thread(self._refuses, watch.informer.path)
            await asyncio.sleep(_EXAMINE)

    def _refuses(self, path: str) -> bool:
        try:
            self._api.request("GET", path, query={"limit": "1"})
        except ApiError as error:
            return error.status in (403, 404)
        return False

    def _follow_namespaces(self) -> None:
        wanted = self._world.namespaces()
        running = {namespace for kind, namespace in self._watches if kind == "pod" and namespace is not None}
        for namespace in sorted(wanted - running):
            self._watch("pod", namespace)
        for namespace in running - wanted:
            watch = self._watches.pop(("pod", namespace))
            task = self._loop.create_task(asyncio.to_thread(watch.informer.stop))
            self._stopping.add(task)
            task.add_done_callback(self._stopping.discard)
            self._tell(self._world.forget_others("pod", namespace, (), self._loop.time()))

    # -- changes -------------------------------------------------------------------------------------------------

    def _change(self, kind: Kind, change: Change, item: Object) -> None:
        now = self._loop.time()
        if change == "DELETED":
            self._tell(self._world.remove(kind, key_of(item), now))
        else:
            self._tell(self._world.put(kind, item, now))

    def _tell(self, touched: set[str]) -> None:
        self._touched(touched)
        due = self._world.next_expiry()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if due is not None:
            self._expiry = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._tell(self._world.expire(self._loop.time()))
