"""What `tuneyard status` says of a mirror, in a line."""

from __future__ import annotations

from tuneyard.api.modeldeployment import ModelDeploymentResource


def mirror_summary(deployment: ModelDeploymentResource) -> str | None:
    """None where there is none, or the operator has not seen it yet."""
    told = deployment.status.mirror
    if told is None or deployment.spec.mirror is None:
        return None
    if told.percent:
        return f"mirror: {told.revision} gets copies of {told.percent} % of the requests"
    return f"mirror: no copies for {told.revision}: {told.message}"
