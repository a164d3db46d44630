"""When a pool has no pods because nobody asks for it (`serving.scaleToZeroAfter`), and when it has them again.

Rules:
- it may sleep only while every ModelDeployment that uses it is idle (idling.py): then gateways hold what comes, so
  that no request meets a pool without pods. By that nothing sleeps that is rolled out, gated, watched or being loaded;
- idle deployments may be asked all the same while the pool serves: every gateway has to say of each that nobody did
  for `scaleToZeroAfter`. Half knowledge sends no pool to sleep, nor do references that cannot be read;
- that it sleeps stands in the BaseModel's status before its pods go. A status that is lost wakes it;
- one request wakes one deployment, and with it the pool: with all its pods, and the adapters that are wanted then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.idling import LEAST_IDLE, asked
from tuneyard.planning.observations import BaseModelObservation
from tuneyard.planning.pools import Pool
from tuneyard.planning.timestamps import rfc3339

_LOOK = 60.0
"""Seconds between two looks at what gateways do not tell."""


@dataclass(frozen=True)
class PoolSleep:
    """Whether a pool is to have pods."""

    asleep_since: str | None = None
    wait: float | None = None
    """After how many seconds time alone may change it."""


def next_pool_sleep(obs: BaseModelObservation, pool: Pool) -> PoolSleep:
    """Whether the pool sleeps from now on; one that begins to is looked at again when that is written."""
    after, users = pool.serving.scale_to_zero_after, list(_users(obs.deployments, pool))
    if after is None or not pool.serving.replicas or not all(_rests(d) for d in users):
        return PoolSleep()
    if pool.asleep_since:
        return PoolSleep(pool.asleep_since)
    if obs.unreadable:
        return PoolSleep(wait=_LOOK)
    needed, told = max(LEAST_IDLE, float(after)), [asked(obs.demand, d) for d in users]
    if all(t.for_(needed) for t in told):
        return PoolSleep(rfc3339(obs.now), wait=0.0)
    quiet = [t.quiet for t in told if t.quiet is not None]
    unknown = len(quiet) < len(told) or any(t.waiting for t in told)
    return PoolSleep(wait=_LOOK if unknown else max(1.0, needed - min(quiet)))


def _users(deployments: Iterable[ModelDeploymentResource], pool: Pool) -> Iterable[ModelDeploymentResource]:
    named = frozenset(pool.used_by)
    return (d for d in deployments if d.metadata.namespace == pool.namespace and d.metadata.name in named)


def _rests(deployment: ModelDeploymentResource) -> bool:
    """Whether it is idle, with the spec that it has now."""
    return bool(deployment.status.idle_since) and (
        deployment.status.observed_generation == deployment.metadata.generation
    )
