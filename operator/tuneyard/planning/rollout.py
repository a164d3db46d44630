"""Where a rollout stands next: who is stable, who is the candidate, how far it may go, and why.

Rules (rollout.md 1 to 5):
- ceiling: only `allowed` is decided here, never a spec; traffic.effective holds it against the spec and the pods;
- position: a candidate of which nothing is known begins at step 0, also one with other contents (rolloutcontents.py).
  A step's hold counts from when every gateway serves its weight, and begins again when the candidate loses its pods or
  the rollout is paused. Without stable's pods no step is taken: there is nothing to compare with and nowhere to go to;
- evidence: with spec.rollout.analysis a step is taken, and a candidate rejected, for what its answers say; see
  rolloutgate.py;
- verdict: see verdicts.py. A rejected revision is allowed 0, and no other revision waits for it. While stable has no
  pod it keeps what it has (verdicts.serves_on): a bad answer is more than none. It never gets more than that;
- stable: the last revision that got all traffic, held it for bakeTime and had no verdict. What has been stable before
  needs no steps: going back to it is allowed all along, so gateways do it by themselves, also while no operator runs;
- gates: see gates.py. Before they are passed a candidate is allowed nothing, as one of which nothing is known;
- order: weight goes down at once and by itself, in a status that is written first (rolloutrecord.takes_away); it goes
  up by one step a pass, and only after the pods are there.
- mode Manual: the spec's weights, unless a verdict or the pods are against them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus, Verdict
from tuneyard.planning.gates import Gating, gate_actions, gating, judged_states, settled_states, skipped
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Action
from tuneyard.planning.remedies import clipped
from tuneyard.planning.revisions import cause, is_work
from tuneyard.planning.rolloutanalysis import Look, look, rules_of
from tuneyard.planning.rolloutcommands import given, obey, unless_rejected
from tuneyard.planning.rolloutcontents import with_contents
from tuneyard.planning.rolloutgate import OPEN, Gate, gate, inconclusive_left
from tuneyard.planning.rollouthistory import was_stable, with_history
from tuneyard.planning.rolloutphases import PHASE_IN, Situation, transition
from tuneyard.planning.rolloutpods import LOOK, awaits_replicas
from tuneyard.planning.rolloutposition import Position, position, promotions, rest_left, rests
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.traffic import Split, by_claim, choose_stable, effective
from tuneyard.planning.verdicts import (
    deadline_left,
    failure,
    kept_verdicts,
    new_verdict,
    overdue,
    paused,
    serves_on,
    until_stable,
    verdict_on,
    waiting_since,
    with_verdict,
)

Told = tuple[Literal["Normal", "Warning"], Reason, str]


@dataclass(frozen=True)
class Decision:
    """The next status and its split, and what is to be said of it."""

    status: RolloutStatus
    """Without stableSince, which promotion.py knows."""
    split: Split
    problem: Problem | None = None
    work: Problem | None = None
    told: tuple[Told, ...] = ()
    requeue_after: float | None = None
    look: Look | None = None
    """What is known of answers."""
    actions: tuple[Action, ...] = ()
    """What gates need."""


@dataclass(frozen=True)
class _Step:
    """What is decided on the way to a Decision."""

    status: RolloutStatus
    situation: Situation
    position: Position | None = None
    waiting: float | None = None
    """Seconds of the candidate's progressDeadline that are left."""
    gate: Gate = OPEN
    gating: Gating | None = None
    """Of a candidate that has no verdict."""
    lacking: Problem | None = None
    """It has too few pods for what it is about to get."""


def decide(seen: Seen) -> Decision:
    """What follows from what is seen now."""
    opened = _opened(seen)
    obeyed = obey(seen, opened, given(seen), _candidate(seen, opened))
    if seen.spec.progressive:
        taken = _progressive(seen, obeyed.status, obeyed.promoted)
    else:
        taken = _manual(seen, obeyed.status)
    status = with_history(seen, taken.status)
    split = effective(seen.spec, seen.ready, stable=status.stable, allowed=status.allowed, on_demand=seen.on_demand)
    status = with_contents(_weighed(seen, status, split, taken), seen.before, seen.hashes)
    work = _work(seen, status, split, taken)
    held, found = taken.position, _look(seen, status, taken)
    looks = (found.again if found else None, inconclusive_left(seen, status.analysis))
    gated = taken.gating.look_again if taken.gating else None
    turn = rest_left(seen, status) if _next_in_turn(seen, status) else None
    lacking = LOOK if taken.lacking else None
    waits = (held.left if held else None, taken.waiting, gated, turn, lacking, *looks)
    return Decision(
        status=status,
        split=split,
        problem=_problem(seen, status, work),
        work=work,
        told=tuple(_told(seen, status, taken)),
        requeue_after=min((w for w in waits if w is not None and w > 0), default=None),
        look=found,
        actions=gate_actions(seen, status, taken.gating),
    )


# -- who --------------------------------------------------------------------------------------------------------------


def _opened(seen: Seen) -> RolloutStatus:
    """The status before with the verdicts that still hold and the revision that is stable now."""
    before = seen.before or RolloutStatus()
    verdicts = kept_verdicts(seen, list(before.verdicts or ()), before.stable)
    token = seen.rollout.retry_token
    retried = bool(token) and any(v.retry_token != token for v in before.verdicts or ())
    status = RolloutStatus(
        stable=before.stable, paused=before.paused, verdicts=verdicts, history=before.history,
        last_command=before.last_command, command_ids=before.command_ids,
        gates_since=seen.stamp if retried else before.gates_since,
    )  # fmt: skip
    return status.model_copy(update={"stable": _stable(seen, before.stable, _rejected(seen, status))})


def _rejected(seen: Seen, status: RolloutStatus) -> dict[str, int]:
    """Those with a verdict, who may have nothing."""
    return {name: 0 for name in seen.listed if verdict_on(seen, status, name)}


def _stable(seen: Seen, previous: str | None, rejected: dict[str, int]) -> str | None:
    """The stable revision; while there is none that could be, the one that was, though it is not listed any more."""
    if not seen.spec.progressive:
        chosen = choose_stable(seen.spec, previous, seen.ready, rejected)
        if chosen in rejected:
            return previous
        # a name in the status decides for gateways who takes what is withheld: never before something is ready
        return chosen if chosen == previous or seen.ready[chosen] else None
    if previous in seen.listed:
        return previous
    for name in by_claim(seen.spec, previous, rejected):
        if name in rejected:
            break
        if seen.ready[name]:
            return name
        if is_work(cause(seen.states[name])):
            # it will be there in a moment: who else is ready first does not take its place
            break
    return previous


def _candidate(seen: Seen, status: RolloutStatus) -> str | None:
    """The revision that the rollout is about: who has a verdict is the candidate only when nobody else could be."""
    others = [n for n in seen.listed if n != status.stable and seen.spec.weight_of(n)]
    free = [n for n in others if verdict_on(seen, status, n) is None]
    if not seen.spec.progressive:
        # meant to get most; of equals the one listed last, which is the newest
        return max(free or others, key=lambda n: (seen.spec.weight_of(n), seen.listed.index(n)), default=None)
    climbing = [n for n in free if seen.allowed_before(n) < 100]
    # who has all that the spec gives it, and has shown what is asked for, would keep the others waiting for ever
    going = [n for n in climbing if not rests(seen, n)]
    # of two that get answers judged, one would be watched by nobody: who has traffic stays the candidate
    watched = [n for n in going if seen.allowed_before(n)] if rules_of(seen.rollout) is not None else []
    # of several that rest the one that climbed last stays it: with another one its evidence would begin anew
    last = [n for n in climbing if seen.before is not None and n == seen.before.candidate]
    ranked = (watched, going, last, climbing, free, others)
    return next((name for names in ranked for name in reversed(names)), None)


def _next_in_turn(seen: Seen, status: RolloutStatus) -> str | None:
    """Who is to climb once the candidate has been at its spec weight for long enough."""
    candidate = status.candidate
    if candidate is None or not seen.spec.progressive:
        return None
    waiting = [
        name
        for name in seen.listed
        if name not in (candidate, status.stable)
        and seen.allowed_before(name) < seen.spec.weight_of(name)
        and verdict_on(seen, status, name) is None
    ]
    return waiting[-1] if waiting else None


# -- how far ----------------------------------------------------------------------------------------------------------


def _manual(seen: Seen, status: RolloutStatus) -> _Step:
    rejected, candidate = _rejected(seen, status), _candidate(seen, status)
    limits = {name: serves_on(seen, name, status.stable) for name in rejected}
    update = {"candidate": candidate, "allowed": limits or None, "paused": None}
    status = status.model_copy(update=update)
    if candidate in rejected:
        return _Step(status, Situation.REFUSED)
    if status.stable is None or status.stable not in seen.listed:
        return _Step(status, Situation.UNSERVED)
    split = effective(seen.spec, seen.ready, stable=status.stable, allowed=status.allowed, on_demand=seen.on_demand)
    whole = seen.spec.weight_of(status.stable) == 100 and split.weights[status.stable] == 100
    return _Step(status, Situation.SETTLED if whole else Situation.CLIMBING)


def _progressive(seen: Seen, status: RolloutStatus, promoted: str | None) -> _Step:
    if status.stable is None or status.stable not in seen.listed:
        candidate = _candidate(seen, status)
        refused = candidate is not None and verdict_on(seen, status, candidate) is not None
        status = status.model_copy(update={"candidate": candidate, "allowed": _allowed(seen, status, None)})
        return _Step(status, Situation.REFUSED if refused else Situation.UNSERVED)
    stable = status.stable
    status, asked, found = _judged(seen, status, stable)
    candidate = _candidate(seen, status)
    status = unless_rejected(seen, status, promoted).model_copy(update={"candidate": candidate})
    if candidate is None:
        status = status.model_copy(update={"allowed": _allowed(seen, status, None), "paused": None})
        return _Step(status, Situation.SETTLED, gate=asked)
    if verdict_on(seen, status, candidate) is not None:
        gates_over = status.gates or list(settled_states(seen, candidate)) or None
        stays = {"allowed": _allowed(seen, status, None), "gates": gates_over}
        return _Step(status.model_copy(update=stays), Situation.REFUSED, gate=asked)
    proven, promote = was_stable(seen, status, candidate), promoted == candidate
    stopped = paused(seen, status)
    gates = Gating(passed=True) if proven else found or gating(seen, status, candidate)
    since = waiting_since(seen, status, candidate, stable)
    states = skipped(seen, gates.states) if promote else gates.states
    status = status.model_copy(update={"gates": list(states) or None, "waiting_since": since})
    if not gates.passed and not promote:
        status = status.model_copy(update={"allowed": _allowed(seen, status, None)})
        situation = Situation.STOPPED if stopped else Situation.GATED
        return _Step(status, situation, None, deadline_left(seen, since), asked, gates)
    first = None if proven or promote else _lacks_its_first(seen, candidate, stable)
    if first is not None:
        begins = status.model_copy(update={"allowed": _allowed(seen, status, None)})
        situation = Situation.STOPPED if stopped else Situation.CLIMBING
        return _Step(begins, situation, None, deadline_left(seen, since), asked, lacking=first)
    held = position(seen, candidate, stable, skips=proven, stopped=stopped, passes=asked.opens, promoted=promote)
    if held.whole and (promote or proven or (held.served and not held.left and not held.waits)):
        return _taken_over(seen, status, candidate)
    update = {
        "allowed": _allowed(seen, status, held),
        "step": held.step,
        "position": f"{held.step}/{held.steps}",
        "step_started_at": held.started,
        "analysis": asked.status,
    }
    situation, left = _situation(held, stopped), deadline_left(seen, since)
    return _Step(status.model_copy(update=update), situation, held, left, asked, lacking=held.lacking)


def _lacks_its_first(seen: Seen, candidate: str, stable: str) -> Problem | None:
    """What a candidate without any weight waits for."""
    steps = seen.rollout.steps or []
    if seen.allowed_before(candidate) or not steps:
        return None
    return awaits_replicas(seen, candidate, stable, min(steps[0].weight, seen.spec.weight_of(candidate)))


def _situation(held: Position, stopped: bool) -> Situation:
    if stopped:
        return Situation.STOPPED
    if held.waits:
        return Situation.UNPROVEN
    return Situation.PROVING if held.whole else Situation.CLIMBING


def _judged(seen: Seen, status: RolloutStatus, stable: str) -> tuple[RolloutStatus, Gate, Gating | None]:
    """With a verdict on each candidate that has failed: who comes next is held against the same stable revision.

    And what stands before the one that is left, and its gates. The evidence that one was rejected for is kept until
    that is stored.
    """
    asked, kept, gates = OPEN, None, None
    for _ in seen.listed:
        candidate = _candidate(seen, status)
        if candidate is None or verdict_on(seen, status, candidate) is not None:
            break
        proven = was_stable(seen, status, candidate)
        if kept is not None or proven:
            asked = Gate(kept, opens=proven)
        else:
            asked = gate(seen, candidate, stable, stopped=paused(seen, status))
        since = waiting_since(seen, status, candidate, stable)
        why = failure(seen, candidate, stable) or overdue(seen, candidate, since) or asked.against
        if why is None and not proven:
            gates = gating(seen, status, candidate)
            why = gates.failure
        verdict = new_verdict(seen, candidate, why) if why else None
        if verdict is None:
            break
        kept = kept or asked.look
        verdicts = with_verdict(list(status.verdicts or ()), verdict)
        states = judged_states(seen, gates or Gating(passed=True))
        status = status.model_copy(update={"verdicts": verdicts, "gates": list(states)})
        gates = None
    return status, asked, gates


def _look(seen: Seen, status: RolloutStatus, taken: _Step) -> Look | None:
    """The look that is to be kept: at the candidate, at the one that is being rejected, else at stable alone."""
    if taken.gate.look is not None:
        return taken.gate.look
    settled = taken.situation in (Situation.SETTLED, Situation.REFUSED)
    same = seen.before is not None and status.stable == seen.before.stable
    return look(seen, None, status.stable) if settled and same and status.stable else None


def _taken_over(seen: Seen, status: RolloutStatus, candidate: str) -> _Step:
    """The candidate is stable. The one before it may have its weight back at any time, without steps."""
    update = {"stable": candidate, "candidate": None, "paused": None, "gates": None, "waiting_since": None}
    status = status.model_copy(update=update)
    status = with_history(seen, status)
    return _Step(status.model_copy(update={"allowed": _allowed(seen, status, None)}), Situation.SETTLED)


def _allowed(seen: Seen, status: RolloutStatus, held: Position | None) -> dict[str, int]:
    """Who may have how much. Not named, so that it begins anew: what the spec gives nothing, and was never stable."""
    allowed: dict[str, int] = {}
    for name in seen.listed:
        before = seen.allowed_before(name)
        if name == status.stable:
            continue
        if verdict_on(seen, status, name) is not None:
            allowed[name] = serves_on(seen, name, status.stable)
        elif held is not None and name == status.candidate:
            allowed[name] = held.limit
        elif was_stable(seen, status, name):
            allowed[name] = 100
        elif before and seen.spec.weight_of(name):
            allowed[name] = before
    return allowed


# -- what is said -----------------------------------------------------------------------------------------------------


def _weighed(seen: Seen, status: RolloutStatus, split: Split, taken: _Step) -> RolloutStatus:
    candidate = None if taken.situation is Situation.UNSERVED else status.candidate
    update = {
        "phase": PHASE_IN[taken.situation],
        "candidate": candidate,
        "weight": split.weights[candidate] if candidate else None,
        "target": seen.spec.weight_of(candidate) if candidate else None,
        "promoted_to": promotions(seen, status, taken.position),
    }
    return status.model_copy(update=update)


def _problem(seen: Seen, status: RolloutStatus, work: Problem | None) -> Problem | None:
    """A revision that the spec gives weight and that has a verdict, unless another one is on its way."""
    listed = [status.candidate, *seen.listed] if status.candidate else seen.listed
    for name in listed if work is None else ():
        verdict = verdict_on(seen, status, name) if seen.spec.weight_of(name) else None
        if verdict is not None:
            words = f"{name} is rejected ({verdict.reason}: {verdict.evidence}); {_instead(seen, status, name)}"
            return Problem(Reason.CANDIDATE_REJECTED, clipped(words, 900))
    return None


def _instead(seen: Seen, status: RolloutStatus, rejected: str) -> str:
    """Who serves what a rejected revision does not get."""
    if serves_on(seen, rejected, status.stable):
        return f"it {until_stable(status.stable)}"
    return f"{status.stable} serves" if status.stable in seen.listed else "no other revision is listed to serve"


def _off(seen: Seen, status: RolloutStatus, verdict: Verdict) -> str:
    """What a verdict means, for an event."""
    name = verdict.revision
    if name in seen.listed and serves_on(seen, name, status.stable):
        return clipped(f"{name} is rejected, and {_instead(seen, status, name)}: {verdict.evidence}")
    return clipped(f"{name} gets no traffic: {verdict.evidence}")


def _work(seen: Seen, status: RolloutStatus, split: Split, taken: _Step) -> Problem | None:
    """What the rollout waits for; a candidate that has what the spec gives it waits for nothing."""
    candidate, held = status.candidate, taken.position
    if candidate is None or (held is None and taken.gating is None and taken.lacking is None):
        return None
    has = f"{candidate} has {split.weights[candidate]} of {status.target} %"
    if taken.situation is Situation.STOPPED:
        by = "spec.rollout.paused" if seen.rollout.paused else "a command"
        return Problem(Reason.PAUSED, f"{has}, paused by {by}")
    if taken.lacking is not None:
        return Problem(taken.lacking.reason, f"{has}: {taken.lacking.message}")
    if held is None:
        return taken.gating.held if taken.gating else None
    shut = taken.gate.closed if held.waits else None
    if shut is not None:
        return Problem(shut.reason, clipped(f"{has}, and stays there: {shut.message}"))
    if taken.situation is Situation.PROVING:
        return Problem(Reason.BAKING, f"{has}; {status.stable} stays the way back until {held.until}")
    if split.weights[candidate] == status.target and not held.goes_on:
        follows = _next_in_turn(seen, status)
        if follows is None:
            return None
        left, why = rest_left(seen, status), taken.gate.closed
        held_back = why is not None and left is not None and left <= 0
        when = f"it has passed: {why.message}" if why is not None and held_back else "its hold is over"
        return Problem(Reason.PROGRESSING, clipped(f"{has}; {follows} is next when {when}"))
    until = f", until {held.until}" if held.until else ""
    return Problem(Reason.PROGRESSING, f"{has}, step {min(held.step + 1, held.steps)} of {held.steps}{until}")


def _told(seen: Seen, status: RolloutStatus, taken: _Step) -> Iterator[Told]:
    before = seen.before or RolloutStatus()
    answer = status.last_command
    if answer is not None and answer != before.last_command:
        words = f"{answer.action} {answer.revision or ''}".strip() + f": {answer.message}"
        if answer.accepted:
            yield "Normal", Reason.COMMAND_ACCEPTED, words
        else:
            yield "Warning", Reason.COMMAND_REFUSED, words
    if taken.position is not None and taken.position.completed:
        words = f"{status.candidate}: {taken.position.completed}"
        yield "Normal", Reason.STEP_COMPLETED, clipped(f"{words}; {taken.gate.told}" if taken.gate.told else words)
    new = [v for v in status.verdicts or () if v not in (before.verdicts or ())]
    for verdict in reversed(new):
        yield "Warning", Reason.ROLLED_BACK, _off(seen, status, verdict)
    step = transition(before.phase if seen.before else None, taken.situation)
    refused = taken.situation is Situation.REFUSED
    if refused and new:
        return
    if step is None or step.event is None or not (seen.spec.progressive or refused):
        return
    if refused:
        known = verdict_on(seen, status, status.candidate) if status.candidate else None
        if known is not None:
            yield "Warning", step.event, _off(seen, status, known)
    elif taken.situation is Situation.UNPROVEN and taken.gate.closed is not None:
        yield "Warning", taken.gate.closed.reason, clipped(f"{status.candidate}: {taken.gate.closed.message}")
    else:
        yield "Normal", step.event, f"{status.candidate}: {step.words}"
