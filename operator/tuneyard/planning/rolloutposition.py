"""How far up the steps a candidate is, and when it may go on. Times are those of the status and of the observation.

Rules:
- the position is what the status says was allowed; steps that were edited since are looked up by weight, downwards;
- a hold begins when every gateway says that it serves the step's weight, and ends only while every gateway says so: of
  a silent one nobody knows what users got. A candidate without a ready pod, a pause or another spec weight let it begin
  again;
- who is promoted by a command skips the steps up to the spec weight that stands then, and no others: at 100 all of
  them, also one of 100 that has a hold. Below 100 that weight is held like the step below it, and what the spec gives
  later is reached by the steps that are left. What was given so is the revision's, as what it is allowed: another
  candidate that comes and goes takes nothing of it;
- who has all that the spec gives it, less than 100, has held that for as long as its step says, and where answers are
  judged has passed, rests: it keeps that, and another candidate climbs. Of several that rest the one that climbed last
  is the candidate, and judged;
- a step is taken only below the spec weight, while stable has a ready pod and the candidate as many as it will need
  (rolloutpods.py), and one at a time; where the evidence is
  missing (rolloutgate.py) the candidate stays, however long its hold has been over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from tuneyard.api.rollout import RolloutSpec, RolloutStatus, Step
from tuneyard.api.schema import seconds
from tuneyard.planning.analysis import Outcome
from tuneyard.planning.observations import Problem
from tuneyard.planning.rolloutpods import awaits_replicas
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339


@dataclass(frozen=True)
class Position:
    """Where a candidate is."""

    step: int
    """Index of its step; `steps`: past all of them."""
    steps: int
    limit: int
    """What it may have."""
    started: str | None
    """Since when every gateway serves that."""
    left: float | None = None
    """Seconds that it has to stay; None: nothing ends by time alone."""
    until: str | None = None
    whole: bool = False
    """It is past all steps and has all traffic; `left` is what is left of bakeTime."""
    served: bool = False
    """Every gateway says that it serves that now."""
    goes_on: bool = False
    """There is more for it to get."""
    waits: bool = False
    """Its hold is over, and only the evidence is missing."""
    promoted_to: int | None = None
    """What a command gave it: as much as its step's weight, or more."""
    completed: str = ""
    """The step that was completed just now, in words."""
    lacking: Problem | None = None
    """Its hold is over, and it has too few pods for the next step."""


def position(
    seen: Seen,
    candidate: str,
    stable: str,
    *,
    skips: bool,
    stopped: bool,
    passes: bool = True,
    promoted: bool = False,
) -> Position:
    """Where the candidate is now.

    `skips`: it needs no steps; `stopped`: it must not go on; `passes`: the evidence lets it; `promoted`: a command has
    it skip those up to its spec weight.
    """
    steps, before = seen.rollout.steps or [], seen.before or RolloutStatus()
    same, allowed = before.candidate == candidate, seen.allowed_before(candidate)
    known, raised = before.step if same else None, (before.promoted_to or {}).get(candidate, 0)
    target = seen.spec.weight_of(candidate)
    if promoted:
        raised = max(raised, target)
    step = len(steps) if skips or raised == 100 else current_step(steps, max(allowed, raised), known)
    limit = max(_limit(steps, step), raised)
    served = seen.confirmed.get(candidate) == min(limit, target)
    unchanged = (known, allowed) == (step, limit) and min(limit, before.target or 0) == min(limit, target)
    started = None
    if unchanged and seen.ready[candidate] and not stopped:
        started = before.step_started_at or (seen.stamp if served else None)
    above = limit if raised and limit == raised else None
    at = Position(step, len(steps), limit, started, served=served, promoted_to=above)
    moved = _moved(seen, steps, at, target, stable, passes=passes or skips or promoted)
    if not moved.completed:
        return moved
    lacking = awaits_replicas(seen, candidate, stable, min(moved.limit, target))
    return moved if lacking is None else replace(at, goes_on=True, lacking=lacking)


def rests(seen: Seen, revision: str) -> bool:
    """Whether the revision waits for nothing any more: at a spec weight below 100, and held there."""
    target, before = seen.spec.weight_of(revision), seen.before
    if not 0 < target <= seen.allowed_before(revision) or target == 100:
        return False
    if before is None or before.candidate != revision:
        return True
    left, told = rest_left(seen, before), before.analysis
    if left is None or left > 0:
        return False
    # who was promoted by a command needs no evidence
    known = seen.rollout.analysis is None or bool((before.promoted_to or {}).get(revision))
    return known or (told is not None and told.outcome == Outcome.PASS.value)


def rest_left(seen: Seen, status: RolloutStatus) -> float | None:
    """Seconds for which the candidate holds its spec weight before another one may climb; None: not yet known."""
    since = parsed_time(status.step_started_at)
    if since is None or status.step is None:
        return None
    return remaining(since, seconds(stays(seen.rollout, status.step) or "0s"), seen.now)


def current_step(steps: Sequence[Step], allowed: int, known: int | None) -> int:
    """Index of the step at which a candidate is that was allowed so much; `known`: what the status calls it."""
    if known is not None and known < len(steps) and steps[known].weight == allowed:
        return known
    if allowed == 100:
        return len(steps)
    return max(0, sum(s.weight <= allowed for s in steps) - 1)


def promotions(seen: Seen, status: RolloutStatus, held: Position | None) -> dict[str, int] | None:
    """What commands gave, of those who may still have it; `held`: where the candidate is, if that is known."""
    known = dict((seen.before.promoted_to if seen.before else None) or {})
    if held is not None and status.candidate is not None:
        known[status.candidate] = held.promoted_to or 0
    allowed = status.allowed or {}
    return {name: known[name] for name in allowed if 0 < known.get(name, 0) <= allowed[name]} or None


def stays(rollout: RolloutSpec, step: int) -> str | None:
    """How long a candidate stays at the step of this index; past all of them it bakes."""
    steps = rollout.steps or []
    return steps[step].hold if step < len(steps) else rollout.bake_time


def _limit(steps: Sequence[Step], step: int) -> int:
    return steps[step].weight if step < len(steps) else 100


def _moved(seen: Seen, steps: Sequence[Step], at: Position, target: int, stable: str, *, passes: bool) -> Position:
    """The position after the time that has passed."""
    past = at.step >= len(steps)
    goes_on = not past and (at.limit < target or target == 100)
    since = parsed_time(at.started)
    if since is None:
        return replace(at, goes_on=goes_on)
    hold = stays(seen.rollout, at.step) or "0s"
    left = max(0.0, remaining(since, seconds(hold), seen.now))
    until = rfc3339(since + timedelta(seconds=seconds(hold)))
    whole = past and target == 100
    if whole or (goes_on and left > 0):
        waits = not passes and at.served and left <= 0
        return replace(at, left=left, until=until, whole=whole, goes_on=goes_on, waits=waits)
    if not goes_on or not seen.ready[stable] or not at.served:
        return replace(at, goes_on=goes_on)
    if not passes:
        return replace(at, goes_on=True, waits=True)
    words = f"step {at.step + 1} of {at.steps} held, {min(at.limit, target)} % for {hold}"
    return Position(at.step + 1, at.steps, _limit(steps, at.step + 1), None, goes_on=True, completed=words)
