"""When requests are mirrored: the one function that operator and gateways share.

Rules:
- nothing is mirrored while no pod serves the mirrored revision, nor to contents with a verdict: those get no request
  at all;
- nor to somebody else's API, although that counts as ready (the API server refuses it, too): copies are sent without
  its key, and to pods alone;
- a mirror makes no pod, wakes nobody and is no use of the revision: who is idle stays idle;
- weights do not matter to it, and it does not matter to weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuneyard.api.mirror import DEFAULT_MAX_CONCURRENT, MirrorStatus
from tuneyard.api.modeldeployment import ModelDeploymentSpec


@dataclass(frozen=True)
class MirrorRoute:
    """What gateways do for one model."""

    revision: str
    percent: int
    max_concurrent: int
    active: bool
    """Whether copies are made now."""


def why_not(spec: ModelDeploymentSpec, ready: Mapping[str, int], allowed: Mapping[str, int] | None) -> str | None:
    """Why nothing is mirrored, None where something is. `ready`: ready pods by revision, `allowed` as in traffic.py."""
    wanted = spec.mirror.revision if spec.mirror else None
    if wanted is None or wanted not in {r.name for r in spec.revisions}:
        return "spec.mirror names no revision of this deployment"
    if any(r.external for r in spec.revisions if r.name == wanted):
        return f"{wanted} is external"
    if (allowed or {}).get(wanted) == 0:
        return f"the rollout keeps every request from {wanted}"
    if not ready.get(wanted, 0):
        return f"no pod serves {wanted}"
    return None


def mirror_route(
    spec: ModelDeploymentSpec, ready: Mapping[str, int], allowed: Mapping[str, int] | None
) -> MirrorRoute | None:
    """What gateways do; None where the spec asks for no mirror."""
    if spec.mirror is None:
        return None
    return MirrorRoute(
        revision=spec.mirror.revision,
        percent=spec.mirror.percent,
        max_concurrent=spec.mirror.max_concurrent or DEFAULT_MAX_CONCURRENT,
        active=why_not(spec, ready, allowed) is None,
    )


def mirror_status(
    spec: ModelDeploymentSpec, ready: Mapping[str, int], allowed: Mapping[str, int] | None
) -> MirrorStatus | None:
    """The same for people."""
    if spec.mirror is None:
        return None
    reason = why_not(spec, ready, allowed)
    return MirrorStatus(revision=spec.mirror.revision, percent=0 if reason else spec.mirror.percent, message=reason)
