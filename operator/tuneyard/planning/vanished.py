"""Adapters whose object is gone while ModelDeployments name them: `kubectl replace --force` deletes and creates again.

Rules:
- one that is in a pool's plan stays there as it stands in it, for ADAPTER_GRACE from when that is noticed: its pods go
  on serving it, and an object that is created again with the same files and digest finds it loaded;
- one with other files or another digest is another wish in the plan, and goes the usual way;
- gateways go by what vanished for some seconds by themselves (routes.py), and no longer: an adapter that was deleted
  for good gets no requests while its pods still have it;
- since when it is gone stands beside the plan: an operator that begins anew does not begin to wait anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from tuneyard.api.documents import PoolPlan
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterSpec
from tuneyard.api.metadata import ObjectMeta
from tuneyard.planning.pools import ADAPTER_GRACE, Pool
from tuneyard.planning.timestamps import parsed_time, remaining


def vanished_since(
    pool: Pool,
    adapters: Iterable[LoRAAdapterResource],
    before: PoolPlan | None,
    marks: Mapping[str, str],
    now: datetime,
) -> dict[str, datetime]:
    """Those that the pool should have, and its plan `before` has, whose object is gone: since when, while they stay."""
    there = {a.metadata.name for a in adapters if not a.metadata.deletion_timestamp}
    planned = {a.name for a in before.adapters} if before else set()
    gone = {name: parsed_time(marks.get(name)) or now for name in sorted(pool.adapter_names & planned - there)}
    return {name: since for name, since in gone.items() if remaining(since, ADAPTER_GRACE, now) > 0}


def as_planned(pool: Pool, before: PoolPlan | None, vanished: Iterable[str]) -> tuple[LoRAAdapterResource, ...]:
    """The vanished adapters as the plan has them."""
    wanted = frozenset(vanished)
    return tuple(
        LoRAAdapterResource(
            metadata=ObjectMeta(name=a.name, namespace=pool.namespace),
            spec=LoRAAdapterSpec(base_model=pool.base_model, source=a.source, digest=a.digest),
        )
        for a in (before.adapters if before else ())
        if a.name in wanted
    )
