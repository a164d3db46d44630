"""How far a build is, onto its own pod's annotation and into its log.

Rules: written when it differs, every `_SECONDS` at most, by a thread of its own, so that nothing waits for an API
server; one that is away is told the newest state when it is back. What a run came to is said again by its termination
message, which is the one that counts.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuneyard.api import names
from tuneyard.api.buildtask import BuildReport, BuildResult
from tuneyard.systems.kube.client import MERGE, Api, ApiError

_log = logging.getLogger(__name__)

_SECONDS = 2.0
_MESSAGE = 256

Write = Callable[[BuildReport], None]
"""Publishes a report; raises ApiError."""


@dataclass(frozen=True)
class Pod:
    """The pod that this process runs in."""

    name: str
    namespace: str
    uid: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Pod | None:
        """What the environment says; None outside of a pod."""
        found = [environment.get(name, "") for name in ("POD_NAME", "POD_NAMESPACE", "POD_UID")]
        return cls(*found) if all(found) else None


def on_own_pod(api: Api, pod: Pod) -> Write:
    """A writer for the pod's annotation."""

    def write(report: BuildReport) -> None:
        text = json.dumps(report.to_dict(), separators=(",", ":"))
        # the uid makes a patch meant for an earlier pod of the same name fail
        body: dict[str, Any] = {"metadata": {"uid": pod.uid, "annotations": {names.ANNOTATION_ADAPTERS: text}}}
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        api.request("PATCH", path, body=body, content_type=MERGE, timeout=(2.0, 5.0))

    return write


class Teller:
    """Says the newest state; calls come from any thread. `with Teller(write) as teller:`."""

    def __init__(self, write: Write | None, seconds: float = _SECONDS) -> None:
        """`write` None: into the log alone."""
        self._write = write
        self._seconds = seconds
        self._report = BuildReport()
        self._written: BuildReport | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="telling")

    def __enter__(self) -> Teller:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)

    @property
    def report(self) -> BuildReport:
        """What was said last."""
        return self._report

    def step(self, number: int) -> None:
        """A step begins."""
        self._set(step=number, phase="Fetching", percent=None, message=None)

    def tell(self, phase: str, message: str, percent: float | None = None) -> None:
        """What is done now."""
        whole = None if percent is None else min(100, max(0, int(percent)))
        before = self._report
        self._set(phase=phase, message=message[:_MESSAGE], percent=whole)
        if (before.phase, before.message) != (phase, message[:_MESSAGE]):
            _log.info("step %d: %s: %s", before.step + 1, phase, message)

    def ended(self, result: BuildResult) -> None:
        """What it came to."""
        self._set(phase="Ended", percent=None, message=None, result=result)

    def _set(self, **changes: Any) -> None:
        with self._lock:
            self._report = BuildReport.model_validate({**dict(self._report), **changes})

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._publish()
        self._publish()

    def _publish(self) -> None:
        report = self._report
        if self._write is None or report == self._written:
            return
        try:
            self._write(report)
            self._written = report
        except ApiError as error:
            _log.info("cannot tell how far the build is: %s", error)
