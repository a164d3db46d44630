"""Asks Prometheus for the checks of rollouts that are under way, beside everything else: one thread, one event loop.

Rules:
- what is asked, and of whom, follows from the stored objects (promqueries.under_way), as soon as they change;
- each check is asked every interval, counted from when it was asked before. The last evaluations of each are remembered
  until the candidate has no traffic any more; what counts is decided, and kept, by who plans;
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
from collections.abc import Callable, Iterable
from contextlib import suppress

from tuneyard.api.modeldeployment import ModelDeploymentResource
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
_REMEMBERED = 8
"""Evaluations of each check: a pass takes them in within seconds."""


class Checking:
    """Evaluates checks; all methods may be called from any thread."""

    def __init__(
        self,
        settings: PrometheusSettings,
        deployment: Callable[[str, str], ModelDeploymentResource | None],
        evaluated: Callable[[Iterable[Key]], None],
    ) -> None:
        """`deployment`: the object of a namespace and name as last seen, if it is looked at at all.

        `evaluated` gets the key of which there is a new evaluation.
        """
        self._settings = settings
        self._deployment = deployment
        self._evaluated = evaluated
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

    def _look(self, key: Key) -> None:
        followed = self._followed.get(key)
        if followed is not None:
            followed[1].set()
        elif self._queries(key) and self._server is not None:
            changed = asyncio.Event()
            self._followed[key] = asyncio.create_task(self._follow(self._server, key, changed)), changed

    def _queries(self, key: Key) -> tuple[Query, ...]:
        """What is to be asked now."""
        found = self._deployment(key.namespace, key.name)
        return () if found is None else under_way(found)

    async def _follow(self, server: Prometheus, key: Key, changed: asyncio.Event) -> None:
        """Ask for everything in its time, as long as there is something to be asked."""
        due: dict[Query, float] = {}
        try:
            while queries := self._queries(key):
                changed.clear()
                now = time.monotonic()
                due = {query: due.get(query, now) for query in queries}
                first = min(due, key=lambda query: due[query])
                if due[first] > now:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), due[first] - now)
                    continue
                due[first] = await self._evaluate(server, key, first) + first.interval
        except Exception:  # noqa: BLE001
            # one object that nobody can make sense of must not end the asking of the others
            _log.exception("checks of %s could not be asked", key)
        finally:
            self._followed.pop(key, None)
            with self._lock:
                self._known.pop(key, None)

    async def _evaluate(self, server: Prometheus, key: Key, query: Query) -> float:
        """Ask once; returns when that was, by the clock that only goes on."""
        async with self._permits_of[key.namespace], self._permits:
            at, asked = time.time(), time.monotonic()
            try:
                new = Evaluation(query.text, at, await server.ask(query.text))
            except NoNumberError as error:
                new = Evaluation(query.text, at, trouble=str(error))
                _log.debug("%s: check %s has no number: %s", key, query.check, error)
        with self._lock:
            self._known.setdefault(key, {}).setdefault(query.check, deque(maxlen=_REMEMBERED)).append(new)
        self._evaluated([key])
        return asked
