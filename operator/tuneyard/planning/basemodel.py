"""The plan for a BaseModel: its pools' objects, and what is known of the base and its pods.

Rules:
- a pool is there while a ModelDeployment refers to it and POOL_GRACE seconds longer; in that time nothing of it is
  changed, so that a deployment that comes back finds it as it was;
- a serving block that is known not to work is not applied: what serves goes on as it was, and the status says why;
- a digest is used for plans only after it stood in the status: a crash between the two must not pin another one;
- what the pools of a namespace share comes with its first BaseModel and goes with the last, by garbage collection:
  gateways look for pods wherever a ModelDeployment stands, also while there is no pool;
- how many pods a pool has that is scaled by its load is decided here and applied at once (poolscaling.py);
- the workload (a Deployment, or a LeaderWorkerSet where replicas span nodes) is applied last, so that no pod starts
  without its key, its plan and its NetworkPolicy, and deleted first; the rest goes when its pods are gone, because pods
  that drain still need it;
- a pool that changes from the one kind to the other has both until the new one serves; with `update: Replace` the old
  one goes first.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.reasons import Reason
from tuneyard.planning import children, servingchecks
from tuneyard.planning.basestatus import PoolState, UnusedPool, basemodel_status, unused_since
from tuneyard.planning.builds import next_building
from tuneyard.planning.built import as_built
from tuneyard.planning.idling import LOOK, making_room
from tuneyard.planning.observations import BaseModelObservation, ChildObservation
from tuneyard.planning.plan import Action, Annotate, Apply, Delete, Event, ObjectReference, Plan
from tuneyard.planning.poolplan import WantedPlan, wanted_plan
from tuneyard.planning.pools import POOL_GRACE, Pool, adapters_in_use, pools_of
from tuneyard.planning.poolscaling import keeps_replicas, next_pool_scale
from tuneyard.planning.poolsleep import PoolSleep, next_pool_sleep
from tuneyard.planning.prewarm import prewarm_state
from tuneyard.planning.readiness import stalled_event
from tuneyard.planning.remedies import clipped
from tuneyard.planning.timestamps import remaining, rfc3339


def plan_basemodel(obs: BaseModelObservation) -> Plan:
    """What to do for a BaseModel now. One that is gone or going is left to garbage collection."""
    base = obs.base
    if base is None or base.metadata.deletion_timestamp:
        return Plan()
    actions: list[Action] = []
    waits: list[float] = []
    events: list[Event] = []
    about = ObjectReference(
        names.API_VERSION, "BaseModel", base.metadata.namespace, base.metadata.name, base.metadata.uid
    )
    mine = [c for c in obs.children if c.base_model == children.label_value(base.metadata.name)]
    pools = pools_of(base, obs.deployments)
    actions += _access_actions(obs, base)
    building = next_building(obs, base, mine)
    actions += building.actions
    events += building.events
    waits += [] if building.wait is None else [building.wait]
    # pools serve what was built; before, nothing of them is made or changed
    base = as_built(base) or base
    states = []
    shared: list[PlannedAdapter] = []
    for pool in pools:
        state = _state(obs, base, pool, mine)
        states.append(state)
        steps, wanted = _pool_actions(obs, base, state, mine)
        shared = wanted.plan.adapters if wanted and pool.deployment is None else shared
        actions += steps
        waits += [*(wanted.waits if wanted else ()), *([LOOK] if pool.waking else ()), *state.waits]
        events += [*_sleep_events(state, about), *_scale_events(state, about)]
        events += _growth_events(obs, wanted)
        if state.workload is None and state.former is None and any(_is_workload(a) for a in steps):
            message = f"created pool {pool.name} of {state.pool.serving.replicas} pods"
            events.append(Event("Normal", Reason.POOL_CREATED, message, about))
    unused = _unused_pools(obs, {p.name for p in pools}, mine)
    for leftover in unused:
        steps, wait = _retirement(obs, leftover)
        actions += steps
        waits += wait
        events += _retirement_events(leftover, steps, about)
    prewarming = prewarm_state(obs, base, mine, shared, base.pinned_digest)
    # last: whatever the API server says of it, the pools are as they should be
    actions += [*_unless_there(prewarming.wanted, mine), *(_deletion(c) for c in prewarming.unwanted)]
    status, problem = basemodel_status(obs, base, states, unused, prewarming, building=building)
    if base.status.digest is None and status.digest is not None and base.spec.digest is None and building.done:
        events.append(Event("Normal", Reason.DIGEST_PINNED, f"pinned {status.digest}", about))
        # the write of a status wakes nobody, and pods that are on their way should be told of the digest
        waits.append(0.0)
    events += stalled_event(base.status.conditions, problem, about)
    return Plan(tuple(actions), status, tuple(events), min(waits, default=None))


def _access_actions(obs: BaseModelObservation, base: BaseModelResource) -> list[Action]:
    """What all pools of the namespace share."""
    living = {b.metadata.uid: b for b in (*obs.siblings, base) if not b.metadata.deletion_timestamp}
    access = children.namespace_access(base.metadata.namespace, living.values(), obs.credentials, obs.settings)
    return _unless_there(access, obs.children)


def _is_workload(action: Action) -> bool:
    return isinstance(action, Apply) and children.is_workload(action.object["kind"])


def _found(mine: Iterable[ChildObservation], kind: str, name: str) -> ChildObservation | None:
    return next((c for c in mine if c.kind == kind and c.name == name), None)


def _unless_there(wanted: Iterable[children.Json], found: Iterable[ChildObservation]) -> list[Action]:
    """Apply what is missing, differs, or was changed by somebody.

    What is being deleted is waited for: an apply would land on a dying object.
    """
    known = {(c.kind, c.name): c for c in found}
    result: list[Action] = []
    for obj in wanted:
        child = known.get((obj["kind"], obj["metadata"]["name"]))
        if child is None or (not child.deleted and not children.as_applied(child, obj)):
            result.append(Apply(obj))
    return result


def _state(
    obs: BaseModelObservation, base: BaseModelResource, pool: Pool, mine: Iterable[ChildObservation]
) -> PoolState:
    deployment = _found(mine, "Deployment", names.pool_deployment(pool.name))
    groups = _found(mine, "LeaderWorkerSet", names.pool_groups(pool.name))
    spans = pool.serving.nodes_per_replica > 1
    workload, former = (groups, deployment) if spans else (deployment, groups)
    has = obs.has_leader_worker_sets
    violation = servingchecks.violation(base, pool.serving, obs.settings)
    violation = violation or servingchecks.leader_worker_set_missing(pool.serving, obs.settings, served=has)
    if violation is None and obs.base is not None:
        violation = servingchecks.built_for_another_engine(obs.base, pool.serving)
    plan = _found(mine, "ConfigMap", names.pool_plan(pool.name))
    violation = violation or adapters_in_use(pool, obs.adapters, plan)
    scale = next_pool_scale(obs, base, pool, workload or former, frozen=violation is not None)
    pool = scale.pool
    pods = tuple(p for p in obs.pods if p.pool == pool.name and not p.deleted)
    kept = not pool.serving.scales_outside or keeps_replicas(deployment)
    wanted = None if violation else children.pool_workload(pool, base, obs.settings, pods, with_replicas=kept)
    sleep = PoolSleep() if violation else next_pool_sleep(obs, pool)
    return PoolState(
        pool=pool,
        violation=violation,
        wanted=wanted,
        workload=workload,
        former=former,
        pods=pods,
        workers=tuple(p for p in obs.pods if p.worker_of == pool.name and not p.deleted),
        makes_room=making_room(obs, base, pool, plan),
        sleep=sleep,
        was_asleep=any(p.name == pool.name and p.asleep_since for p in base.status.pools or ()),
        scale=scale,
    )


def _pool_actions(
    obs: BaseModelObservation, base: BaseModelResource, state: PoolState, mine: list[ChildObservation]
) -> tuple[list[Action], WantedPlan | None]:
    """What one pool that is referred to needs now, and its plan, unless it cannot serve as it is wanted."""
    found = (w for w in (state.workload, state.former) if w and names.ANNOTATION_UNUSED_SINCE in w.annotations)
    actions: list[Action] = [_annotated(workload, None) for workload in found]
    if state.wanted is None:
        return actions, None
    pool = state.pool
    before = _found(mine, "ConfigMap", names.pool_plan(pool.name))
    wanted = wanted_plan(obs, pool, before, state.wanted)
    plan = children.pool_plan(pool, base, wanted.plan, wanted.marks, base.pinned_digest)
    companions = children.pool_companions(pool, base, obs.keys, obs.settings, obs.now)
    waits = state.former is not None and state.frees_first
    objects = (plan, *companions) if waits else (plan, *companions, state.wanted)
    steps = actions + _unless_there(objects, mine)
    if state.former and not state.former.deleted and state.replaces_former:
        steps.append(_deletion(state.former))
    return steps + _left_of_groups(state, mine), wanted


def _left_of_groups(state: PoolState, mine: Iterable[ChildObservation]) -> list[Action]:
    """What only groups of pods need, once the pool has none any more."""
    if state.pool.serving.nodes_per_replica > 1 or state.former or state.workers:
        return []
    policy = _found(mine, "NetworkPolicy", names.pool_groups(state.pool.name))
    return [_deletion(policy)] if policy and not policy.deleted else []


def _sleep_events(state: PoolState, about: ObjectReference) -> list[Event]:
    """Told when a pool goes to sleep, and when it has its pods again."""
    name, asleep = state.pool.name, bool(state.sleep.asleep_since)
    if asleep == state.was_asleep:
        return []
    words = f"pool {name} has no pods until somebody asks" if asleep else f"starts the pods of pool {name}"
    return [Event("Normal", Reason.ASLEEP if asleep else Reason.WOKEN, words, about)]


def _scale_events(state: PoolState, about: ObjectReference) -> list[Event]:
    """Told when its load gives a pool more pods, or takes some; waking and sleeping are told as that."""
    before, now = state.scale.before, state.scale.wanted
    if before is None or now is None or before == now or state.pool.asleep_since or state.was_asleep:
        return []
    words = clipped(f"pool {state.pool.name}: {before} → {now} replicas, {state.scale.reason}")
    return [Event("Normal", Reason.SCALED_UP if now > before else Reason.SCALED_DOWN, words, about)]


def _growth_events(obs: BaseModelObservation, wanted: WantedPlan | None) -> list[Event]:
    """Told of the adapters that get more copies."""
    grew = wanted.grew if wanted else {}
    found = (a.metadata for a in obs.adapters if a.metadata.name in grew)
    return [
        Event(
            "Normal",
            Reason.ADAPTER_SPREAD,
            grew[meta.name],
            ObjectReference(names.API_VERSION, "LoRAAdapter", meta.namespace, meta.name, meta.uid),
        )
        for meta in found
    ]


def _unused_pools(
    obs: BaseModelObservation, used: set[str], mine: Iterable[ChildObservation]
) -> tuple[UnusedPool, ...]:
    """Pools of the base that objects are left of though nothing refers to them."""
    left: dict[str, list[ChildObservation]] = {}
    for child in mine:
        if child.pool and child.pool not in used:
            left.setdefault(child.pool, []).append(child)
    return tuple(
        UnusedPool(name, tuple(found), any(name in (p.pool, p.worker_of) for p in obs.pods))
        for name, found in sorted(left.items())
    )


def _retirement(obs: BaseModelObservation, pool: UnusedPool) -> tuple[list[Action], list[float]]:
    """Mark, wait, delete the workload, wait for its pods, delete the rest."""
    if obs.unreadable:
        return [], []
    if not pool.workloads:
        return [_deletion(c) for c in pool.children if not c.deleted and not pool.has_pods], []
    actions: list[Action] = []
    waits: list[float] = []
    for workload in (w for w in pool.workloads if not w.deleted):
        since = unused_since(workload)
        left = POOL_GRACE if since is None else remaining(since, POOL_GRACE, obs.now)
        waits += [left] if left > 0 else []
        actions += [_annotated(workload, rfc3339(obs.now))] if since is None else []
        actions += [_deletion(workload)] if left <= 0 else []
    return actions, waits


def _retirement_events(pool: UnusedPool, steps: Iterable[Action], about: ObjectReference) -> list[Event]:
    if not any(isinstance(a, Delete) and children.is_workload(a.kind) for a in steps):
        return []
    message = f"deleted pool {pool.name}: nothing has referred to it for {POOL_GRACE:.0f} s"
    return [Event("Normal", Reason.POOL_DELETED, message, about)]


def _annotated(child: ChildObservation, since: str | None) -> Annotate:
    mark: dict[str, str | None] = {names.ANNOTATION_UNUSED_SINCE: since}
    return Annotate(child.api_version, child.kind, child.namespace, child.name, child.uid, mark)


def _deletion(child: ChildObservation) -> Delete:
    return Delete(child.api_version, child.kind, child.namespace, child.name, child.uid, child.resource_version)
