"""What the counts say of a candidate: Pass, Reject or Continue, and in one sentence why.

Rules:
- Reject: in one objective the candidate is worse than stable at the same time, beyond what chance does (sequential.py),
  and more of its answers are bad than is tolerated. Worse but within the tolerance is nobody's concern, and a candidate
  that is no worse than stable stays, though both break the tolerance: that is stable's trouble (`broken`);
- the chance `alpha` of a false rejection is for the whole rollout. It is shared by the objectives, and by what is asked
  of each: worse in the whole rollout, or worse since this step began;
- Pass needs `min_requests` judged answers, and of each objective that the candidate is not several times as bad as
  stable, or that its share of bad answers is below what is tolerated; either with the chance `power` that a bad
  candidate would not have got there. Pass is said of what is known now, and may be taken back by the next look;
- what nobody names is compared too (`COMPARED`): a candidate that refuses what stable answers, or hangs until clients
  leave, has no answer that an objective could judge. This has a chance of its own, a twentieth of `alpha`, so that no
  objective's share becomes smaller. It is only ever held against stable at the same time, never against a limit: what
  users send, and how patient they are, is their business. So it says nothing while the candidate has all traffic;
- a candidate that is asked, though no objective could judge any of its answers, is not one that nobody asks
  (`unjudged`): it never passes by waiting;
- silence says nothing: NoTraffic and MetricsUnavailable neither reject nor pass, whatever was counted before;
- with all traffic on the candidate there is no stable to compare with. Only gross harm is then seen: more bad answers
  than twice the larger of what is tolerated and what stable had in the rollout. Errors end sooner than good answers:
  what one revision alone shows in the first minute after a change of weights looks worse than it is (`steady`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from tuneyard.planning.evidence import COMPARED, NOTHING, Counts, Objective, Pair, Tally, pairs, total
from tuneyard.planning.sequential import NEW, Capital, Comparison, Watch, divergence, watch_after

_ERROR_SHARE = 0.95
_WHOLE_SHARE = 0.97
"""Of alpha; a hundredth costs the others a bad answer or two, and the first ones cannot spare it (a small rise of the
error rate takes hundreds of answers to see)."""
_UNNAMED_SHARE = 0.05
"""For what nobody names, beyond that of the objectives; for each its part."""
_MORE = {Objective.CLIENT_ERRORS: 0.02, Objective.CLIENTS_LEFT: 0.05}
"""By how much the candidate's share of all requests may be above stable's. Chance gives each revision the same requests
(one by one, so that nobody stays with one of them), and refusals are the rarer: two points may be few users of long
prompts, and all of those. Clients that stop when they have read enough do so more often if answers are longer, which is
no harm; from a candidate that hangs nearly all leave. The points are also what is left for users who stay with one
revision by means of their own, such as those that ask again and again until they get it."""
_ENOUGH = 20
"""Answers of the candidate before it is rejected for that; half of them bad: fewer may be one user who tries again."""
_BECAME = {
    Objective.CLIENT_ERRORS: "were refused with status 400 to 499",
    Objective.CLIENTS_LEFT: "ended because the client left before the answer was whole",
}
_AWAITED = 0.1
"""An objective that judges a smaller share of the answers (feedback, streams where few stream) holds up no pass."""
_GROSS = 2.0
UNSTEADY = 60.0
"""Seconds after a change of weights in which what has ended is not what was asked."""
_ERRORS_ONLY = 15.0
"""Seconds after it in which nothing but errors may have ended."""
_SEVERAL = 5


class Outcome(StrEnum):
    """What an analysis says."""

    PASS = "Pass"  # noqa: S105 (no password)
    REJECT = "Reject"
    CONTINUE = "Continue"
    NO_TRAFFIC = "NoTraffic"
    METRICS_UNAVAILABLE = "MetricsUnavailable"


@dataclass(frozen=True)
class Target:
    """One objective and the share of bad answers that is tolerated."""

    objective: Objective
    tolerated: float


@dataclass(frozen=True)
class Rules:
    """What a rollout is judged by."""

    targets: Sequence[Target]
    steps: int = 4
    min_requests: int = 300
    alpha: float = 0.01
    """The chance of rejecting a candidate that is no worse, in the whole rollout."""
    power: float = 0.95
    silence: float = 120.0
    """Seconds without a judged answer of the candidate that are NoTraffic."""


@dataclass(frozen=True)
class Sight:
    """One look at the gateways. Times are seconds."""

    now: float
    counts: Counts
    """What has come since the last look."""
    gateways: int = 1
    answered: int = 1
    age: float = math.inf
    """Seconds since the last change of weights."""


@dataclass(frozen=True)
class Analysis:
    """A candidate against a stable revision, until now."""

    candidate: str
    stable: str
    comparisons: Mapping[Objective, Comparison] = field(default_factory=dict)
    alone: Mapping[Objective, Watch] = field(default_factory=dict)
    """While the candidate has all traffic."""
    heard: float = 0.0
    """When the candidate's last judged answer was seen, at first when its traffic began."""
    unnamed: Mapping[Objective, Comparison] = field(default_factory=dict)
    """Of COMPARED; apart, so that an older operator can read the rest."""
    ended: Tally = NOTHING
    """The candidate's answers, as bad those that no objective could judge; older gateways do not tell them."""
    asked: float = 0.0
    """When the last of them was seen."""


@dataclass(frozen=True)
class Judgement:
    """An outcome with its one sentence."""

    outcome: Outcome
    sentence: str
    objective: Objective | None = None


def observed(analysis: Analysis, rules: Rules, sight: Sight) -> Analysis:
    """The analysis after another look."""
    comparisons, alone = dict(analysis.comparisons), dict(analysis.alone)
    heard, asked = analysis.heard, analysis.asked
    for target in rules.targets:
        objective = target.objective
        counts = _pairs(analysis, sight, objective)
        mine = total(p.candidate for p in counts.values())
        heard = sight.now if mine.judged else heard
        before = comparisons.get(objective, Comparison(since=sight.now))
        if objective in alone:
            alone[objective] = alone[objective].look(steady(mine, sight.age), _gross(target, before))
        else:
            comparisons[objective] = before.look(counts, sight.now)
    ended = total(p.candidate for p in _pairs(analysis, sight, Objective.UNJUDGED).values())
    return replace(
        analysis,
        comparisons=comparisons,
        alone=alone,
        heard=heard,
        unnamed=analysis.unnamed if alone else _unnamed(analysis, sight),
        ended=analysis.ended.plus(ended),
        asked=sight.now if ended.judged else asked,
    )


def _unnamed(analysis: Analysis, sight: Sight) -> dict[Objective, Comparison]:
    """What nobody names, where gateways tell it."""
    counts = {objective: _pairs(analysis, sight, objective) for objective in COMPARED}
    return {
        objective: analysis.unnamed.get(objective, Comparison(since=sight.now)).look(pair, sight.now)
        for objective, pair in counts.items()
        if pair or objective in analysis.unnamed
    }


def _pairs(analysis: Analysis, sight: Sight, objective: Objective) -> dict[int, Pair]:
    return pairs(sight.counts, objective, analysis.candidate, analysis.stable)


def steady(tally: Tally, age: float) -> Tally:
    """What a look says of a revision by itself, `age` seconds after a change of weights: at first only gross harm."""
    gross = age >= _ERRORS_ONLY and tally.judged >= _SEVERAL and tally.bad > tally.judged / 2
    return tally if gross or age >= UNSTEADY else NOTHING


def begun(history: Analysis, now: float) -> Analysis:
    """At the candidate's first weight: `history` has seen stable before, and of it only how bad answers come stays."""
    known, unnamed = (
        {o: replace(c.next_step(now), whole=NEW) for o, c in comparisons.items()}
        for comparisons in (history.comparisons, history.unnamed)
    )
    return replace(history, comparisons=known, alone={}, heard=now, unnamed=unnamed, ended=NOTHING, asked=now)


def stepped(analysis: Analysis, now: float, *, alone: bool) -> Analysis:
    """At the beginning of a step; `alone`: the candidate gets all traffic from now on."""
    comparisons, unnamed = (
        {o: c.next_step(now) for o, c in known.items()} for known in (analysis.comparisons, analysis.unnamed)
    )
    watches = {o: watch_after(c) for o, c in comparisons.items()} if alone else {}
    return replace(analysis, comparisons=comparisons, alone=watches, heard=now, unnamed=unnamed, asked=now)


def judged(analysis: Analysis, rules: Rules, sight: Sight) -> Judgement:
    """What is known now."""
    if not sight.answered:
        return Judgement(
            Outcome.METRICS_UNAVAILABLE,
            f"none of {sight.gateways} gateways has told its counts, so nothing is known of {analysis.candidate}",
        )
    for target in rules.targets:
        if found := _rejected(analysis, rules, target):
            return found
    for objective in COMPARED:
        if found := _refusing(analysis, rules, objective):
            return found
    if sight.answered < sight.gateways:
        return Judgement(
            Outcome.METRICS_UNAVAILABLE,
            f"only {sight.answered} of {sight.gateways} gateways have told their counts, too few to pass "
            f"{analysis.candidate}",
        )
    silent = sight.now - analysis.heard
    if unjudged(analysis) or (silent >= rules.silence > sight.now - analysis.asked):
        return Judgement(Outcome.CONTINUE, _unjudged_words(analysis, silent))
    if silent >= rules.silence:
        return Judgement(
            Outcome.NO_TRAFFIC,
            f"no answer of {analysis.candidate} has been judged for {silent:.0f} s",
        )
    found = _passed(analysis, rules)
    told = _became(analysis, [o for o in COMPARED if _worse(analysis, o)])
    if found.outcome is not Outcome.CONTINUE or not told:
        return found
    return replace(found, sentence=f"{found.sentence}; {told}; it is not promoted for having waited")


def doubtful(analysis: Analysis) -> bool:
    """Whether it must not be promoted for having waited: what nobody names speaks against it, or nothing for it."""
    return unjudged(analysis) or any(_worse(analysis, objective) for objective in COMPARED)


def _worse(analysis: Analysis, objective: Objective) -> bool:
    """Whether it is worse than tolerated by what nobody names, be it by chance."""
    return _beyond(objective, _compared(analysis, objective))


def _beyond(objective: Objective, seen: Pair) -> bool:
    mine, other = seen
    return mine.rate > other.rate + _MORE[objective]


def _compared(analysis: Analysis, objective: Objective) -> Pair:
    """What has been seen of both in the rollout."""
    return analysis.unnamed.get(objective, Comparison()).whole.seen


def unjudged(analysis: Analysis) -> bool:
    """Whether the candidate was asked, and no objective could judge any of its answers."""
    ended = analysis.ended
    known = any(_candidate(analysis, objective).judged for objective in analysis.comparisons)
    return ended.judged > 0 and ended.bad == ended.judged and not known


def _unjudged_words(analysis: Analysis, silent: float) -> str:
    ended, candidate = analysis.ended, analysis.candidate
    became = _became(analysis, COMPARED)
    some = f": {became}" if became else ""
    if unjudged(analysis):
        return (
            f"{candidate} is asked, but no objective could judge any of its {ended.judged} answers{some}; it is not "
            "promoted for having waited"
        )
    return (
        f"{candidate} is asked, but no answer of it has been judged for {silent:.0f} s; no objective could judge "
        f"{ended.bad} of {ended.judged} answers{some}"
    )


def _became(analysis: Analysis, objectives: Iterable[Objective]) -> str:
    """What became of its requests that no objective judges."""
    seen = ((o, *_compared(analysis, o)) for o in objectives)
    return ", ".join(
        f"{mine.bad} {_BECAME[objective]} (of {analysis.stable}'s {_part(other)})"
        for objective, mine, other in seen
        if mine.bad
    )


def _significant(comparison: Comparison, alpha: float, rules: Rules) -> Iterator[tuple[Capital, str]]:
    """What shows that the candidate is worse, with the words for since when."""
    later = _later(alpha, rules)
    for capital, most, since in (
        (comparison.whole, alpha * _WHOLE_SHARE, ""),
        (comparison.step, later, " since this step began"),
    ):
        if capital.log >= -math.log(most):
            yield capital, since


def _later(alpha: float, rules: Rules) -> float:
    return alpha * (1 - _WHOLE_SHARE) / max(1, rules.steps - 1)


def _refusing(analysis: Analysis, rules: Rules, objective: Objective) -> Judgement | None:
    """Whether it is worse by what nobody names."""
    comparison = analysis.unnamed.get(objective)
    if comparison is None:
        return None
    for capital, since in _significant(comparison, rules.alpha * _UNNAMED_SHARE / len(COMPARED), rules):
        mine, other = capital.seen
        enough = mine.judged >= _ENOUGH and mine.bad >= _ENOUGH / 2
        if enough and _beyond(objective, capital.seen):
            return Judgement(
                Outcome.REJECT,
                f"{objective.value}: {_part(mine)} of the requests to {analysis.candidate} {_BECAME[objective]}, in "
                f"the same time {_part(other)} of those to {analysis.stable}{since}, and {100 * _MORE[objective]:.0f} "
                f"percent points more are tolerated; {_by_chance(analysis, capital)}",
                objective,
            )
    return None


def _by_chance(analysis: Analysis, capital: Capital) -> str:
    return f"{analysis.candidate} being no worse, that comes by chance once in {_once(capital)} rollouts at most"


def _rejected(analysis: Analysis, rules: Rules, target: Target) -> Judgement | None:
    objective = target.objective
    comparison = analysis.comparisons.get(objective, Comparison())
    alpha = rules.alpha * _share(rules.targets, objective)
    for capital, since in _significant(comparison, alpha, rules):
        if capital.seen.candidate.rate > target.tolerated:
            return Judgement(
                Outcome.REJECT,
                f"{_said(analysis, target, capital)}{since}; {_by_chance(analysis, capital)}",
                objective,
            )
    later = _later(alpha, rules)
    watch = analysis.alone.get(objective)
    if watch and watch.capital.log >= -math.log(later):
        seen = watch.capital.seen.candidate
        return Judgement(
            Outcome.REJECT,
            f"{objective.value}: with all traffic on {analysis.candidate}, {_part(seen)} of its answers were bad, more "
            f"than {_percent(_gross(target, comparison))}, which is twice what is tolerated or stable had",
            objective,
        )
    return None


def _passed(analysis: Analysis, rules: Rules) -> Judgement:
    seen = {t.objective: _candidate(analysis, t.objective) for t in rules.targets}
    most = max((tally.judged for tally in seen.values()), default=0)
    if most < rules.min_requests:
        return Judgement(
            Outcome.CONTINUE, f"{most} of {rules.min_requests} answers of {analysis.candidate} have been judged"
        )
    told = []
    for target in rules.targets:
        tally = seen[target.objective]
        if tally.judged < _AWAITED * most:
            continue
        if tally.judged < rules.min_requests or not _good(analysis, rules, target, tally):
            return Judgement(
                Outcome.CONTINUE,
                f"{_said(analysis, target, _whole(analysis, target.objective))}: too close to call",
                target.objective,
            )
        told.append(_said(analysis, target, _whole(analysis, target.objective)))
    return Judgement(Outcome.PASS, "; ".join(told))


def _good(analysis: Analysis, rules: Rules, target: Target, tally: Tally) -> bool:
    """Not several times as bad as stable, or within the tolerance, with the chance of an error that `power` leaves."""
    doubt = -math.log(1 - rules.power)
    lost = _whole(analysis, target.objective).main_log <= -doubt
    within = tally.rate < target.tolerated and tally.judged * divergence(tally.rate, target.tolerated) >= doubt
    return lost or within


def broken(watch: Watch, rules: Rules, target: Target, revision: str) -> str | None:
    """Whether a revision by itself breaks an objective, in one sentence: stable's own, beside any candidate."""
    seen = watch.capital.seen.candidate
    if watch.capital.log < -math.log(rules.alpha * _share(rules.targets, target.objective)):
        return None
    return (
        f"{target.objective.value}: {_part(seen)} of the answers of {revision} were bad, {_percent(target.tolerated)} "
        "is tolerated"
    )


def _share(targets: Iterable[Target], objective: Objective) -> float:
    """The part of alpha that an objective has."""
    objectives = {t.objective for t in targets}
    if len(objectives) < 2 or Objective.ERROR_RATE not in objectives:
        return 1 / max(1, len(objectives))
    return _ERROR_SHARE if objective is Objective.ERROR_RATE else (1 - _ERROR_SHARE) / (len(objectives) - 1)


def _gross(target: Target, comparison: Comparison) -> float:
    return min(0.5, _GROSS * max(target.tolerated, comparison.whole.seen.stable.rate))


def _whole(analysis: Analysis, objective: Objective) -> Capital:
    return analysis.comparisons.get(objective, Comparison()).whole


def _candidate(analysis: Analysis, objective: Objective) -> Tally:
    """All of the candidate's answers, also those that came when it was alone."""
    alone = analysis.alone.get(objective, Watch()).capital.seen.candidate
    return _whole(analysis, objective).seen.candidate.plus(alone)


def _said(analysis: Analysis, target: Target, capital: Capital) -> str:
    mine, other = capital.seen
    return (
        f"{target.objective.value}: {_part(mine)} of the answers of {analysis.candidate} were bad, in the same time "
        f"{_part(other)} of {analysis.stable}, and {_percent(target.tolerated)} is tolerated"
    )


def _part(tally: Tally) -> str:
    return f"{tally.bad} of {tally.judged} ({_percent(tally.rate)})"


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %" if rate >= 0.095 else f"{100 * rate:.2g} %"


def _once(capital: Capital) -> str:
    return f"{math.exp(min(capital.log, math.log(1e9))):.0f}"
