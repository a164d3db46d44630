"""Whether a candidate on pods of its own has enough of them for what it is about to get.

Only where `serving.autoscaling` decides how many there are: then they are on their way (rolloutshares.py), or something
keeps them from coming, and says so. Who goes back to what was stable, or is promoted by a command, waits for none.
"""

from __future__ import annotations

from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import Problem, serves
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.rolloutshares import Move, asked_of, replicas_for

LOOK = 15.0
"""Seconds between two looks at what no pod tells of: that less is asked."""


def awaits_replicas(seen: Seen, candidate: str, stable: str, weight: int) -> Problem | None:
    """Why the candidate does not get this weight yet."""
    mine, theirs = seen.states[candidate], seen.states[stable]
    if mine.serving is None or mine.serving.scaled is None or mine.pool == theirs.pool:
        return None
    served = seen.served.get(candidate, 0)
    if weight <= served:
        return None
    move = Move(
        seen.deployment,
        mine.revision,
        theirs.revision,
        weight=served,
        next_weight=weight,
        stable_weight=seen.served.get(stable, 0),
    )
    bases = {s.base.metadata.name: s.base for s in seen.states.values() if s.base is not None}
    needed = replicas_for(mine.serving, move, weight, seen.demand, bases)
    there = sum(map(serves, mine.pods))
    if there >= needed:
        return None
    asked = asked_of(seen.deployment, seen.demand)
    words = f"{weight} % of {asked:.0f} requests under way need {needed} pods of pool {mine.pool}, {there} serve"
    return Problem(Reason.AWAITING_REPLICAS, words)
