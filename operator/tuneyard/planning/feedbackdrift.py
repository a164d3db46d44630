"""Whether users think worse of stable's answers than in its first days.

Counts of feedback are kept per day and contents in the evidence (api/evidence.py), in the same write as how far
gateways have been read, so none is counted twice. Rules:
- a day is one of UTC and counts once it is over; feedback counts on the day on which the operator hears of it;
- the baseline is of the first `days` days in a row with `minAnswers` of these contents as stable, and stays what it
  was. The last `days` days are held against it, once a day, and never a day that belongs to both;
- it drifts when the share of bad answers is higher by `maxRise` points, and chance alone would bring that about less
  often than ALPHA: Fisher's exact test, of one side. Bad answers that come in runs (one user, one bad hour) are fewer
  things than they look like, so both counts are shrunk by how much more often a bad one follows a bad one;
- it has ended when less than half of `maxRise` is left. Days with too few answers change nothing, however many there
  are: what was said is kept beside the days;
- all of it follows from the kept days, so a lost status and a restart change nothing either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from tuneyard.api.analysis import share
from tuneyard.api.drift import (
    DEFAULT_DAYS,
    DEFAULT_MAX_RISE,
    DEFAULT_MIN_ANSWERS,
    FeedbackDrift,
    FeedbackDriftStatus,
    FeedbackSpan,
    KeptFeedback,
)
from tuneyard.api.rollout import StableContents
from tuneyard.planning.evidence import NOTHING, Tally, total

ALPHA = 5e-4
"""Of one look. Looks on each day of half a year give a false alarm in some 7 of 1,000 deployments, 16 where many
answers are bad: simulated by `make bench NAME=drift`, which says too how soon a drift is told."""
KEPT_DAYS = 30
_KEPT_CONTENTS = 4
_MOST_RUN = 0.9
_NEGLIGIBLE = 1e-9

_DAY = timedelta(days=1)


def day_of(now: datetime) -> date:
    """The day that a moment belongs to."""
    return now.astimezone(UTC).date()


def counted(
    kept: Iterable[KeptFeedback], stable: StableContents, new: Tally, spec: FeedbackDrift | None, today: date
) -> list[KeptFeedback]:
    """What is kept, with feedback on stable's answers that has just come; nothing where it is not asked for."""
    if spec is None:
        return []
    before = list(kept)
    mine = next((k for k in before if k.content_hash == stable.content_hash), None)
    mine = mine or KeptFeedback(content_hash=stable.content_hash, revision=stable.revision)
    known = mine.baseline
    drifting = (
        mine.drifting if known is None else _compared_days(mine, Tally(*known.counts), known.last, spec, today)[0]
    )
    days = {day: counts for day, counts in mine.days.items() if day > str(today - KEPT_DAYS * _DAY)}
    if new.judged:
        days[str(today)] = Tally(*days.get(str(today), NOTHING)).plus(new)
    mine = mine.model_copy(update={"revision": stable.revision, "days": days, "drifting": drifting})
    mine = mine.model_copy(update={"baseline": baseline(mine, spec, today)})
    others = [k for k in before if k.content_hash != stable.content_hash]
    # who was stable last comes last
    return [*others[-(_KEPT_CONTENTS - 1) :], mine]


def baseline(kept: KeptFeedback, spec: FeedbackDrift, today: date) -> FeedbackSpan | None:
    """The kept baseline, else the first days that are enough for one."""
    if kept.baseline is not None or not kept.days:
        return kept.baseline
    length, least, days = _length(spec), _least(spec), _days(kept)
    for last in range(min(days) + length - 1, today.toordinal()):
        found = _sum(days, length, last)
        if found.judged >= least:
            return FeedbackSpan(first=_text(last - length + 1), last=_text(last), counts=found)
    return None


def feedback_drift(kept: KeptFeedback | None, spec: FeedbackDrift, stable: str, today: date) -> FeedbackDriftStatus:
    """What is to be said today."""
    length, least = _length(spec), _least(spec)
    first = baseline(kept, spec, today) if kept is not None else None
    if kept is None or first is None:
        words = f"feedback on {stable} has no baseline yet: {length} days with {least} answers"
        return FeedbackDriftStatus(message=words)
    was, yesterday = Tally(*first.counts), today.toordinal() - 1
    about = f"feedback on {stable}: "
    told = _words(was, first.first, first.last)
    earliest = date.fromisoformat(first.last).toordinal() + length
    if earliest > yesterday:
        return FeedbackDriftStatus(message=f"{about}{told}; compared from {_text(earliest + 1)} on")
    drifting, found = _compared_days(kept, was, first.last, spec, today)
    now, span = _sum(_days(kept), length, yesterday), (_text(yesterday - length + 1), _text(yesterday))
    if found is None:
        words = f"only {now.judged} answers with feedback from {span[0]} to {span[1]}, {least} are needed"
        if drifting:
            words += "; it was worse when there were enough"
        return FeedbackDriftStatus(drifting=drifting, message=about + words)
    words = f"{_words(now, *span)}, against {told}"
    if drifting:
        words += f": {100 * found.rise:+.2g} points, and maxRise is {spec.max_rise or DEFAULT_MAX_RISE}"
    return FeedbackDriftStatus(drifting=drifting, message=about + words)


def _compared_days(
    kept: KeptFeedback, was: Tally, baseline_ends: str, spec: FeedbackDrift, today: date
) -> tuple[bool, Compared | None]:
    """Whether it drifts, by every day that is kept and else as it was, and how the last days compare."""
    length, days, yesterday = _length(spec), _days(kept), today.toordinal() - 1
    drifting, found = kept.drifting, None
    # of days that are not kept any more no sum is whole; what nobody has counted since is kept for longer
    whole = min([yesterday - KEPT_DAYS + 1 + length, *(day + length - 1 for day in days)])
    for last in range(max(date.fromisoformat(baseline_ends).toordinal() + length, whole), yesterday + 1):
        found = compared(was, _sum(days, length, last), spec)
        if found is not None:
            drifting = found.significant or (drifting and not found.over)
    return drifting, found


@dataclass(frozen=True)
class Compared:
    """Some days against the baseline."""

    rise: float
    """Of the share of bad answers."""
    significant: bool
    over: bool
    """So little of it is left that a drift has ended."""


def compared(before: Tally, now: Tally, spec: FeedbackDrift) -> Compared | None:
    """How far feedback has become worse; None of too few answers."""
    if min(before.judged, now.judged) < _least(spec):
        return None
    rise, most = now.rate - before.rate, share(spec.max_rise or DEFAULT_MAX_RISE)
    significant = rise >= most and _chance(before, now) < ALPHA
    return Compared(rise, significant, over=rise < most / 2)


def _chance(before: Tally, now: Tally) -> float:
    """How often chance alone would give at least so many of the bad ones to `now`."""
    both = before.plus(now)
    after_bad = both.again / both.after_bad if both.after_bad else 0.0
    after_good = both.starts / both.calm if both.calm else 0.0
    run = min(_MOST_RUN, max(0.0, after_bad - after_good))
    shrunk = (1 - run) / (1 + run)
    judged, bad = int(now.judged * shrunk), int(now.bad * shrunk)
    return fisher(bad, judged, bad + int(before.bad * shrunk), judged + int(before.judged * shrunk))


def fisher(bad: int, judged: int, all_bad: int, everything: int) -> float:
    """The chance that of `judged` answers, drawn from `everything` with `all_bad`, at least `bad` are bad.

    For more bad ones than are to be expected: then each term is smaller than the one before.
    """
    good = everything - all_bad
    log = _choose(all_bad, bad) + _choose(good, judged - bad) - _choose(everything, judged)
    term = found = math.exp(min(0.0, log))
    for n in range(bad, min(all_bad, judged)):
        term *= (all_bad - n) * (judged - n) / ((n + 1) * (good - judged + n + 1))
        found += term
        if term < _NEGLIGIBLE * found:
            break
    return min(1.0, found)


def _choose(of: int, some: int) -> float:
    """The logarithm of how many ways there are."""
    return math.lgamma(of + 1) - math.lgamma(some + 1) - math.lgamma(of - some + 1)


def _length(spec: FeedbackDrift) -> int:
    return spec.days or DEFAULT_DAYS


def _least(spec: FeedbackDrift) -> int:
    return spec.min_answers or DEFAULT_MIN_ANSWERS


def _days(kept: KeptFeedback) -> dict[int, Tally]:
    """The kept days by their number."""
    return {date.fromisoformat(day).toordinal(): Tally(*counts) for day, counts in kept.days.items()}


def _text(day: int) -> str:
    return str(date.fromordinal(day))


def _sum(days: Mapping[int, Tally], length: int, last: int) -> Tally:
    """Feedback of so many days up to this one."""
    return total(days[day] for day in range(last - length + 1, last + 1) if day in days)


def _words(tally: Tally, first: str, last: str) -> str:
    return f"{tally.bad} of {tally.judged} bad ({100 * tally.rate:.3g} %) from {first} to {last}"
