"""Keys of external APIs: read from the Secrets that revisions name, and from no others.

Rules:
- a Secret is read by its name, every LOOK seconds, and no right but `get` of that name is needed: who installs gateways
  lists the Secrets that they may read. A tenant who can make a ModelDeployment, but may not read a Secret, must not be
  able to have it sent to a host of his choice;
- another key is in force with the next look, for new requests; nothing is restarted and no stream ends;
- a Secret that is gone counts for GRACE seconds more, as objects do (routes.py). While the API server does not answer,
  or does not know whether this process may ask, what was read last goes on;
- before Envoy is fed, every Secret of which no snapshot tells has been looked at, if the API server answers: a gateway
  that starts must not refuse what others serve;
- an external revision that appears while Envoy runs gets its first request SETTLING seconds later: Envoy says that it
  has a cluster before it has looked its host up;
- keys stand in memory, in Envoy, and in a snapshot on the pod's memory-backed volume for this user alone. No key is in
  a log, a metric or a report: problems are told by names of objects.
All methods but `_read` belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.gateway import snapshot
from tuneyard.gateway.metrics import Metrics
from tuneyard.planning.external import Access
from tuneyard.planning.plan import Redacted
from tuneyard.planning.routes import GRACE, Key, ModelRoutes
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api, ApiError

LOOK = 5.0
SETTLING = 1.0
_ASKED = (2.0, 5.0)
"""Seconds to connect to the API server, and to wait for its answer."""
_FITS = re.compile(r"[\x21-\x7e]{1,4096}")
"""What may stand in a header."""

_UNREAD = "has not been read yet"
_UNREACHABLE = "could not be read: the API server does not answer"

_Mark = tuple[str, str, str, str]
"""Namespace, ModelDeployment, revision, URL."""

_log = logging.getLogger(__name__)


@dataclass
class _Secret:
    """What is known of one."""

    keys: dict[str, Redacted]
    problem: str = _UNREAD
    gone: float | None = None
    """Since when it is not there."""


class ExternalKeys:
    """What gateways have for external revisions."""

    def __init__(
        self,
        api: Api,
        path: Path,
        metrics: Metrics,
        touched: Callable[[Key], None],
        settled: Callable[[str], None],
    ) -> None:
        """`path`: of the snapshot; `touched` gets (namespace, name) of a Secret that says something else now.

        `settled` gets the name of a model whose external revision may get requests now. Nothing is started yet; needs
        a running loop.
        """
        self._api, self._path, self._touched, self._on_settled = api, path, touched, settled
        self._loop = asyncio.get_running_loop()
        self._secrets: dict[Key, _Secret] = {}
        self._settled: dict[str, set[_Mark]] = {}
        """By model: external revisions whose hosts Envoy has looked up."""
        self._feeding = False
        self._wanted = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []
        self._writer = snapshot.SnapshotWriter(path, self._lines, metrics)

    def start(self) -> None:
        """Begin to look, and to keep a snapshot."""
        self._running = [self._loop.create_task(self._look_on()), self._loop.create_task(self._writer.run())]

    async def stop(self) -> None:
        """End that."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def restore(self) -> None:
        """Take the keys that the process before knew."""
        try:
            for line in snapshot.read(self._path) or ():
                told = json.loads(line)
                keys = {name: Redacted(text) for name, text in told["keys"].items()}
                self._secrets[told["namespace"], told["name"]] = _Secret(keys, problem="")
        except (ValueError, KeyError, TypeError, AttributeError):
            # what is wrong would have to be said without saying what is in it
            _log.error("the snapshot of external keys cannot be read and is left aside")
            self._secrets = {}

    # -- what is there -------------------------------------------------------------------------------------------

    def access(self, deployment: ModelDeploymentResource, revision: Revision) -> Access:
        """What there is for an external revision."""
        external = revision.external
        if external is None:
            return Access()
        key = None
        if external.credentials is not None:
            namespace, name = deployment.metadata.namespace, external.credentials.name
            found = self._secrets.get((namespace, name))
            if found is None or found.problem:
                words = found.problem if found else _UNREAD
                return Access(problem=f"Secret {namespace}/{name} {words}", soon=found is None)
            key = found.keys.get(external.credentials.field)
            if key is None:
                return Access(problem=f"Secret {namespace}/{name} has no usable key {external.credentials.field}")
        mark = (*deployment.metadata.key, revision.name, external.url)
        if self._feeding and mark not in self._settled.get(deployment.model_name, ()):
            return Access(key, "its host is being looked up", soon=True)
        return Access(key)

    def follow(self, wanted: Collection[Key]) -> None:
        """These Secrets are named by revisions now."""
        if wanted == self._secrets.keys():
            return
        for key in self._secrets.keys() - set(wanted):
            del self._secrets[key]
            self._writer.mark()
        for key in set(wanted) - self._secrets.keys():
            self._secrets[key] = _Secret({})
            self._wanted.set()

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """What Envoy is sent of a model."""
        sent: set[_Mark] = set()
        if routes is not None:
            of = routes.namespace, routes.deployment
            sent = {(*of, r.name, r.external.url) for r in routes.revisions if r.external is not None}
        settled = self._settled.pop(model, set()) & sent
        if not self._feeding:  # Envoy opens its listener when it has looked up the hosts that it got first
            settled = sent
        for mark in sent - settled:
            self._loop.call_later(SETTLING, self._settle, mark, model)
        if sent:
            self._settled[model] = settled

    def feeding(self) -> None:
        """Envoy has been sent all that was known."""
        self._feeding = True

    def _settle(self, mark: _Mark, model: str) -> None:
        settled = self._settled.get(model)
        if settled is not None and mark not in settled:
            settled.add(mark)
            self._on_settled(model)

    # -- looking -------------------------------------------------------------------------------------------------

    async def first_look(self, within: float) -> None:
        """Read those of which nothing is known yet, as far as that takes no longer than so many seconds."""
        unknown = [key for key, secret in self._secrets.items() if not secret.keys]
        with suppress(TimeoutError):
            await asyncio.wait_for(self._look(unknown), within)

    async def _look(self, wanted: Iterable[Key]) -> None:
        for key in wanted:
            read = await asyncio.to_thread(self._read, key)
            before = self._secrets.get(key)
            if before is None:
                continue  # nobody names it any more
            now = self._after(before, read)
            if now != before:
                self._tell(key, before, now)
                self._secrets[key] = now
                self._writer.mark()
                self._touched(key)

    async def _look_on(self) -> None:
        while True:
            self._wanted.clear()
            await self._look(list(self._secrets))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK)

    def _read(self, key: Key) -> _Secret | None:
        """What the API server has; None where that is not known."""
        namespace, name = key
        try:
            found = self._api.request("GET", objects.path("v1", "Secret", namespace, name), timeout=_ASKED)
        except ApiError as error:
            if error.not_found:
                return _Secret({}, "does not exist")
            if error.status == 403:
                return _Secret({}, "may not be read by the gateways: list it in gateway.externalSecrets of the chart")
            return None
        return _Secret(_usable(found.get("data") or {}), "")

    def _after(self, before: _Secret, read: _Secret | None) -> _Secret:
        """What counts from now on."""
        if read is None:
            return before if before.keys or before.problem != _UNREAD else _Secret({}, _UNREACHABLE)
        if read.problem and before.keys:
            gone = before.gone if before.gone is not None else self._loop.time()
            if self._loop.time() - gone < GRACE:
                return _Secret(before.keys, before.problem, gone)
        return read

    @staticmethod
    def _tell(key: Key, before: _Secret, now: _Secret) -> None:
        name = "/".join(key)
        if now.problem and now.problem != before.problem:
            _log.warning("external: Secret %s %s", name, now.problem)
        elif before.keys != now.keys:
            _log.info("external: the keys of Secret %s are in force", name)

    def _lines(self) -> list[str]:
        return [
            json.dumps({"namespace": namespace, "name": name, "keys": secret.keys})
            for (namespace, name), secret in self._secrets.items()
            if secret.keys and not secret.problem
        ]


def _usable(data: dict[str, str]) -> dict[str, Redacted]:
    """The Secret's values that can be sent as keys; line breaks at their ends are nobody's intention."""
    found = {}
    for name, text in data.items():
        try:
            value = base64.b64decode(text).decode("ascii").strip()
        except (binascii.Error, ValueError):
            continue
        if _FITS.fullmatch(value):
            found[name] = Redacted(value)
    return found
