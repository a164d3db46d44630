"""Asks Prometheus for the checks of rollouts that are under way, beside everything else: one thread, one event loop.

Rules:
- what is asked, and of whom, follows from the stored objects (promqueries.under_way), as soon as they change;
- each check is asked every interval, counted from when it was asked before, and at once when evaluations begin to count
  (after warm-up, and at each step): with an interval of an hour a step would wait for an hour otherwise. The last
  evaluations of each are remembered until the candidate has no traffic any more; what counts is decided, and kept, by
  who plans;
- of one ModelDeployment one query is under way at a time, of a namespace OF_NAMESPACE, of all together CONCURRENCY:
  whoever asks for what takes long waits for himself. Nothing here is waited for by a pass;
- only who leads asks.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.evidencerecord import evidence_of
from tuneyard.planning.observations import ChildObservation
from tuneyard.planning.promqueries import Evaluation, Evaluations, Query, under_way
from tuneyard.planning.settings import PrometheusSettings
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key
from tuneyard.systems.kube.client import Object
from tuneyard.systems.kube.watching import Change
from tuneyard.systems.metrics.prometheus import NoNumberError, Prometheus, connected

_log = logging.getLogger(__name__)

CONCURRENCY = 32
OF_NAMESPACE = 4
_READY_SECONDS = 5.0
_AFTER = 0.05
"""Seconds after evaluations begin to count: timers may be early."""
_REMEMBERED = 8
"""Evaluations of each check: a pass takes them in within seconds."""


class _Asked(NamedTuple):
    """When a query was asked last."""

    at: float
    """Seconds since 1970."""
    clock: float
    """By the clock that only goes on."""


class Checking:
    """Evaluates checks; all methods may be called from any thread."""

    def __init__(
        self,
        settings: PrometheusSettings,
        deployment: Callable[[str, str], ModelDeploymentResource | None],
        evaluated: Callable[[Iterable[Key]], None],
        evidence: Callable[[str, str], ChildObservation | None] = lambda *_: None,
    ) -> None:
        """`deployment`: the object of a namespace and name as last seen, if it is looked at at all.

        `evaluated` gets the key of which there is a new evaluation; `evidence`: what is stored of the evidence on a
        candidate of that ModelDeployment, which says since when evaluations count.
        """
        self._settings = settings
        self._deployment = deployment
        self._evaluated = evaluated
        self._evidence = evidence
        self._lock = threading.Lock()
        self._known: dict[Key, dict[str, deque[Evaluation]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._followed: dict[Key, tuple[asyncio.Task[None], asyncio.Event]] = {}
        self._server: Prometheus | None = None
        self._permits = asyncio.Semaphore(CONCURRENCY)
        self._permits_of = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(OF_NAMESPACE))
        """By namespace."""
        self._ending: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self, keys: Iterable[Key]) -> None:
        """Begin with these ModelDeployments; without a server there is nobody to ask."""
        if not self._settings.url:
            return
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), name="checks", daemon=True)
        self._thread.start()
        ready.wait(_READY_SECONDS)
        for key in keys:
            self.look(key)

    def stop(self, timeout: float = 2.0) -> None:
        """End; what is under way is given up."""
        loop, ending = self._loop, self._ending
        if loop is None or ending is None or self._thread is None:
            return
        with suppress(RuntimeError):  # it has ended by itself
            loop.call_soon_threadsafe(ending.set)
        self._thread.join(timeout)

    def changed(self, change: Change, item: Object) -> None:
        """A ModelDeployment has changed, as informers tell it."""
        del change
        self.look(Key(MODEL_DEPLOYMENT, item["metadata"].get("namespace", ""), item["metadata"]["name"]))

    def recorded(self, change: Change, item: Object) -> None:
        """A ConfigMap has changed, as informers tell it; of those with evidence the times are taken up."""
        del change
        metadata = item["metadata"]
        record, loop = (metadata.get("namespace", ""), metadata["name"]), self._loop
        if loop is not None and (metadata.get("labels") or {}).get(names.LABEL_COMPONENT) == names.ROLLOUT_EVIDENCE:
            with suppress(RuntimeError):  # it ends just now
                loop.call_soon_threadsafe(self._wake_by_record, record)

    def look(self, key: Key) -> None:
        """Look at what is to be asked of one ModelDeployment; nothing before the start."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it ends just now
                loop.call_soon_threadsafe(self._look, key)

    def of(self, key: Key) -> Evaluations:
        """What has been answered of late."""
        with self._lock:
            return {check: tuple(found) for check, found in self._known.get(key, {}).items()}

    # -- in the loop -----------------------------------------------------------------------------------------------

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        async with connected(self._settings) as server:
            self._server = server
            ready.set()
            await self._ending.wait()
            tasks = [task for task, _ in self._followed.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _wake_by_record(self, record: tuple[str, str]) -> None:
        for key in self._followed:
            if record == (key.namespace, names.rollout_evidence(key.name)):
                self._wake(key)

    def _wake(self, key: Key) -> bool:
        """Let who is followed be looked at again; False: nobody follows it."""
        followed = self._followed.get(key)
        if followed is not None:
            followed[1].set()
        return followed is not None

    def _look(self, key: Key) -> None:
        if not self._wake(key) and self._queries(key) and self._server is not None:
            changed = asyncio.Event()
            self._followed[key] = asyncio.create_task(self._follow(self._server, key, changed)), changed

    def _queries(self, key: Key) -> tuple[Query, ...]:
        """What is to be asked now."""
        found = self._deployment(key.namespace, key.name)
        return () if found is None else under_way(found)

    def _begins(self, key: Key) -> Mapping[str, float]:
        """Since when evaluations count, by the check's name, as far as that is stored."""
        found = self._deployment(key.namespace, key.name)
        record = None if found is None else evidence_of(self._evidence(key.namespace, key.name), found)
        if record is None:
            return {}
        return {name: check.counts_from for name, check in record.checks.items() if check.counts_from is not None}

    async def _follow(self, server: Prometheus, key: Key, changed: asyncio.Event) -> None:
        """Ask for everything in its time, as long as there is something to be asked."""
        asked: dict[Query, _Asked] = {}
        try:
            while queries := self._queries(key):
                changed.clear()
                asked = {query: at for query, at in asked.items() if query in queries}
                begins = self._begins(key)
                waits = {query: _wait(query, asked.get(query), begins.get(query.check)) for query in queries}
                first = min(waits, key=lambda query: waits[query])
                if waits[first] > 0:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), waits[first])
                    continue
                asked[first] = await self._evaluate(server, key, first)
        except Exception:  # noqa: BLE001
            # one object that nobody can make sense of must not end the asking of the others
            _log.exception("checks of %s could not be asked", key)
        finally:
            self._followed.pop(key, None)
            with self._lock:
                self._known.pop(key, None)

    async def _evaluate(self, server: Prometheus, key: Key, query: Query) -> _Asked:
        """Ask once; returns when that was."""
        async with self._permits_of[key.namespace], self._permits:
            asked = _Asked(time.time(), time.monotonic())
            try:
                new = Evaluation(query.text, asked.at, await server.ask(query.text))
            except NoNumberError as error:
                new = Evaluation(query.text, asked.at, trouble=str(error))
                _log.debug("%s: check %s has no number: %s", key, query.check, error)
        with self._lock:
            self._known.setdefault(key, {}).setdefault(query.check, deque(maxlen=_REMEMBERED)).append(new)
        self._evaluated([key])
        return asked


def _wait(query: Query, asked: _Asked | None, begins: float | None) -> float:
    """Seconds until it is to be asked; `begins`: since when its evaluations count."""
    if asked is None:
        return 0.0
    wait = asked.clock + query.interval - time.monotonic()
    if begins is not None and asked.at < begins:
        wait = min(wait, begins + _AFTER - time.time())
    return wait
