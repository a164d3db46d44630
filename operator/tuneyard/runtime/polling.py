"""One long poll: asks one gateway for one of its reports again and again, in a thread of its own.

Rules:
- a gateway answers when there is something new, or after 20 s, and is asked again at once; one that fails is asked
  again after a growing while;
- what a report sets off may fail, and ends no poll: that is logged, and the next report is heard;
- whoever does not answer twice in a row counts as unreachable until it does, and its last report no longer counts.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import urllib3
from pydantic import ValidationError

from tuneyard.api.documents import AppliedReport, DemandReport, EvidenceReport

_log = logging.getLogger(__name__)

_CONNECT, _READ = 2.0, 25.0
_FAILURES = 2
_DELAYS = (0.2, 1.0, 2.0, 5.0)

Report = TypeVar("Report", bound=AppliedReport | DemandReport | EvidenceReport)


@dataclass(frozen=True)
class Said(Generic[Report]):
    """What one gateway said last."""

    report: Report | None = None
    at: float = 0.0
    """When the report came: seconds since 1970."""
    failures: int = 0

    @property
    def reachable(self) -> bool:
        """Whether it answers."""
        return self.report is not None and self.failures < _FAILURES

    def then(self, report: Report | None) -> Said[Report]:
        """After one more answer, or None for a failure."""
        return replace(self, failures=self.failures + 1) if report is None else Said(report, time.time())


def connections() -> urllib3.PoolManager:
    """For the polls of all gateways."""
    return urllib3.PoolManager(maxsize=4, retries=False, timeout=urllib3.Timeout(connect=_CONNECT, read=_READ))


class Poll(Generic[Report]):
    """Hears one kind of report of one gateway."""

    def __init__(
        self,
        http: urllib3.PoolManager,
        url: str,
        headers: Mapping[str, str],
        read: Callable[[bytes], Report],
        hear: Callable[[Report | None], None],
    ) -> None:
        """`read` makes a report of JSON or raises ValidationError; `hear` gets every report, or None for a failure."""
        self._http = http
        self._url = url
        self._headers = headers
        self._read = read
        self._hear = hear
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"poll {url}", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """A poll that waits for its answer ends by itself; nobody listens to it any more."""
        self._stopping.set()

    def _run(self) -> None:
        after, failures = -1, 0
        while not self._stopping.is_set():
            report = self._ask(after)
            if self._stopping.is_set():
                return
            self._tell(report)
            if report is not None:
                # a gateway that restarted counts from the beginning again
                after, failures = report.version, 0
                continue
            after, failures = -1, failures + 1
            self._stopping.wait(_DELAYS[min(failures, len(_DELAYS)) - 1] * random.uniform(0.75, 1.25))  # noqa: S311

    def _tell(self, report: Report | None) -> None:
        try:
            self._hear(report)
        except Exception:  # noqa: BLE001
            # what it sets off looks at objects that others wrote; if the poll ended, its last report would always count
            _log.exception("what %s answered could not be dealt with", self._url)

    def _ask(self, after: int) -> Report | None:
        try:
            answer = self._http.request("GET", self._url, fields={"after": str(after)}, headers=self._headers)
            if answer.status != 200:
                _log.info("%s answered %d", self._url, answer.status)
                return None
            return self._read(answer.data)
        except (urllib3.exceptions.HTTPError, ValidationError) as error:
            _log.info("%s does not answer: %s", self._url, type(error).__name__)
            return None
