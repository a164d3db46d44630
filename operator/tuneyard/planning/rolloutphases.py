"""The phases of a rollout and how one follows the other: the table, and the diagram that is made from it.

Rules:
- the phase is what people read, never what is decided from: each pass finds the situation from the spec, the position
  and the pods, and the situation alone gives the phase. So a status that was lost, or a change that nobody saw, ends in
  the same phase as if each transition had been seen;
- TRANSITIONS are those that happen one at a time, with the event that tells of each. Any other pair is a jump after
  something was missed: it ends in the situation's phase, without an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import Phase


class Situation(Enum):
    """What is the case; exactly one holds. The value says so for people."""

    UNSERVED = "no revision has been ready yet"
    SETTLED = "stable has what the spec gives it, no other gets weight"
    GATED = "a candidate has gates to pass"
    CLIMBING = "the spec gives a candidate weight"
    STOPPED = "paused"
    UNPROVEN = "a hold is over, and the evidence is missing"
    PROVING = "the candidate has all traffic"
    REFUSED = "the candidate has a verdict"


PHASE_IN: Mapping[Situation, Phase] = {
    Situation.UNSERVED: "Idle",
    Situation.SETTLED: "Completed",
    Situation.GATED: "Gating",
    Situation.CLIMBING: "Progressing",
    Situation.STOPPED: "Paused",
    Situation.UNPROVEN: "Inconclusive",
    Situation.PROVING: "Baking",
    Situation.REFUSED: "RolledBack",
}


class Transition(NamedTuple):
    """From one phase to another; `words` stand at the arrow, `event` tells of it."""

    source: Phase
    situation: Situation
    words: str
    event: Reason | None = None

    @property
    def target(self) -> Phase:
        """The phase that follows."""
        return PHASE_IN[self.situation]


TRANSITIONS = (
    Transition("Idle", Situation.SETTLED, "a first revision is ready"),
    Transition("Completed", Situation.CLIMBING, "the spec gives a candidate weight", Reason.PROGRESSING),
    Transition("Completed", Situation.GATED, "the spec gives a candidate with gates weight", Reason.GATING),
    Transition("Gating", Situation.CLIMBING, "all gates passed, or skipped by promote", Reason.PROGRESSING),
    Transition("Gating", Situation.PROVING, "promoted to all traffic", Reason.BAKING),
    Transition("Gating", Situation.STOPPED, "paused", Reason.PAUSED),
    Transition("Gating", Situation.SETTLED, "the spec goes back to stable, or promoted without bakeTime"),
    Transition("Gating", Situation.REFUSED, "a gate failed, or another verdict", Reason.ROLLED_BACK),
    Transition("Progressing", Situation.GATED, "another candidate, with gates", Reason.GATING),
    Transition("Paused", Situation.GATED, "resumed before the gates were passed", Reason.GATING),
    Transition("Inconclusive", Situation.GATED, "another candidate, with gates", Reason.GATING),
    Transition("Baking", Situation.GATED, "another candidate, with gates", Reason.GATING),
    Transition("RolledBack", Situation.GATED, "another candidate with gates, or retried", Reason.GATING),
    Transition("Progressing", Situation.STOPPED, "paused", Reason.PAUSED),
    Transition("Paused", Situation.CLIMBING, "resumed", Reason.PROGRESSING),
    Transition("Progressing", Situation.PROVING, "all steps held, the candidate has all traffic", Reason.BAKING),
    Transition("Progressing", Situation.UNPROVEN, "a hold is over, the evidence is missing", Reason.INCONCLUSIVE),
    Transition(
        "Inconclusive", Situation.CLIMBING, "the evidence is there, or the hold begins again", Reason.PROGRESSING
    ),
    Transition("Inconclusive", Situation.STOPPED, "paused", Reason.PAUSED),
    Transition("Inconclusive", Situation.SETTLED, "the spec goes back to stable, or gateways tell again"),
    Transition("Baking", Situation.UNPROVEN, "bakeTime is over, gateways do not tell", Reason.INCONCLUSIVE),
    Transition("Baking", Situation.STOPPED, "paused", Reason.PAUSED),
    Transition("Baking", Situation.SETTLED, "bakeTime is over, or promoted"),
    Transition("Progressing", Situation.SETTLED, "the spec goes back to stable, or bakeTime is 0"),
    Transition("Paused", Situation.SETTLED, "the spec goes back to stable"),
    Transition("Baking", Situation.CLIMBING, "the candidate has not all traffic any more", Reason.PROGRESSING),
    Transition("Progressing", Situation.REFUSED, "verdict", Reason.ROLLED_BACK),
    Transition("Paused", Situation.REFUSED, "verdict", Reason.ROLLED_BACK),
    Transition("Inconclusive", Situation.REFUSED, "verdict", Reason.ROLLED_BACK),
    Transition("Baking", Situation.REFUSED, "verdict", Reason.ROLLED_BACK),
    Transition("Completed", Situation.REFUSED, "the spec gives a rejected revision weight", Reason.ROLLED_BACK),
    Transition("RolledBack", Situation.CLIMBING, "another candidate, or retried", Reason.PROGRESSING),
    Transition("RolledBack", Situation.STOPPED, "another candidate, while paused", Reason.PAUSED),
    Transition("RolledBack", Situation.SETTLED, "the spec goes back to stable"),
)


def transition(phase: Phase | None, situation: Situation) -> Transition | None:
    """The transition that leads from this phase into the situation's, None where it is no single one."""
    return next((t for t in TRANSITIONS if t.source == phase and t.situation is situation), None)


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> Idle"]
    lines += [f"    {t.source} --> {t.target}: {t.words}" for t in TRANSITIONS]
    return "\n".join(lines) + "\n"
