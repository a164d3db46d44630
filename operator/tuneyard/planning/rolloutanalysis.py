"""A look at the answers of a rollout: what is known of the candidate now, and what is to be kept of that.

Everything follows from the stored record (api/evidence.py) and from what gateways tell now; nothing is remembered
beside it. Rules:
- a look takes in what has come since the stored one, and is stored in the pass that makes it. Between two looks the
  stored one is judged: bets are settled at moments that time alone chooses, never at those that look good;
- looks come every LOOK_SECONDS, in the first minute of a step every FIRST_SECONDS, and one at every change of who is
  compared, of weights or of gateways; between rollouts every QUIET_SECONDS, so that it is known how stable's bad
  answers come. While no answer comes nothing is stored;
- the candidate's first weight begins the evidence, a change of its weight a step, all traffic the time alone. This
  follows from the weight that the stored status gives it, so a crash between two writes only makes a look late;
- who else becomes the candidate, who is tried once more, and other objectives, begin anew: gateways' counters are then
  only positions;
- stable is watched by itself too. If it breaks an objective while a candidate has traffic, that may be the candidate's
  doing: two adapters share an engine. No step is taken then, for ten minutes at least, and nobody is rejected for it;
- what Prometheus has answered is taken in with a look, and stored with it (promchecks.py);
- in the first minute of a step nothing but gross harm is believed of a revision that is watched by itself (`steady`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tuneyard.api.analysis import (
    DEFAULT_LATENCY_SHARE,
    DEFAULT_MIN_REQUESTS,
    DEFAULT_WARM_UP,
    AnalysisSpec,
    share,
)
from tuneyard.api.documents import Counted
from tuneyard.api.evidence import EvidenceRecord
from tuneyard.api.rollout import RolloutSpec, StableContents
from tuneyard.api.schema import seconds
from tuneyard.planning.analysis import (
    UNSTEADY,
    Analysis,
    Judgement,
    Outcome,
    Rules,
    Sight,
    Target,
    begun,
    broken,
    doubtful,
    judged,
    observed,
    steady,
    stepped,
)
from tuneyard.planning.analysisrecord import recorded, restored
from tuneyard.planning.evidence import (
    UNNAMED,
    Counts,
    Objective,
    Position,
    Reading,
    forgotten,
    growth,
    read_counts,
    total,
    warmed,
    written_counts,
)
from tuneyard.planning.feedbackdrift import counted, day_of
from tuneyard.planning.promchecks import evaluated
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.sequential import Comparison, Watch, watch_after

LOOK_SECONDS = 5.0
FIRST_SECONDS = 1.0
QUIET_SECONDS = 60.0
_OWN_SECONDS = 600.0
_PROCESSES = 32
"""Positions that are kept at most of processes that do not answer."""

Own = Mapping[Objective, Watch]
_OWN: TypeAdapter[dict[Objective, Watch]] = TypeAdapter(dict[Objective, Watch])


@dataclass(frozen=True)
class Look:
    """What is known now."""

    analysis: Analysis
    record: EvidenceRecord
    stored: bool
    """The record is the stored one; otherwise it is to be stored."""
    judgement: Judgement | None = None
    """None: the candidate has had no traffic."""
    telling: bool = True
    """Its numbers, where they are others, are to be said now: every LOOK_SECONDS, and at a change of weights."""
    again: float | None = None
    """Seconds after which time alone asks for another look."""

    @property
    def blamed(self) -> bool:
        """Stable breaks an objective since the candidate has traffic: it may be the candidate's doing."""
        return bool(self.record.broken) and not self.record.broken_before

    @property
    def doubtful(self) -> bool:
        """It must not be promoted for having waited."""
        return doubtful(self.analysis)

    @property
    def alone(self) -> bool:
        """The candidate has all traffic."""
        return bool(self.analysis.alone)


def rules_of(rollout: RolloutSpec) -> Rules | None:
    """What candidates are judged by; None: by nothing."""
    spec = rollout.analysis
    targets = _targets(spec) if spec is not None and rollout.mode == "Progressive" else []
    if spec is None or not targets:
        return None
    return Rules(targets, len(rollout.steps or ()) + 1, spec.min_requests or DEFAULT_MIN_REQUESTS)


def _targets(spec: AnalysisSpec) -> list[Target]:
    slo = spec.slo
    slow = share(slo.slow_share) if slo.slow_share else DEFAULT_LATENCY_SHARE
    found = [Target(Objective.ERROR_RATE, share(slo.error_rate))] if slo.error_rate else []
    latencies = ((Objective.TTFT, slo.ttft), (Objective.ITL, slo.itl), (Objective.E2E, slo.e2e))
    found += [Target(objective, slow) for objective, limit in latencies if limit]
    return [*found, Target(Objective.FEEDBACK, share(slo.feedback))] if slo.feedback else found


def look(seen: Seen, candidate: str | None, stable: str) -> Look | None:
    """What is known of the candidate, or of stable alone; None where nothing is to be known, or contents are not."""
    rules, spec, before = rules_of(seen.rollout), seen.rollout.analysis, _contents(seen, stable)
    about = _contents(seen, candidate) if candidate is not None else None
    if rules is None or spec is None or before is None or (candidate is not None and about is None):
        return None
    told = seen.answers.about({before.revision, *([about.revision] if about else ())})
    looking = _Looking(replace(seen, answers=told), rules, spec, before, about)
    known = looking.known()
    now = seen.now.timestamp()
    if known is None:
        made = looking.settled(looking.anew())
        return looking.said(*made)
    record, analysis, own = known
    same = record.candidate == about and not _retried(seen, about)
    late = _late(record, now)
    readings = looking.readings(record)
    read = looking.read(record, readings)
    position, grown = growth(Position(record.looked, read), readings, now)
    known_by_name = all(r.process in record.seen for r in readings)
    unchanged = same and record.weight == looking.weight and known_by_name
    checks = evaluated(seen, record) if same else {}
    news = bool(grown) or checks != record.checks
    if unchanged and not (news and late <= 0):
        return looking.said(record, analysis, own, stored=True, waits=late if news else None)
    telling = not unchanged or now // LOOK_SECONDS != record.looked // LOOK_SECONDS
    analysis = looking.grown(analysis, record, grown)
    record, own = looking.watched(record, own, analysis, grown)
    record = record.model_copy(
        update={"looked": now, "seen": looking.positions(position), "unnamed": True, "checks": checks}
    )
    if not same:
        record, analysis = looking.about_another(record, analysis)
    made = looking.settled((record, analysis, own))
    return replace(looking.said(*made), telling=telling)


_Known = tuple[EvidenceRecord, Analysis, Own]


@dataclass(frozen=True)
class _Looking:
    """One look at a candidate (or at nobody) and stable."""

    seen: Seen
    rules: Rules
    spec: AnalysisSpec
    stable: StableContents
    candidate: StableContents | None

    @property
    def now(self) -> float:
        return self.seen.now.timestamp()

    @property
    def about(self) -> str:
        """The candidate's name; nobody's is empty."""
        return self.candidate.revision if self.candidate else ""

    @property
    def weight(self) -> int:
        """What the stored status gives the candidate."""
        return self.seen.served.get(self.about, 0)

    def known(self) -> _Known | None:
        """What is stored, where it is about this stable revision and these objectives."""
        record = self.seen.evidence
        if record is None or record.slo != self.spec.slo or record.stable != self.stable:
            return None
        analysis = restored(json.dumps(record.analysis))
        if analysis is None:
            return None
        try:
            return record, analysis, _OWN.validate_python(record.own)
        except ValidationError:
            return None

    def anew(self) -> _Known:
        """Nothing is known: what gateways have counted is only where they begin."""
        meta = self.seen.deployment.metadata
        analysis = Analysis(self.about, self.stable.revision)
        record = EvidenceRecord(
            deployment=meta.name,
            uid=meta.uid,
            slo=self.spec.slo,
            stable=self.stable,
            candidate=self.candidate,
            looked=self.now,
            seen=self.positions(self._here()),
            unnamed=True,
            analysis={},
            own_since=self.now,
            # of who was stable before, and may be again
            feedback=self.seen.evidence.feedback if self.seen.evidence is not None else [],
        )
        return record, analysis, {}

    def readings(self, record: EvidenceRecord) -> list[Reading]:
        """What gateways tell of the revisions that the record is about."""
        return self._of({record.stable.revision, record.candidate.revision if record.candidate else ""})

    def read(self, record: EvidenceRecord, readings: Iterable[Reading]) -> dict[str, Counts]:
        """How far gateways have been read. Where an older operator has not read what nobody names it begins now."""
        read: dict[str, Counts] = {process: read_counts(counted) for process, counted in record.seen.items()}
        for reading in () if record.unnamed else readings:
            if reading.process in read:
                begins = {s: t for s, t in reading.counts.items() if s.objective in UNNAMED}
                read[reading.process] = {**read[reading.process], **begins}
        return read

    def grown(self, analysis: Analysis, record: EvidenceRecord, grown: Counts) -> Analysis:
        """The analysis with what has come. What came before the end of warm-up was cold, whenever it is looked at."""
        warm_up = seconds(self.spec.warm_up) if self.spec.warm_up else DEFAULT_WARM_UP
        warm_at = 0.0 if record.since is None else record.since + warm_up
        sight = Sight(self.now, warmed(grown, record.looked, warm_at), age=self.now - record.step_since)
        return observed(analysis, self.rules, sight)

    def watched(
        self, record: EvidenceRecord, own: Own, analysis: Analysis, grown: Counts
    ) -> tuple[EvidenceRecord, Own]:
        """Stable by itself: the watch is begun anew now and then, or a bad hour would count for days."""
        new = total(t for s, t in grown.items() if s[:2] == (self.stable.revision, Objective.FEEDBACK))
        drift, today = self.seen.rollout.drift, day_of(self.seen.now)
        kept = counted(record.feedback, self.stable, new, drift.feedback if drift else None, today)
        record, watches = record.model_copy(update={"feedback": kept}), {}
        for target in self.rules.targets:
            mine = total(t for s, t in grown.items() if s[:2] == (self.stable.revision, target.objective))
            fresh = watch_after(analysis.comparisons.get(target.objective, Comparison()))
            mine = steady(mine, self.now - record.step_since)
            watches[target.objective] = own.get(target.objective, fresh).look(mine, target.tolerated)
        found = (broken(watches[t.objective], self.rules, t, self.stable.revision) for t in self.rules.targets)
        words = next((words for words in found if words), None)
        if self.now - record.own_since < _OWN_SECONDS:
            return record.model_copy(update={"broken": words or record.broken}), watches
        return record.model_copy(update={"broken": words, "own_since": self.now}), {}

    def positions(self, position: Position) -> dict[str, Counted]:
        """How far gateways are read, without those that are gone for good."""
        answers = self.seen.answers
        here = {r.process for r in answers.readings}
        if len(here) >= answers.expected or len(position.seen or {}) > _PROCESSES:
            position = forgotten(position, here)
        return {process: written_counts(counts) for process, counts in (position.seen or {}).items()}

    def about_another(self, record: EvidenceRecord, analysis: Analysis) -> tuple[EvidenceRecord, Analysis]:
        """Somebody else is the candidate, or nobody: how stable's bad answers come is known all the same.

        Of a gateway that is silent now nothing counts until it has said where it is.
        """
        update = {
            "candidate": self.candidate,
            "weight": 0,
            "since": None,
            "broken_before": False,
            "seen": self.positions(self._here()),
        }
        return record.model_copy(update=update), begun(replace(analysis, candidate=self.about), self.now)

    def settled(self, known: _Known) -> _Known:
        """With the weight that the candidate has now."""
        record, analysis, own = known
        weight = self.weight
        if record.weight == weight:
            return known
        update: dict[str, Any] = {"weight": weight, "step_since": self.now}
        if record.since is None:
            analysis, own = begun(analysis, self.now), {}
            was = bool(record.broken)
            update |= {"since": self.now, "broken_before": was, "broken": None, "own_since": self.now}
        if record.since is not None or weight == 100:
            analysis = stepped(analysis, self.now, alone=weight == 100)
        if weight == 100:
            update["broken"] = None
        return record.model_copy(update=update), analysis, own

    def said(
        self,
        record: EvidenceRecord,
        analysis: Analysis,
        own: Own,
        *,
        stored: bool = False,
        waits: float | None = None,
    ) -> Look:
        """The look, with what it says; `waits`: seconds until the next one, where answers have come."""
        answers = self.seen.answers
        if not stored:
            update = {"analysis": json.loads(recorded(analysis)), "own": _OWN.dump_python(dict(own), mode="json")}
            record = record.model_copy(update=update)
        if record.since is None:
            return Look(analysis, record, stored, telling=not stored, again=waits)
        sight = Sight(self.now, {}, answers.expected, answers.answered)
        judgement = judged(analysis, self.rules, sight)
        silent = max(analysis.heard, analysis.asked) + self.rules.silence - self.now
        told = record.looked + LOOK_SECONDS - self.now
        times = (waits, told, None if judgement.outcome is Outcome.NO_TRAFFIC else silent)
        again = min((t for t in times if t is not None and t > 0), default=None)
        return Look(analysis, record, stored, judgement, not stored or told <= 0, again)

    def _here(self) -> Position:
        return growth(Position(), self._of({self.stable.revision, self.about}), self.now)[0]

    def _of(self, revisions: Set[str]) -> list[Reading]:
        return [
            replace(r, counts={s: t for s, t in r.counts.items() if s.revision in revisions})
            for r in self.seen.answers.readings
        ]


def _late(record: EvidenceRecord, now: float) -> float:
    """Seconds until the next look is due; a clock that went back waits for nothing."""
    if record.candidate is None:
        wait = QUIET_SECONDS
    else:
        wait = FIRST_SECONDS if record.looked - record.step_since < UNSTEADY else LOOK_SECONDS
    return wait - (now - record.looked) if now >= record.looked else 0.0


def _retried(seen: Seen, about: StableContents | None) -> bool:
    """Whether these contents have a verdict that this pass drops: what they were rejected for counts no more."""
    stored = seen.before.rejects(about.content_hash) if seen.before is not None and about is not None else None
    return stored is not None


def _contents(seen: Seen, revision: str) -> StableContents | None:
    found = seen.hashes.get(revision)
    return StableContents(revision=revision, content_hash=found) if found is not None else None
