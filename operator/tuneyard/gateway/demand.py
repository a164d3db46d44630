"""What is asked of this gateway: how much of each revision, since when nothing of a deployment, and who waits.

Rules:
- idle is only what was seen to be idle: the time runs from a deployment's last use to Envoy's newest report. While
  Envoy does not report, nobody grows idle, and when it begins to, everything counts as just used;
- a request that is under way or waits is a use, and so is to be routed for the first time;
- what is told of requests under way is smoothed over SMOOTHING seconds: reports show moments, and short requests come
  in handfuls;
- times to the first token are those of streams that ended in the last FIRST_TOKENS seconds, forgotten in PARTS; what
  was held until it was loaded tells of no engine. What engines have to do is read elsewhere (engineloads.py);
- how far a gate is stands on its requests; of those that come to several gateways the operator believes the farthest;
- what is not routed any more is forgotten.
There is a new version with every report that tells something else, so once a second at most, and at once when the first
request of a deployment begins to wait. Idle times alone make no version.
All methods belong to the event loop's thread; `now` is of any one clock that does not go backwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

from tuneyard.api.documents import DemandReport, DeploymentDemand, EngineLoad, RevisionDemand
from tuneyard.api.gatereports import GateRun
from tuneyard.gateway.versions import Version
from tuneyard.planning.firsttokens import edge_of
from tuneyard.systems.envoy.answers import Answer
from tuneyard.systems.envoy.loads import Load
from tuneyard.systems.envoy.translate import served_by

SMOOTHING = 3.0
"""Seconds after which 63 % of a change are seen."""

FIRST_TOKENS, PARTS = 60.0, 6

_Said = tuple[int, float, tuple[tuple[int, int], ...], int]
"""Requests so far, under way, the times to their first token, and how many wait."""
_NOTHING: _Said = (0, 0.0, (), 0)

Routed = Mapping[str, Collection[str]]
"""The revisions of each ModelDeployment, by `namespace/name`."""


class _Counted:
    """What one revision was asked for."""

    __slots__ = ("first_tokens", "in_flight", "requests", "under_way")

    def __init__(self) -> None:
        self.requests = 0
        self.under_way = 0
        self.in_flight = 0.0
        self.first_tokens: dict[int, dict[int, int]] = {}
        """By part of the time, and by their class."""

    def take(self, load: Load, share: float) -> None:
        self.requests += load.begun
        self.under_way = load.under_way
        self.in_flight += (load.under_way - self.in_flight) * share

    def first_token(self, part: int, milliseconds: float) -> None:
        counts, edge = self.first_tokens.setdefault(part, {}), edge_of(milliseconds)
        counts[edge] = counts.get(edge, 0) + 1

    def ttft(self, part: int) -> tuple[tuple[int, int], ...]:
        """Those of the parts that count when it is `part`."""
        self.first_tokens = {p: counts for p, counts in self.first_tokens.items() if p > part - PARTS}
        found: dict[int, int] = {}
        for counts in self.first_tokens.values():
            for edge, count in counts.items():
                found[edge] = found.get(edge, 0) + count
        return tuple(sorted(found.items()))


class Demand:
    """Keeps count for one gateway."""

    def __init__(self, name: str, routed: Callable[[], Routed]) -> None:
        """`name`: the gateway's; `routed` is asked at every report."""
        self._name = name
        self._routed = routed
        self._seen: float | None = None
        """When Envoy has reported last."""
        self._used: dict[str, float] = {}
        self._revisions: dict[tuple[str, str], _Counted] = {}
        self._waiting: dict[str, dict[str, int]] = {}
        """Requests that wait, by deployment and revision."""
        self._runs: dict[str, GateRun] = {}
        self._engines: Callable[[], dict[str, EngineLoad]] = dict
        self._told: dict[str, tuple[int, dict[str, _Said], GateRun | None]] = {}
        """By deployment: requests that wait, what is said of each revision, and how far its gate is; the version's
        content."""
        self._version = Version()

    # -- what happens ----------------------------------------------------------------------------------------------

    def begin(self, now: float) -> None:
        """Envoy begins to report: of what went on before nobody knows."""
        self._seen = now
        self._used = dict.fromkeys(self._routed(), now)
        # requests counted before would make a request of "just used", and wake whoever has gone idle since
        self._revisions.clear()
        self._tell()

    def reported(self, now: float, loads: Mapping[str, Load]) -> None:
        """Envoy has told the loads of its clusters since its report before; one that is missing has none."""
        routed = self._routed()
        self._forget(routed)
        share = 1 - math.exp(-max(0.0, now - (now if self._seen is None else self._seen)) / SMOOTHING)
        self._seen = now
        found = _by_revision(loads)
        for revision in found.keys() - self._revisions.keys():
            if revision[0] in routed:
                self._revisions[revision] = _Counted()
        for revision, counted in self._revisions.items():
            load = found.get(revision, Load(0, 0))
            # one that was under way in the report before has ended since
            if load.begun or load.under_way or counted.under_way:
                self._used[revision[0]] = now
            counted.take(load, share)
        for deployment in routed:
            self._used.setdefault(deployment, now)
        self._used.update(dict.fromkeys(self._waiting, now))
        self._tell()

    def waiting(self, deployment: str, revision: str, held: int) -> None:
        """So many requests for this revision of a deployment (`namespace/name`) are held now until it is loaded."""
        before = self._waiting.pop(deployment, {})
        now = {name: count for name, count in {**before, revision: held}.items() if count > 0}
        if now:
            self._waiting[deployment] = now
        if self._seen is not None:
            self._used[deployment] = self._seen
        if now and not before:
            self._tell()

    def answered(self, answers: Iterable[Answer]) -> None:
        """Requests have ended; those of a gate say how far it is. Told with Envoy's next report."""
        for answer in answers:
            counted = self._revisions.get((answer.deployment, answer.revision))
            if counted is not None and answer.ttft is not None and not answer.held:
                counted.first_token(self._part, answer.ttft)
            run, before = answer.run, self._runs.get(answer.deployment)
            # they end in another order than they began
            if run is not None and (before is None or before.job != run.job or before.done < run.done):
                self._runs[answer.deployment] = run

    def reading(self, engines: Callable[[], dict[str, EngineLoad]]) -> None:
        """Who knows what engines have to do, by `namespace/pod`."""
        self._engines = engines

    def read(self) -> None:
        """Engines were read: that is something new."""
        self._version.grow()

    # -- what is told ----------------------------------------------------------------------------------------------

    def report(self) -> DemandReport:
        """What is asked now."""
        # all of it is as it should be: to check that again for thousands takes a while
        deployments = {
            name: DeploymentDemand.model_construct(
                idle_seconds=self._idle(name),
                waiting=waiting,
                revisions={
                    revision: RevisionDemand.model_construct(
                        requests=requests, in_flight=in_flight, ttft=dict(ttft), waiting=held
                    )
                    for revision, (requests, in_flight, ttft, held) in revisions.items()
                },
                gate=gate,
            )
            for name, (waiting, revisions, gate) in self._told.items()
        }
        return DemandReport.model_construct(
            gateway=self._name, version=self._version.number, deployments=deployments, engines=self._engines()
        )

    async def report_after(self, version: int, within: float) -> DemandReport:
        """The report as soon as its version is another than `version`, or after `within` seconds."""
        await self._version.other_than(version, within)
        return self.report()

    @property
    def _part(self) -> int:
        return int((self._seen or 0.0) / (FIRST_TOKENS / PARTS))

    def _idle(self, deployment: str) -> float:
        used = self._used.get(deployment)
        return 0.0 if used is None or self._seen is None else round(max(0.0, self._seen - used), 1)

    def _forget(self, routed: Routed) -> None:
        self._used = {name: used for name, used in self._used.items() if name in routed or name in self._waiting}
        kept = ((r, c) for r, c in self._revisions.items() if r[0] in routed and (r[1] in routed[r[0]] or c.under_way))
        self._revisions = dict(kept)
        self._runs = {name: run for name, run in self._runs.items() if name in routed}

    def _tell(self) -> None:
        """Make it a new version, if it is one."""
        revisions: dict[str, dict[str, _Said]] = {}
        for (deployment, revision), counted in self._revisions.items():
            said = (counted.requests, round(counted.in_flight, 1), counted.ttft(self._part), 0)
            revisions.setdefault(deployment, {})[revision] = said
        for deployment, waiting in self._waiting.items():
            of_it = revisions.setdefault(deployment, {})
            for revision, held in waiting.items():
                of_it[revision] = (*of_it.get(revision, _NOTHING)[:3], held)
        told = {
            name: (sum(self._waiting.get(name, {}).values()), revisions.get(name, {}), self._runs.get(name))
            for name in sorted(self._used.keys() | self._waiting.keys())
        }
        if told != self._told:
            self._told = told
            self._version.grow()


def _by_revision(loads: Mapping[str, Load]) -> dict[tuple[str, str], Load]:
    """The loads of revisions; one may have several clusters for a while, because it has moved to other pods."""
    found: dict[tuple[str, str], Load] = {}
    for cluster, load in loads.items():
        served = served_by(cluster)
        if served is not None:
            revision = (served.deployment, served.revision)
            before = found.get(revision, Load(0, 0))
            found[revision] = Load(before.begun + load.begun, before.under_way + load.under_way)
    return found
