"""How many replicas a pool's serving block and its base's status say it has.

Rules:
- of a pool that is scaled by its load the status has the number (poolscaling.py), and the block its bounds;
- of one that somebody else scales the status has what the Deployment said last;
- a pool that somebody else scales never sleeps: two would decide on one number.
"""

from __future__ import annotations

from tuneyard.api.autoscaling import Autoscaling
from tuneyard.api.basemodel import BaseModelResource, PoolStatus
from tuneyard.api.schema import seconds
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.autoscaling import least_replicas


def pool_status(base: BaseModelResource, pool: str) -> PoolStatus | None:
    """What the base's status says of a pool."""
    return next((p for p in base.status.pools or () if p.name == pool), None)


def scaled_by(*blocks: ServingSpec | None) -> Autoscaling | None:
    """What decides on a pool's replicas, without working out all the rest; the first block is uppermost."""
    for block in blocks:
        if block is not None and (block.autoscaling is not None or block.replicas is not None):
            return block.autoscaling
    return None


def spec_replicas(spec: ServingSpec) -> int:
    """Those that the block names; of a pool that is scaled the fewest."""
    if spec.autoscaling is not None:
        return least_replicas(spec.autoscaling)
    return 1 if spec.replicas is None else spec.replicas


def sleeps_after(spec: ServingSpec) -> int | None:
    """Seconds without a request after which the pool has no pods; None: never."""
    outside = spec.autoscaling is not None and spec.autoscaling.external
    return seconds(spec.scale_to_zero_after) if spec.scale_to_zero_after and not outside else None


def decided_replicas(autoscaling: Autoscaling | None, base: BaseModelResource, pool: str) -> int | None:
    """What the status says was decided, by whomever; None where nothing was, or the block decides."""
    told = None if autoscaling is None else pool_status(base, pool)
    if autoscaling is None or told is None:
        return None
    if autoscaling.external:
        return told.replicas
    return None if told.wanted_replicas is None else max(1, told.wanted_replicas)
