"""The pod's report onto the pod's own annotation, as soon as it changes; the latest one wins.

Rules: written only when it differs from what was written last; an API server that is away is asked again with
growing delays (up to 5 s, with jitter) and meanwhile newer reports replace older ones. A report that the API server
finds too large (413, 422: others annotate the pod too) is halved until it takes it, because a reduced report is better
than none, and offered at its full size again after a minute. The admission policy lets this agent change this
annotation of this pod and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable

from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.pacing import Pace
from tuneyard.agent.settings import PodIdentity
from tuneyard.api import names
from tuneyard.api.documents import KeepReport, PodReport, Transfer
from tuneyard.planning.agentstate import Published
from tuneyard.planning.podreport import REPORT_BYTES, as_text, fitting
from tuneyard.systems.kube.client import MERGE, Api, ApiError

_log = logging.getLogger(__name__)

_FIRST_DELAY, _LONGEST_DELAY = 0.2, 5.0
_TOO_LARGE = (413, 422)
_WHOLE_AGAIN = 60.0
"""Seconds until a report that was halved is offered whole again."""

Write = Callable[[PodReport], Awaitable[None]]


def on_own_pod(api: Api, pod: PodIdentity) -> Write:
    """A writer for the pod's annotation; what it returns raises ApiError."""

    async def write(report: PodReport) -> None:
        await asyncio.to_thread(_annotate, api, pod, as_text(report))

    return write


def telling_of_base(api: Api, pod: PodIdentity, base_model: str) -> Callable[[Transfer], None]:
    """Says on the pod's annotation how far its base is, before there is an agent; blocking, raises nothing.

    An API server that is away keeps no base from coming.
    """
    pace = Pace(time.monotonic)

    def tell(transfer: Transfer) -> None:
        if not pace.due({base_model: transfer}):
            return
        report = PodReport(address=pod.address, engine="Starting", base_model=base_model, base_transfer=transfer)
        try:
            _annotate(api, pod, as_text(report))
        except ApiError as error:
            _log.info("cannot tell how far the base is: %s", error)

    return tell


def telling_of_cache(api: Api, pod: PodIdentity) -> Callable[[KeepReport], bool]:
    """Says on the pod's annotation what a node's cache holds; blocking, returns whether that could be said."""

    def tell(report: KeepReport) -> bool:
        try:
            _annotate(api, pod, as_text(report))
        except ApiError as error:
            _log.info("cannot tell what the cache holds: %s", error)
            return False
        return True

    return tell


def _annotate(api: Api, pod: PodIdentity, text: str) -> None:
    path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.pod}"
    # the uid makes a patch meant for an earlier pod of the same name fail
    body = {"metadata": {"uid": pod.uid, "annotations": {names.ANNOTATION_ADAPTERS: text}}}
    api.request("PATCH", path, body=body, content_type=MERGE, timeout=(2.0, 5.0))


class Publisher:
    """Keeps what others read equal to the newest report."""

    def __init__(self, knowledge: Knowledge, write: Write, clock: Callable[[], float]) -> None:
        self._knowledge = knowledge
        self._write = write
        self._clock = clock
        self._wanted: PodReport | None = None
        self._written: PodReport | None = None
        self._offered = asyncio.Event()

    def offer(self, report: PodReport | None) -> None:
        """This is the report now."""
        if report is not None and report != self._wanted:
            self._wanted = report
            self._offered.set()

    async def run(self) -> None:
        """Write for ever."""
        failures = halvings = 0
        while True:
            await self._until_offered(halved=halvings > 0 and not failures)
            wanted = self._wanted
            if wanted is None or wanted == self._written:
                continue
            halvings = halvings if failures else 0
            report = fitting(wanted, self._pinned(), REPORT_BYTES >> halvings)
            try:
                await self._write(report)
            except ApiError as error:
                failures += 1
                halvings += error.status in _TOO_LARGE
                if failures == 1:
                    _log.warning("cannot publish, trying again: %s", error)
                self._offered.set()
                await asyncio.sleep(_delay(failures))
                continue
            if failures:
                _log.info("published after %d failures", failures)
            if len(report.adapters) < len(wanted.adapters):
                _log.error("only %d of %d adapters fit the report", len(report.adapters), len(wanted.adapters))
            failures = 0
            self._written = wanted
            self._knowledge.tell(Published(report, self._clock()))

    async def _until_offered(self, *, halved: bool) -> None:
        """Wait for a report to write; where the last one was halved, at most until it may be written whole."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_WHOLE_AGAIN if halved else None):
                await self._offered.wait()
        if not self._offered.is_set():
            self._written = None
        self._offered.clear()

    def _pinned(self) -> frozenset[str]:
        plan = self._knowledge.state.plan
        return frozenset(a.name for a in plan.adapters if a.digest) if plan else frozenset()


def _delay(failures: int) -> float:
    longest: float = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311
