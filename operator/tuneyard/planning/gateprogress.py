"""How far the run of a gate is, as its status says it.

Rules:
- only what gateways tell of this very Job counts, by its uid: an earlier run was farther, and may have had its name;
- it is written at most every EVERY seconds. Each writing of a status is seen by everybody who watches the object, and
  a gate has thousands of requests;
- it never goes back: a gateway that restarted, or one that had the farthest request and left, knows less.
"""

from __future__ import annotations

from tuneyard.api.gates import GateProgress, GateStatus
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.timestamps import parsed_time, remaining

EVERY = 10.0
"""Seconds between two writings."""


def next_progress(seen: Seen, job: str, prior: GateStatus | None) -> GateProgress | None:
    """What the status says of a Job (its uid) that runs; `prior`: what it said of its gate before."""
    # of a run before this one nothing is left: between two runs a gate cannot run
    before = prior.progress if prior is not None else None
    run = seen.demand.gate_run(*seen.deployment.metadata.key, job)
    if run is None or (before is not None and run.done <= before.done):
        return before
    written = parsed_time(before.at) if before is not None else None
    if written is not None and remaining(written, EVERY, seen.now) > 0:
        return before
    return GateProgress(done=run.done, total=run.total, at=seen.stamp)
