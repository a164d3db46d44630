"""Which pools a base model has, how each serves, and which adapters its pods should hold.

Rules:
- a ModelDeployment that overrides nothing uses its bases' shared pools; `serving` of the deployment gives it a pool of
  its own per base, `serving` of a revision one for that revision alone (the revision's block lies over the
  deployment's, that over the base's);
- all adapters of all revisions that are listed are wanted, also at weight 0: a rollback must find its adapter loaded.
  Those that only idle ModelDeployments name (idling.py) are not, until somebody asks for them, nor those beyond
  `rollout.keepWarm` (keepwarm.py);
- how many pods a pool has that is scaled by its load (poolscaling.py) stands in the base's status;
- a pool that sleeps by its status has no pods while every ModelDeployment that uses it is idle (poolsleep.py);
- a pod holds at most `lora.maxCpuLoras` adapters (an engine that evicts one reads it again from a folder that may be
  gone, and dies), a pool as many as its pods hold together, each of them `lora.copies` times. Pods that are away for a
  while do not make a pool smaller: nobody loses his place by that;
- who has a place keeps it; next are those that requests wait for, then the earliest created. By age alone, a revision
  that somebody adds for an old adapter would take an adapter away from another tenant while it serves. More
  `lora.copies` than there is room for put nobody out either: then there are fewer copies, and nobody new;
- while every pod has room for every adapter, every pod has them all. Else there are as many copies as fit with one pod
  away; one more only when that fits with a tenth to spare, or an adapter that comes and goes would move all others.
  Therefore, too, nobody gets more copies in place of an adapter that has gone until ADAPTER_GRACE is over;
- an adapter that nothing refers to any more stays for ADAPTER_GRACE seconds while there is room, and a pool for
  POOL_GRACE: a ModelDeployment that is deleted and created again finds everything as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tuneyard.api import names
from tuneyard.api.base import parsed
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.buildoutput import BUILT_VOLUME
from tuneyard.api.documents import PoolPlan
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import (
    ArtifactVolume,
    VolumeClaim,
)
from tuneyard.planning import engines
from tuneyard.planning.keepwarm import warm
from tuneyard.planning.observations import ChildObservation, PoolPlaces, Problem
from tuneyard.planning.poolreplicas import decided_replicas, pool_status
from tuneyard.planning.remedies import clipped, some_of
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.sharedadapters import adapters_not_shared

POOL_GRACE = 60.0
"""Seconds that a pool outlives the last reference to it."""
ADAPTER_GRACE = 30.0
"""Seconds that an adapter outlives the last reference to it, in a pool that goes on."""
PLAN_BYTES = 780_000
"""What a pool's adapters may take of its stored plan; a ConfigMap may have 1 MiB."""
_MOST_COPIES = 60_000
"""Copies of all adapters together that are chosen by default: the plan names a pod for each, in 3 bytes."""
_SLACK = 0.9
_NAMED = 3
"""How many adapters and ModelDeployments a message names."""


@dataclass(frozen=True)
class Pool:
    """The pods that serve one base in one way."""

    namespace: str
    name: str
    base_model: str
    deployment: str | None
    """The ModelDeployment whose own pool it is; None: the shared pool."""
    serving: Serving
    used_by: tuple[str, ...]
    """ModelDeployments that refer to it, sorted."""
    adapter_names: frozenset[str]
    """Adapters of the revisions that use it, whether they exist or not, without the idle ones."""
    idle: frozenset[str] = frozenset()
    """Those that only idle ModelDeployments name, or revisions that need not be loaded."""
    waking: frozenset[str] = frozenset()
    """Those that requests wait for."""
    asleep_since: str | None = None
    """Since when it has no pods because nobody asks; None: it is awake."""

    @property
    def pods(self) -> int:
        """How many pods it should have now."""
        return 0 if self.asleep_since else self.serving.replicas


@dataclass(frozen=True)
class Placement:
    """Which of the wanted adapters a pool's pods should hold."""

    planned: tuple[LoRAAdapterResource, ...]
    refused: Mapping[str, Problem]
    """By adapter name."""


def _as_scaled(serving: Serving, base: BaseModelResource, pool: str) -> Serving:
    """With as many replicas as the base's status says were decided on."""
    replicas = decided_replicas(serving.autoscaling, base, pool)
    return serving if replicas is None else replace(serving, replicas=replicas)


def own_pool_of(deployment: ModelDeploymentResource, revision: Revision) -> str | None:
    """The ModelDeployment whose own pool the revision uses, None for the shared one."""
    return deployment.metadata.name if revision.serving or deployment.spec.serving else None


def pool_of(deployment: ModelDeploymentResource, revision: Revision) -> str:
    """Name of the pool that serves a revision; empty for an external one."""
    if revision.external:
        return ""
    if revision.serving:
        return names.pool_name(revision.base_model, deployment.metadata.name, revision.name)
    if deployment.spec.serving:
        return names.pool_name(revision.base_model, deployment.metadata.name)
    return names.pool_name(revision.base_model)


def serving_of(base: BaseModelResource, deployment: ModelDeploymentResource, revision: Revision) -> Serving:
    """How the pool of a revision serves."""
    serving = resolved_serving(revision.serving, deployment.spec.serving, base.spec.serving)
    serving = _as_scaled(serving, base, pool_of(deployment, revision))
    build = base.spec.source.build
    if build is None or build.output.volume is None:
        return serving
    # the claim that it is built onto, whatever other blocks say of volumes
    claim = VolumeClaim(claim_name=build.output.volume.claim_name)
    built = ArtifactVolume(name=BUILT_VOLUME, persistent_volume_claim=claim)
    return replace(serving, artifact_volumes=(*serving.artifact_volumes, built))


def referring(base: BaseModelResource, deployments: Iterable[ModelDeploymentResource]) -> list[ModelDeploymentResource]:
    """The ModelDeployments of the base's namespace with a revision of it, by name, without those that are going."""
    found = [
        d
        for d in deployments
        if d.metadata.namespace == base.metadata.namespace
        and not d.metadata.deletion_timestamp
        and any(r.base_model == base.metadata.name for r in d.spec.revisions)
    ]
    return sorted(found, key=lambda d: d.metadata.name)


def pools_of(base: BaseModelResource, deployments: Iterable[ModelDeploymentResource]) -> tuple[Pool, ...]:
    """The pools of a base that are referred to, the shared one first, then by name."""
    uses: dict[str, list[tuple[ModelDeploymentResource, Revision]]] = {}
    for deployment in referring(base, deployments):
        for revision in deployment.spec.revisions:
            if revision.base_model == base.metadata.name:
                uses.setdefault(pool_of(deployment, revision), []).append((deployment, revision))
    pools = [_pool(base, name, used) for name, used in uses.items()]
    return tuple(sorted(pools, key=lambda p: (p.deployment is not None, p.name)))


def pool_for(base: BaseModelResource, deployment: ModelDeploymentResource, revision: Revision) -> Pool:
    """The pool of a revision, as if nobody else used it."""
    return _pool(base, pool_of(deployment, revision), [(deployment, revision)])


def _pool(base: BaseModelResource, name: str, uses: Sequence[tuple[ModelDeploymentResource, Revision]]) -> Pool:
    deployment, revision = uses[0]
    serving = serving_of(base, deployment, revision)
    may_sleep = serving.scale_to_zero_after is not None and all(d.status.idle_since for d, _ in uses)
    named = frozenset(r.adapter for _, r in uses if r.adapter)
    wanted = frozenset(r.adapter for d, r in uses if r.adapter and not d.status.idle_since and r.name in warm(d))
    return Pool(
        namespace=base.metadata.namespace,
        name=name,
        base_model=base.metadata.name,
        deployment=own_pool_of(deployment, revision),
        serving=serving,
        used_by=tuple(dict.fromkeys(d.metadata.name for d, _ in uses)),
        adapter_names=wanted,
        idle=named - wanted,
        waking=frozenset(r.adapter for d, r in uses if r.adapter in wanted and d.status.waking_since),
        asleep_since=_asleep_since(base, name) if may_sleep else None,
    )


def _asleep_since(base: BaseModelResource, name: str) -> str | None:
    told = pool_status(base, name)
    return told.asleep_since if told else None


def plan_of(config_map: ChildObservation | None) -> PoolPlan | None:
    """The plan that a pool's agents have now."""
    return parsed(PoolPlan, config_map.plan) if config_map else None


def holders(plan: PoolPlan | None) -> tuple[str, ...]:
    """The adapters that have a place in a pool now: those of its plan, wanted or not."""
    return tuple(a.name for a in plan.adapters) if plan else ()


def grown_copies(plan: PoolPlan | None) -> dict[str, int]:
    """The adapters that more pods have than have the others: how many."""
    return {a.name: a.copies for a in plan.adapters if a.copies is not None} if plan else {}


def capacity(serving: Serving) -> int:
    """How many adapters the pods of a pool hold together; scaled to 0 it plans for what a single pod would hold."""
    pods = max(1, serving.replicas)
    return _all_places(serving) // min(serving.lora.copies or 1, pods)


def _all_places(serving: Serving) -> int:
    return max(1, serving.replicas) * serving.lora.max_cpu_loras


def copies(serving: Serving, adapters: int, before: PoolPlan | None, unused: int = 0) -> int | None:
    """How many pods should have each of so many adapters; None: all of them. `before`: the plan until now.

    `unused`: how many have just lost their last reference, or are idle. They may come back: nothing grows into their
    room.
    """
    pods = serving.replicas
    until_now = pods if before is None or before.copies is None else before.copies
    if serving.lora.copies is None:
        most, surely = _fitting(serving, adapters, 1.0), _fitting(serving, adapters + unused, _SLACK)
    else:
        most, surely = _asked_for(serving, adapters), _asked_for(serving, adapters + unused)
    found = min(max(until_now, surely), most)
    return None if found >= pods else found


def _asked_for(serving: Serving, adapters: int) -> int:
    """`lora.copies`, or as many as there is room for. One less for all makes room for nobody new (`capacity`)."""
    return min(serving.lora.copies or 1, max(1, _all_places(serving) // max(1, adapters)))


def _fitting(serving: Serving, adapters: int, share: float) -> int:
    """Copies of each adapter that fit into this share of the places."""
    pods, room = serving.replicas, int(serving.lora.max_cpu_loras * share)
    return pods if adapters <= room else max(1, min(pods, (pods - 1) * room // adapters, _MOST_COPIES // adapters))


def placement(pool: Pool, adapters: Iterable[LoRAAdapterResource], held: Iterable[str]) -> Placement:
    """Who of the wanted adapters gets a place; `held`: who has one. Those of another base or namespace never do."""
    present = frozenset(held)
    wanted = sorted(
        (a for a in adapters if a.metadata.name in pool.adapter_names and belongs(pool, a)),
        key=lambda a: (
            a.metadata.name not in present,
            a.metadata.name not in pool.waking,
            a.metadata.creation_timestamp,
            a.metadata.name,
        ),
    )
    planned: list[LoRAAdapterResource] = []
    refused: dict[str, Problem] = {}
    stored = 0.0
    for adapter in wanted:
        size = stored_bytes(pool.serving, adapter)
        # settings that pods could not reach it by do not become those of a pool that has it (`adapters_in_use`)
        problem = (None if adapter.metadata.name in present else _unreachable(pool.serving, adapter)) or (
            pool_full(pool, len(planned), len(wanted))
            if len(planned)
            >= (_all_places(pool.serving) if adapter.metadata.name in present else capacity(pool.serving))
            else plan_full(pool, len(planned), len(wanted))
            if stored + size > PLAN_BYTES
            else None
        )
        if problem:
            refused[adapter.metadata.name] = problem
        else:
            planned.append(adapter)
            stored += size
    return Placement(tuple(planned), refused)


def places(
    base: BaseModelResource,
    deployments: Iterable[ModelDeploymentResource],
    adapters: Sequence[LoRAAdapterResource],
    plans: Iterable[ChildObservation],
) -> tuple[PoolPlaces, ...]:
    """Who has no place in the base's pools. `adapters`: all of the base; `plans`: its pools' plan ConfigMaps."""
    known = {plan.name: plan for plan in plans}
    found = []
    for pool in pools_of(base, deployments):
        plan = plan_of(known.get(names.pool_plan(pool.name)))
        placed = placement(pool, adapters, holders(plan))
        # one whose object is gone keeps its place for a while (vanished.py)
        gone = pool.adapter_names - {a.metadata.name for a in adapters}
        still = (gone | {a.metadata.name for a in adapters if belongs(pool, a)}).intersection(holders(plan))
        unused = still - placed.refused.keys() - {a.metadata.name for a in placed.planned}
        wanted = copies(pool.serving, len(placed.planned), plan, len(unused | pool.idle))
        pods = pool.serving.replicas if wanted is None else wanted
        more = grown_copies(plan)
        found.append(PoolPlaces(pool.name, pool.namespace, pods, pool.adapter_names, placed.refused, more, pool.idle))
    return tuple(found)


def belongs(pool: Pool, adapter: LoRAAdapterResource) -> bool:
    """Whether pods of the pool could serve the adapter at all."""
    return (
        adapter.spec.base_model == pool.base_model
        and adapter.metadata.namespace == pool.namespace
        and not adapter.metadata.deletion_timestamp
    )


def adapters_in_use(
    pool: Pool, adapters: Iterable[LoRAAdapterResource], config_map: ChildObservation | None
) -> Problem | None:
    """Why a pool that has adapters goes on as it was: as it is wanted now its pods could not serve them any more.

    `config_map`: that of the pool's plan until now, which is read only where there are such adapters.
    """
    unreachable = {
        a.metadata.name: problem
        for a in adapters
        if a.metadata.name in pool.adapter_names and belongs(pool, a) and (problem := _unreachable(pool.serving, a))
    }
    lost = sorted(unreachable.keys() & set(holders(plan_of(config_map)))) if unreachable else []
    if not lost:
        return None
    first = unreachable[lost[0]]
    words = (
        f"pool {pool.name} goes on as it was, because it serves {some_of(lost, _NAMED)} for "
        f"{some_of(pool.used_by, _NAMED)}: take these out of the revisions first, or take the edit back. "
        f"With the edit, {first.message}"
    )
    return Problem(first.reason, clipped(words))


def _unreachable(serving: Serving, adapter: LoRAAdapterResource) -> Problem | None:
    return adapters_not_served(serving) or volume_not_declared(serving, adapter) or _not_shared(serving)


def no_adapters(serving: Serving) -> Problem | None:
    """What keeps every adapter out of a pool, whichever it is."""
    return adapters_not_served(serving) or _not_shared(serving)


def _not_shared(serving: Serving) -> Problem | None:
    return adapters_not_shared(serving.cache) if serving.nodes_per_replica > 1 else None


def adapters_not_served(serving: Serving) -> Problem | None:
    """An engine that would answer for the base where an adapter was asked for, or that is started without them."""
    if not serving.lora.on:
        words = "the pool's engines are started without adapters: remove serving.lora.enabled, which restarts its pods"
        return Problem(Reason.ADAPTERS_NOT_SERVED, words)
    if engines.capabilities(serving.engine, serving.custom).adapters is not engines.Loading.NEVER:
        return None
    return Problem(
        Reason.ADAPTERS_NOT_SERVED,
        f"Tuneyard loads no adapters into engine {serving.engine}: use {engines.listed(engines.LOADING)}, or merge the "
        "adapter into a base of its own",
    )


def volume_not_declared(serving: Serving, adapter: LoRAAdapterResource) -> Problem | None:
    """Pods cannot gain a volume while they run."""
    volume = adapter.spec.source.volume
    if volume is None or serving.declares(volume.name):
        return None
    declared = ", ".join(v.name for v in serving.artifact_volumes) or "none"
    return Problem(
        Reason.VOLUME_NOT_DECLARED,
        f"source.volume {volume.name} is not in serving.artifactVolumes of the pool (declared: {declared})",
    )


def stored_bytes(serving: Serving, adapter: LoRAAdapterResource) -> float:
    """What an adapter takes of a stored plan at most.

    Names and addresses pack to 6 bits a character at worst, digests to half their length, a pod's name to a reference.
    """
    source = adapter.spec.source.to_dict()
    text = len(adapter.metadata.name) + len(json.dumps(source, separators=(",", ":")))
    return 0.78 * text + 40 + 3 * min(serving.lora.copies or 0, serving.replicas)


def pool_full(pool: Pool, planned: int, wanted: int) -> Problem:
    """One adapter more than the engines may hold."""
    lora, pods = pool.serving.lora, max(1, pool.serving.replicas)
    how = "serving.lora.maxCpuLoras"
    if pods > 1:
        how = f"{pods} pods of {lora.max_cpu_loras} places, serving.lora.maxCpuLoras"
        how += f", {min(lora.copies, pods)} copies each" if lora.copies else ""
    return Problem(Reason.POOL_FULL, f"pool {pool.name} holds {planned} adapters ({how}), {wanted} are wanted")


def plan_full(pool: Pool, planned: int, wanted: int) -> Problem:
    """One adapter more than can be written into a pool's plan."""
    words = f"the plan of pool {pool.name} has no room for more than {planned} adapters with sources as long as theirs"
    return Problem(
        Reason.POOL_FULL, f"{words}, {wanted} are wanted: give some of the ModelDeployments pods of their own"
    )
