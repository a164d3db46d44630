"""When a rehearsal is over that nobody has removed: whoever ran `tuneyard drill` was killed, or could not delete.

Rules:
- a rehearsal says how long it may last (api/drill.py), by the API server's clock from when it was created: the clock of
  who runs it does not count. One that does not say it lasts until it is removed;
- then its candidate gets a verdict, so no request meets the fault any more, and the object says that it is left over.
  It stays: the operator deletes nobody's deployment.
"""

from __future__ import annotations

from datetime import datetime

from tuneyard.api.drill import fault_of
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import Problem
from tuneyard.planning.timestamps import parsed_time, remaining


def rehearsal_left(deployment: ModelDeploymentResource, now: datetime) -> float | None:
    """Seconds that are left of a rehearsal; 0 or less: it is over; None: it is none, or has no end."""
    fault = fault_of(deployment.metadata.annotations)
    began = parsed_time(deployment.metadata.creation_timestamp)
    if fault is None or fault.lasts_seconds is None or began is None:
        return None
    return remaining(began, fault.lasts_seconds, now)


def rehearsal_over(deployment: ModelDeploymentResource, now: datetime) -> Problem | None:
    """What is wrong with a rehearsal that is over and still there."""
    left = rehearsal_left(deployment, now)
    if left is None or left > 0:
        return None
    name, namespace = deployment.metadata.name, deployment.metadata.namespace
    words = f"the rehearsal is over and was not removed: kubectl delete modeldeployment {name} -n {namespace}"
    return Problem(Reason.REHEARSAL_OVER, words)
