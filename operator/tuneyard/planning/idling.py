"""When a ModelDeployment's adapters are unloaded because nobody asks for it, and loaded again because somebody does.

Rules:
- what goes idle is a deployment as a whole, never one adapter of it: while it has traffic, its previous version stays
  loaded. Revisions that serve a base have nothing to unload: they go idle where their pool may sleep (poolsleep.py),
  and serve for as long as it does not;
- its state stands in its status: `idleSince`, then `wakingSince` until its adapters are loaded, then neither. A status
  that is lost means that everything is loaded again;
- half knowledge never idles anything: every gateway has to say that nobody asked for `lora.idleTimeout`, or without
  one for `scaleToZeroAfter`. Of the pools that a deployment uses the longest counts; one without keeps it awake;
- what is being loaded, changed or rolled out is not idled, and a changed spec wakes: what Git says is loaded and proven
  once, whether somebody asks for it or not;
- where its pool is full, a deployment of which nothing serves is idle at once, so that it takes a place only when
  somebody asks. For one that requests wait for, the longest unasked deployments of the pool go early: past half their
  timeout, and never within a minute of their last request;
- gateways hold requests while a deployment is idle or waking (`held_on_demand`), and for no other: one that is awake
  and broken says so at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.conditions import is_true
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus, Revision
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.schema import seconds
from tuneyard.planning.demand import DemandView
from tuneyard.planning.keepwarm import warm
from tuneyard.planning.observations import BaseModelObservation, ChildObservation, ModelDeploymentObservation, Problem
from tuneyard.planning.pools import Pool, holders, placement, plan_of, pool_of, serving_of
from tuneyard.planning.resolvedserving import Serving
from tuneyard.planning.revisions import RevisionState, cause, is_obstacle, is_work, says_full
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339
from tuneyard.planning.traffic import effective

LEAST_IDLE = 10.0
"""Seconds that an idle timeout has at least: gateways tell of a request within about a second."""
LEAST_BEFORE_MAKING_ROOM = 60.0
"""Seconds without a request before a deployment goes early."""
ROOM_SECONDS = 30.0
"""How long requests for one revision wait for room in its pool while another revision serves."""
LOAD_SECONDS = 120.0
"""How long requests for one revision wait for it to be loaded while stable serves."""
LOOK = 5.0
"""Seconds between two looks at what no change tells of: how long nobody has asked, and whether anybody still waits."""
NODE_SECONDS = 900.0
"""How long the pods of a pool that wakes may wait for a node: one may have to be started for them."""
_LONGEST_LOOK = 60.0
_IDLE_LOOK = 300.0
"""The same for what is idle: requests that wait are told at once, and thousands may be idle."""
_UNDER_WAY = frozenset({"Gating", "Progressing", "Inconclusive", "Paused", "Baking"})
"""Phases of a rollout by steps that somebody waits for. In mode Manual a lasting split is called Progressing too."""
_OLDEST_REPORT = 25.0
"""Seconds: a gateway that has nothing new to tell is heard every 20 s."""


@dataclass(frozen=True)
class Sleep:
    """Whether a deployment's adapters are wanted."""

    idle_since: str | None = None
    waking_since: str | None = None
    wait: float | None = None
    """After how many seconds time alone may change it."""


@dataclass(frozen=True)
class Asked:
    """What gateways say of a deployment."""

    waiting: int = 0
    """Requests that are held for it."""
    quiet: float | None = None
    """Seconds for which nobody has asked for it; None: not every gateway says so."""
    used: float | None = None
    """Seconds since the last request that some gateway is sure of."""

    def for_(self, needed: float) -> bool:
        """Whether it is known that nobody has asked for so many seconds, and nobody waits."""
        return not self.waiting and self.quiet is not None and self.quiet >= needed


def held_on_demand(deployment: ModelDeploymentResource, bases: Iterable[BaseModelResource] = ()) -> frozenset[str]:
    """The revisions whose requests are held while no pod serves them, by what the deployment's status says."""
    status = deployment.status
    if not (status.idle_since or status.waking_since):
        return frozenset()
    return sleepers(deployment, bases)


def sleepers(deployment: ModelDeploymentResource, bases: Iterable[BaseModelResource]) -> frozenset[str]:
    """The revisions that no pod need serve while nobody asks: those with an adapter, and those whose pool may sleep."""
    known = _bases_of(deployment, bases)

    def sleeps(revision: Revision) -> bool:
        base = known.get(revision.base_model)
        return base is not None and serving_of(base, deployment, revision).scale_to_zero_after is not None

    return frozenset(r.name for r in deployment.spec.revisions if r.adapter or sleeps(r))


def _bases_of(deployment: ModelDeploymentResource, bases: Iterable[BaseModelResource]) -> dict[str, BaseModelResource]:
    return {b.metadata.name: b for b in bases if b.metadata.namespace == deployment.metadata.namespace}


def has_no_room(deployment: ModelDeploymentResource) -> bool:
    """Whether what is being loaded again finds no place: requests that are held for it wait in vain.

    Not while another revision that gets requests is being loaded: nobody can tell for which of them one waits.
    """
    status = deployment.status
    missing = [t for t in status.traffic if t.weight and not t.ready_endpoints]
    return bool(status.waking_since and missing) and all(says_full(t.withheld) for t in missing)


def idle_timeout(deployment: ModelDeploymentResource, bases: Iterable[BaseModelResource]) -> float | None:
    """Seconds after which it goes idle; None: never."""
    known = _bases_of(deployment, bases)
    timeouts: list[float] = []
    for revision in deployment.spec.revisions:
        base = known.get(revision.base_model)
        after = _unasked_for(serving_of(base, deployment, revision), revision) if base else None
        if revision.adapter and after is None:
            return None
        timeouts += [] if after is None else [max(LEAST_IDLE, float(after))]
    return max(timeouts, default=None)


def _unasked_for(serving: Serving, revision: Revision) -> int | None:
    text = serving.lora.idle_timeout if revision.adapter else None
    return seconds(text) if text else serving.scale_to_zero_after


def asked(demand: DemandView, deployment: ModelDeploymentResource) -> Asked:
    """What gateways say of the deployment."""
    namespace, name = deployment.metadata.key
    told = demand.of(namespace, name)
    flying = any(r.in_flight for t in told for r in t.revisions.values())
    quiet = demand.idle_seconds(namespace, name)
    return Asked(
        waiting=demand.waiting(namespace, name),
        quiet=0.0 if quiet is not None and flying else quiet,
        used=min((t.idle_seconds for t in told if any(r.requests for r in t.revisions.values())), default=None),
    )


def next_sleep(
    obs: ModelDeploymentObservation,
    deployment: ModelDeploymentResource,
    states: Sequence[RevisionState],
    ready: Mapping[str, int],
) -> Sleep:
    """Whether its adapters are wanted from now on; `ready`: ready endpoints per revision."""
    status, now = deployment.status, rfc3339(obs.now)
    timeout = idle_timeout(deployment, obs.base_models)
    found = asked(obs.demand, deployment)
    if status.idle_since:
        wanted = (
            timeout is None or _changed(deployment) or found.waiting > 0 or _used_since(status.idle_since, found, obs)
        )
        # what still has pods is asked without anybody waiting
        look = _LONGEST_LOOK if any(ready.values()) else _IDLE_LOOK
        return Sleep(waking_since=now, wait=LOOK) if wanted else Sleep(idle_since=status.idle_since, wait=look)
    if timeout is None and not status.waking_since:
        return Sleep()
    kept = warm(deployment) & sleepers(deployment, obs.base_models)
    missing = [s for s in states if s.revision.name in kept and not ready[s.revision.name]]
    unloaded = {s.revision.name: _cause(s, status, obs) for s in missing}
    serves = _serves(deployment, ready)
    full = any(c.reason is Reason.POOL_FULL for c in unloaded.values())
    without_room = timeout is not None and full and not serves
    if without_room and found.for_(0.0):
        return Sleep(idle_since=now, wait=_IDLE_LOOK)
    if status.waking_since and _is_awaited(obs, deployment, unloaded, ready, serves=serves):
        return Sleep(waking_since=status.waking_since, wait=LOOK)
    if timeout is None:
        return Sleep()
    unknown = min(_LONGEST_LOOK, max(LOOK, timeout))
    if not _settled(deployment, unloaded):
        # what it waits for comes as a change, but for a gateway's word that nobody waits
        return Sleep(wait=LOOK if without_room else unknown)
    makes_room = _makes_room(obs, deployment) and found.for_(_early(timeout))
    if found.for_(timeout) or makes_room:
        return Sleep(idle_since=now, wait=_IDLE_LOOK)
    return Sleep(wait=unknown if found.quiet is None else max(1.0, timeout - found.quiet))


def look_again(sleep: Sleep, deployment: ModelDeploymentResource, status: ModelDeploymentStatus) -> float | None:
    """Seconds after which time alone may change the plan, when this status is written.

    What has come to rest only now is looked at soon: whether it is asked for counted for nothing until then.
    """
    rests = is_true(status.conditions, "Ready") and not is_true(deployment.status.conditions, "Ready")
    return min(sleep.wait, LOOK) if sleep.wait is not None and rests else sleep.wait


def idle_words(sleep: Sleep, deployment: ModelDeploymentResource, bases: Iterable[BaseModelResource] = ()) -> Problem:
    """What is said of a deployment that is idle."""
    mine = {pool_of(deployment, r) for r in deployment.spec.revisions}
    pools = (p for b in _bases_of(deployment, bases).values() for p in b.status.pools or ())
    asleep = next((p for p in pools if p.name in mine and p.asleep_since), None)
    if asleep:
        words = f"pool {asleep.name} has no pods since {asleep.asleep_since}; the next request starts them"
    elif any(r.adapter for r in deployment.spec.revisions):
        words = f"its adapters are not loaded since {sleep.idle_since}; the next request loads them"
    else:
        words = f"nobody asks for it, as of {sleep.idle_since}; its pool may go to sleep"
    return Problem(Reason.IDLE, words)


def making_room(
    obs: BaseModelObservation, base: BaseModelResource, pool: Pool, config_map: ChildObservation | None
) -> tuple[str, ...]:
    """The deployments that go idle early, one for each adapter that requests wait for and that has no place.

    `config_map`: that of the pool's plan until now.
    """
    waited_for = _waited_for(obs, pool) if pool.waking else set[str]()
    if not waited_for:
        return ()
    refused = placement(pool, obs.adapters, holders(plan_of(config_map))).refused
    missing = sum(p.reason is Reason.POOL_FULL for name, p in refused.items() if name in waited_for)
    candidates: list[tuple[float, str]] = []
    for deployment in obs.deployments if missing else ():
        # one that cannot go would keep its turn, and the next one its place
        if not (_at_rest(deployment) and _holds_place(deployment, pool, refused)):
            continue
        timeout = idle_timeout(deployment, (*obs.siblings, base))
        found = asked(obs.demand, deployment)
        if timeout is not None and found.for_(_early(timeout)):
            candidates.append((-(found.quiet or 0.0), deployment.metadata.name))
    return tuple(sorted(name for _, name in sorted(candidates)[:missing]))


def _waited_for(obs: BaseModelObservation, pool: Pool) -> set[str]:
    """The pool's waking adapters whose requests are held now: clients go, and an edit wakes without any."""
    revisions = (r for d in obs.deployments if obs.demand.waiting(*d.metadata.key) for r in d.spec.revisions)
    return {r.adapter for r in revisions if r.adapter in pool.waking}


def _early(timeout: float) -> float:
    return max(timeout / 2, LEAST_BEFORE_MAKING_ROOM)


def _holds_place(deployment: ModelDeploymentResource, pool: Pool, refused: Mapping[str, Problem]) -> bool:
    """Whether the pool has a place that becomes free when the deployment goes idle."""
    status = deployment.status
    if deployment.metadata.name not in pool.used_by or status.idle_since or status.waking_since:
        return False
    mine = {r.adapter for r in deployment.spec.revisions if r.adapter and pool_of(deployment, r) == pool.name}
    return bool((mine & pool.adapter_names) - refused.keys())


def _cause(state: RevisionState, status: ModelDeploymentStatus, obs: ModelDeploymentObservation) -> Problem:
    """Why no pod serves the revision; that a pool which wakes finds no node for its pods is waited for."""
    found, since = cause(state), parsed_time(status.waking_since)
    may_sleep = state.serving is not None and state.serving.scale_to_zero_after is not None
    if found.reason is Reason.UNSCHEDULABLE and since and may_sleep and remaining(since, NODE_SECONDS, obs.now) > 0:
        return Problem(Reason.STARTING, found.message)
    return found


def _changed(deployment: ModelDeploymentResource) -> bool:
    return deployment.status.observed_generation != deployment.metadata.generation


def _used_since(idle_since: str, found: Asked, obs: ModelDeploymentObservation) -> bool:
    """A pod that had not unloaded yet has answered, or a gateway did not know yet."""
    since = parsed_time(idle_since) or obs.now
    return found.used is not None and found.used < (obs.now - since).total_seconds() - _OLDEST_REPORT


def _is_awaited(
    obs: ModelDeploymentObservation,
    deployment: ModelDeploymentResource,
    unloaded: Mapping[str, Problem],
    ready: Mapping[str, int],
    *,
    serves: bool,
) -> bool:
    """Whether what is being loaded again still is, or gateways do not know yet that it is there."""
    getting = {r: c for r, c in unloaded.items() if deployment.spec.weight_of(r)}
    if any(is_obstacle(c) or c.reason is Reason.NO_READY_ENDPOINT for c in getting.values()):
        return False
    since = parsed_time(deployment.status.waking_since) or obs.now
    if serves and remaining(since, ROOM_SECONDS, obs.now) <= 0:
        # what has a place serves, and takes the share of what has none
        getting = {r: c for r, c in getting.items() if c.reason is not Reason.POOL_FULL}
    stable = (deployment.status.rollout or RolloutStatus()).stable
    # an edit that wakes may name a candidate that never loads: its share, and its deadline, would be kept for ever
    over = bool(stable and ready.get(stable)) and remaining(since, LOAD_SECONDS, obs.now) <= 0
    if not over and (getting or any(is_work(c) for c in unloaded.values())):
        return True
    key = "/".join(deployment.metadata.key)
    told = (r.deployments.get(key) for r in obs.applied)
    return any(set(d.held) - unloaded.keys() for d in told if d is not None)


def _serves(deployment: ModelDeploymentResource, ready: Mapping[str, int]) -> bool:
    """Whether some revision answers requests: also a stable one without a share, which takes what others cannot."""
    rollout = deployment.status.rollout or RolloutStatus()
    split = effective(deployment.spec, ready, stable=rollout.stable, allowed=rollout.allowed)
    return any(weight and ready[name] for name, weight in split.weights.items())


def _settled(deployment: ModelDeploymentResource, unloaded: Mapping[str, Problem]) -> bool:
    """Whether nothing is under way, by the last pass and by what is loaded now."""
    return _at_rest(deployment) and not any(deployment.spec.weight_of(r) for r in unloaded)


def _at_rest(deployment: ModelDeploymentResource) -> bool:
    """Whether the last pass found everything served, and no rollout under way."""
    status = deployment.status
    if _changed(deployment) or not is_true(status.conditions, "Ready"):
        return False
    rollout = status.rollout or RolloutStatus()
    if deployment.spec.progressive and rollout.phase in _UNDER_WAY:
        return False
    # 0 and 100 stay behind for good: they name what is rejected and what is proven
    return all(weight in (0, 100) for weight in (rollout.allowed or {}).values())


def _makes_room(obs: ModelDeploymentObservation, deployment: ModelDeploymentResource) -> bool:
    pools = {pool_of(deployment, r) for r in deployment.spec.revisions if r.adapter}
    told = (p for b in obs.base_models for p in b.status.pools or () if p.name in pools)
    return any(deployment.metadata.name in (p.makes_room or ()) for p in told)
