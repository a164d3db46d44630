"""Keeping in a node's cache what a plan names: fetched when it is not there, held so that nothing evicts it.

One thread works (`run`); plans and the end come from others. Rules:
- what is no longer wanted is released before anything comes, so that it can make room;
- what fails holds nothing else up: it is told, and tried again until it comes or is not wanted any more;
- the mark file is there only while everything that is wanted is held: it is what makes the pod ready;
- what is held is looked at now and then, and all of its bytes once a week: what is gone or damaged comes again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuneyard.agent.obtaining import Obtainer
from tuneyard.agent.pacing import Pace
from tuneyard.api.documents import KeepReport, PrewarmPlan, Transfer
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.planning.agentstate import FIRST_RETRY, LONGEST_RETRY
from tuneyard.planning.remedies import clipped
from tuneyard.systems.artifacts.download import FetchStopped
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.store import Held

_log = logging.getLogger(__name__)

LOOK_SECONDS = 600.0
"""Between two looks at what is held already."""
_MESSAGE = 600


@dataclass(frozen=True)
class Wanted:
    """An artifact of a plan, the base or an adapter; `what` names it for people."""

    what: str
    source: Source
    digest: str | None

    def is_met_by(self, held: Held) -> bool:
        """Whether it is this one; without a pinned digest it is what its source had when it was fetched."""
        return self.digest in (None, held.digest)


def wanted_of(plan: PrewarmPlan) -> list[Wanted]:
    """What a plan names, the base first: no pod starts without it."""
    base = Wanted(f"base {plan.base_model}", plan.source, plan.digest)
    return [base, *(Wanted(f"adapter {a.name}", a.source, a.digest) for a in plan.adapters)]


class Keeper:
    """Holds what the newest plan names, until it is stopped."""

    def __init__(
        self, obtainer: Obtainer, tell: Callable[[KeepReport], bool], mark: Path, look_seconds: float = LOOK_SECONDS
    ) -> None:
        """`tell` says what others should know, and whether it could; `mark`: the file that says that all is held."""
        self._obtainer = obtainer
        self._tell = tell
        self._mark = mark
        self._look_seconds = look_seconds
        self._woken = threading.Event()
        self._plan: PrewarmPlan | None = None
        self._held: dict[tuple[str, Source], Held] = {}
        self._told: KeepReport | None = None
        self._pace = Pace(time.monotonic)
        # an earlier process may have left it, whose locks are gone
        mark.unlink(missing_ok=True)

    def follow(self, plan: PrewarmPlan) -> None:
        """This is the plan now."""
        self._plan = plan
        self._woken.set()

    def stop(self) -> None:
        """Let `run` end, also in the middle of a download; what has come of it stays in the cache."""
        self._obtainer.stopped.set()
        self._woken.set()

    def run(self) -> None:
        """Keep until `stop`; then release everything."""
        attempts, pause = 0, None
        try:
            while not self._stopped:
                looking = not self._woken.wait(pause) and not attempts
                self._woken.clear()
                plan = self._plan
                if plan is None or self._stopped:
                    continue
                done = self._keep(plan, look=looking)
                attempts = 0 if done or self._woken.is_set() else attempts + 1
                pause = _delay(attempts) if attempts else self._look_seconds
        except FetchStopped:
            _log.info("stopped while fetching; what has come stays in the cache")
        finally:
            self._mark.unlink(missing_ok=True)
            for held in self._held.values():
                held.release()
            self._held.clear()

    @property
    def _stopped(self) -> bool:
        return self._obtainer.stopped.is_set()

    def _keep(self, plan: PrewarmPlan, *, look: bool) -> bool:
        """One pass over a plan, or over its beginning where a newer one comes; whether nothing is left to do.

        `look`: also at what is held already. Raises FetchStopped.
        """
        wanted = wanted_of(plan)
        self._release_all_but(wanted)
        first: tuple[Wanted, ArtifactError] | None = None
        for item in wanted:
            if self._plan is not plan or self._stopped:
                return False
            if (error := self._met(item, len(wanted), look=look)) is not None:
                _log.warning("%s: %s: %s", item.what, error.reason.value, error)
                first = first or (item, error)
        if first is None:
            self._mark.touch()
        return self._say(len(wanted), problem=first) and first is None

    def _met(self, item: Wanted, wanted: int, *, look: bool) -> ArtifactError | None:
        """See that an artifact is held; returns what keeps it. Raises FetchStopped."""
        try:
            if not self._has(item) or (look and self._is_lost(item)):
                self._mark.unlink(missing_ok=True)
                self._bring(item, wanted)
        except FetchStopped:
            raise
        except ArtifactError as error:
            return error
        except Exception as error:  # noqa: BLE001
            # what nobody foresaw of a stranger's files must not end the keeping of all others
            _log.exception("%s", item.what)
            return ArtifactError(Reason.ARTIFACT_UNREADABLE, f"{type(error).__name__}: {error}")
        return None

    def _release_all_but(self, wanted: list[Wanted]) -> None:
        keys = {(item.what, item.source): item for item in wanted}
        for key, held in list(self._held.items()):
            if key not in keys or not keys[key].is_met_by(held):
                self._held.pop(key).release()

    def _has(self, item: Wanted) -> bool:
        return (item.what, item.source) in self._held

    def _is_lost(self, item: Wanted) -> bool:
        """Whether what is held is not there any more as it should be."""
        try:
            found = self._obtainer.look(self._held[item.what, item.source].digest)
        except ArtifactError as error:
            _log.warning("%s cannot be looked at: %s", item.what, error)
            return True
        if found is None:
            return True
        found.release()
        return False

    def _bring(self, item: Wanted, wanted: int) -> None:
        """Get an artifact and hold it, in place of what was held; raises ArtifactError, FetchStopped."""
        digest = item.digest
        if (before := self._held.pop((item.what, item.source), None)) is not None:
            digest = before.digest
            before.release()

        def told(transfer: Transfer) -> None:
            if self._pace.due({item.what: transfer}):
                self._say(wanted, transfer=transfer)

        self._held[item.what, item.source] = held = self._obtainer.obtain(item.source, digest, told)
        _log.info("keeping %s: %s", item.what, held.digest)

    def _say(
        self, wanted: int, *, transfer: Transfer | None = None, problem: tuple[Wanted, ArtifactError] | None = None
    ) -> bool:
        """Tell how far it is, if that is new; returns whether others can know it."""
        reason: Reason | None = problem[1].reason if problem else None
        report = KeepReport(
            kept=len(self._held),
            wanted=wanted,
            transfer=transfer,
            reason=reason.value if reason else None,
            message=clipped(f"{problem[0].what}: {problem[1]}", _MESSAGE) if problem else None,
        )
        if report != self._told:
            self._told = report if self._tell(report) else None
        return self._told is not None


def _delay(attempts: int) -> float:
    """Seconds to the next try: 1, doubled up to 60, each shortened by up to a quarter: nodes must not come together."""
    longest: float = min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** min(attempts - 1, 10))
    return longest * random.uniform(0.75, 1.0)  # noqa: S311
