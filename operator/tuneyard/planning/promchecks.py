"""What the checks of Prometheus say of a candidate.

Rules:
- every evaluation that gave a number counts once, also across the operator's end: the record says which was the last,
  and the next one counts an interval later;
- it counts once every gateway has served the candidate for `warmUp`: what is measured before is somebody else's, or a
  rate over nothing. For a step it has to be of after every gateway served the step's weight;
- out of bounds no step is taken; out of bounds `failures` times in a row is a rejection, whatever the answers say;
- no answer is no evidence: it holds, the count in a row neither grows nor ends, and the time of inconclusiveDeadline
  does not run. The same goes for a number of before the step's weight, and for one that has become old;
- nobody is promoted by `onInconclusive: Promote` while a check is out of bounds or says nothing;
- what is said of a check is its number and its limit, never what else was in the answer: labels are other tenants'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from tuneyard.api.analysis import DEFAULT_WARM_UP
from tuneyard.api.evidence import CheckRecord, EvidenceRecord
from tuneyard.api.promchecks import DEFAULT_FAILURES, CheckStatus, PrometheusCheck
from tuneyard.api.schema import seconds
from tuneyard.planning.analysis import Judgement, Outcome
from tuneyard.planning.promqueries import Evaluation, Query, commanded, queries
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.timestamps import rfc3339

_EARLY = 0.9
"""An evaluation counts this part of the interval after the one before: two processes may have asked, one after the
other."""
_GRACE = 30.0
"""Seconds that an evaluation may be late, beside the intervals, before that is said."""
_PENDING, _OLD = 2, 3
"""Intervals after which a first evaluation is overdue, and after which a number is old."""
NOT_SET_UP = "no Prometheus is set up to ask; set prometheus.url in Tuneyard's chart"


class State(StrEnum):
    """What one check says."""

    FINE = "Fine"
    PENDING = "Pending"
    """It has not been evaluated at this weight yet."""
    SILENT = "Silent"
    """There is no answer."""
    BREACHED = "Breached"
    """Out of bounds."""
    FAILED = "Failed"
    """So often that the candidate is rejected."""


@dataclass(frozen=True)
class Standing:
    """Where one check stands."""

    check: PrometheusCheck
    state: State
    words: str
    value: float | None = None
    failing: int = 0

    @property
    def sentence(self) -> str:
        """The same with the check's name."""
        return f"check {self.check.name}: {self.words}"

    @property
    def status(self) -> CheckStatus:
        """What the status says of it."""
        value = None if self.value is None else written(self.value)
        return CheckStatus(
            name=self.check.name,
            value=value,
            limit=limits(self.check),
            failures=self.failing,
            message=clipped(self.words),
        )


@dataclass(frozen=True)
class Standings:
    """Where all of them stand."""

    all: tuple[Standing, ...] = ()

    @property
    def fine(self) -> bool:
        """None of them is against a step."""
        return all(s.state is State.FINE for s in self.all)

    @property
    def halted(self) -> bool:
        """One of them says nothing now: whatever comes of that, no time counts for it."""
        return any(s.state in (State.PENDING, State.SILENT) for s in self.all)

    def weighed(self, judgement: Judgement) -> Judgement:
        """What answers and checks together say, in one sentence."""
        if judgement.outcome is Outcome.REJECT or not self.all:
            return judgement
        for state, outcome in ((State.FAILED, Outcome.REJECT), (State.SILENT, Outcome.METRICS_UNAVAILABLE)):
            words = _joined(s.sentence for s in self.all if s.state is state)
            if words and (state is State.FAILED or judgement.outcome is not Outcome.METRICS_UNAVAILABLE):
                return Judgement(outcome, words)
        if judgement.outcome is Outcome.METRICS_UNAVAILABLE:
            return judgement
        against = [s.sentence for s in self.all if s.state is not State.FINE]
        if judgement.outcome is Outcome.PASS:
            if against:
                return Judgement(Outcome.CONTINUE, _joined(against))
            return Judgement(Outcome.PASS, _joined([judgement.sentence, *(s.sentence for s in self.all)]))
        return Judgement(judgement.outcome, _joined([*against, judgement.sentence]), judgement.objective)

    @property
    def status(self) -> list[CheckStatus] | None:
        """What the status says of them."""
        return [s.status for s in self.all] or None


def written(number: float) -> str:
    """A number as people read it."""
    return f"{number:.6g}"


def limits(check: PrometheusCheck) -> str:
    """The bounds in words."""
    known = (("min", check.min), ("max", check.max))
    return ", ".join(f"{word} {written(bound)}" for word, bound in known if bound is not None)


def breach(check: PrometheusCheck, value: float) -> str | None:
    """How a number is out of bounds, None where it is within."""
    if check.max is not None and value > check.max:
        return f"{written(value)} is above max {written(check.max)}"
    if check.min is not None and value < check.min:
        return f"{written(value)} is below min {written(check.min)}"
    return None


def evaluated(seen: Seen, record: EvidenceRecord) -> dict[str, CheckRecord]:
    """What is known of the checks with the evaluations that have come; none of before gateways served the candidate."""
    if record.since is None:
        return {}
    now, found = seen.now.timestamp(), {}
    for check, query in _checks(seen, record):
        known = _served(seen, record, _known(record, query, now))
        since = known.counts_from
        for evaluation in seen.checks.get(check.name, ()):
            if since is not None and evaluation.query == query.text and since <= evaluation.at <= now + 1:
                known = _after(known, check, query, evaluation)
        if known != CheckRecord(query=query.id):
            found[check.name] = known
    return found


def standings(seen: Seen, record: EvidenceRecord) -> Standings:
    """Where the checks stand; none is asked of who was promoted to all traffic."""
    now, candidate = seen.now.timestamp(), record.candidate
    if candidate is None or commanded(seen.before, candidate.revision):
        return Standings()
    found = ((check, query, _known(record, query, now)) for check, query in _checks(seen, record))
    return Standings(tuple(_standing(seen, record, check, query, known) for check, query, known in found))


def _checks(seen: Seen, record: EvidenceRecord) -> Iterable[tuple[PrometheusCheck, Query]]:
    spec = seen.rollout.analysis
    if spec is None or record.candidate is None:
        return ()
    asked = queries(spec, seen.deployment.metadata.key, record.candidate.revision, record.stable.revision)
    return zip(spec.prometheus or (), asked, strict=True)


def _known(record: EvidenceRecord, query: Query, now: float) -> CheckRecord:
    """What is stored of just this query; a clock that went back makes no number newer than those to come."""
    known = record.checks.get(query.check)
    if known is None or known.query != query.id:
        return CheckRecord(query=query.id, counts_from=known.counts_from if known else None)
    ahead = known.at is not None and known.at > now + _GRACE
    return known.model_copy(update={"at": None, "value": None}) if ahead else known


def _served(seen: Seen, record: EvidenceRecord, known: CheckRecord) -> CheckRecord:
    """With the time from which evaluations count, by what gateways say now; who is without traffic begins again."""
    about, spec, now = record.candidate, seen.rollout.analysis, seen.now.timestamp()
    warm_up = seconds(spec.warm_up) if spec and spec.warm_up else DEFAULT_WARM_UP
    weight, since = seen.served.get(about.revision if about else "", 0), known.counts_from
    if not weight or (since is not None and since > now + warm_up + _GRACE):
        since = None
    confirmed = about is not None and weight == record.weight == seen.confirmed.get(about.revision)
    if weight and confirmed and (since is None or since < record.step_since):
        since = now + warm_up if since is None else now
    return known.model_copy(update={"counts_from": since})


def _after(known: CheckRecord, check: PrometheusCheck, query: Query, new: Evaluation) -> CheckRecord:
    """With one more evaluation; one that was taken in before changes nothing."""
    if known.at is not None and new.at <= known.at:
        return known
    value = new.number
    if value is None:
        return known.model_copy(update={"trouble": clipped(new.words, 300)})
    early = known.at is not None and new.at < known.at + _EARLY * query.interval
    if early and (known.at or 0.0) >= (known.counts_from or 0.0):
        return known
    # in place of one of before the step it says where the check stands, and is too soon after it for the row
    failing = known.failing if early else known.failing + 1 if breach(check, value) else 0
    update = {"at": new.at, "value": value, "failing": failing, "trouble": None}
    return known.model_copy(update=update)


def _standing(seen: Seen, record: EvidenceRecord, check: PrometheusCheck, query: Query, known: CheckRecord) -> Standing:
    most, now = check.failures or DEFAULT_FAILURES, seen.now.timestamp()
    out = None if known.value is None else breach(check, known.value)

    def found(state: State, words: str) -> Standing:
        return Standing(check, state, words, known.value, known.failing)

    if known.failing >= most:
        return found(State.FAILED, f"{out or f'out of bounds ({limits(check)})'}, {known.failing} times in a row")
    if not seen.settings.prometheus.url:
        return found(State.SILENT, f"it is not evaluated: {NOT_SET_UP}")
    if known.trouble is not None:
        return found(State.SILENT, f"it has no number: {known.trouble}")
    begins = known.counts_from
    if begins is None or begins < record.step_since:
        return found(State.PENDING, "it is evaluated when every gateway serves this weight")
    if known.at is None or known.at < begins:
        waited = now - begins
        if waited > _PENDING * query.interval + _GRACE:
            return found(State.SILENT, "it has never been evaluated at this weight")
        return found(State.PENDING, "it has not been evaluated at this weight yet")
    if now - known.at > _OLD * query.interval + _GRACE:
        return found(State.SILENT, f"it has not been evaluated since {rfc3339(datetime.fromtimestamp(known.at, UTC))}")
    if out is not None:
        return found(State.BREACHED, f"{out}, {known.failing} of {most} times in a row")
    return found(State.FINE, f"{written(known.value or 0.0)} is within {limits(check)}")


def _joined(sentences: Iterable[str]) -> str:
    return "; ".join(sentences)
