"""What the plan of a pool says: which adapters its pods should have, and which pods, where not all of them.

Rules:
- a pool in which every pod holds every adapter has a plan that names no pod, and so does not change with its pods;
- else the plan is worked out from the plan before it and from what the pods report (placing.py). What has to be
  remembered beside it stands in annotations of the same ConfigMap, so that an operator that begins anew goes on;
- a pod counts as soon as it is there: it fetches its share while its engine starts, and is ready only with it
  (podspec.py). One that was ready and is not any more is given LOST_AFTER seconds: an engine that was only busy, or a
  report that came late, would move its adapters twice;
- an engine that takes adapters only when it begins does so in its turn (turns.py): in pools of these it is always
  remembered which pods were ready;
- an adapter that many requests are under way to gets more copies than the others (growth.py), as far as there is room;
- one that only idle ModelDeployments name leaves the plan at once: its pods withdraw it, and its files stay with them;
- one whose object is gone while it is named stays for a while as it was planned (vanished.py);
- an adapter that nothing refers to stays for ADAPTER_GRACE where it is, while nobody else needs the room, in its pods
  or in the ConfigMap: one that the API server refuses would never be written again, and nobody would ever leave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from tuneyard.api import names
from tuneyard.api.documents import PlannedAdapter, PoolPlan
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.planning import growth
from tuneyard.planning.children import (
    ANNOTATION_GROWN,
    ANNOTATION_PODS_SEEN,
    ANNOTATION_UNUSED_ADAPTERS,
    ANNOTATION_VANISHED_ADAPTERS,
    Json,
    marks_of,
    template_mark,
)
from tuneyard.planning.engines import Loading, capabilities
from tuneyard.planning.handover import with_leaving
from tuneyard.planning.observations import BaseModelObservation, ChildObservation, PodObservation
from tuneyard.planning.placing import Host, Wish, spread
from tuneyard.planning.pools import (
    ADAPTER_GRACE,
    PLAN_BYTES,
    Pool,
    belongs,
    copies,
    grown_copies,
    holders,
    placement,
    plan_of,
    stored_bytes,
)
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339
from tuneyard.planning.turns import longest_turn, offers, turns
from tuneyard.planning.vanished import as_planned, vanished_since

LOST_AFTER = 4.0
"""Seconds after which a pod that was ready is done without."""
_READY = "Ready"
_UNUSED_BYTES = 96 << 10
"""Of the marks of unused adapters; all annotations of an object may have 256 KiB together."""
_MARK_BYTES = 30
"""What a mark takes beside the adapter's name."""


@dataclass(frozen=True)
class WantedPlan:
    """A pool's plan, what is to be remembered with it, and after how many seconds it may be another one."""

    plan: PoolPlan
    marks: Mapping[str, Mapping[str, str]]
    """By annotation of the plan's ConfigMap; an empty one is left out."""
    waits: tuple[float, ...]
    grew: Mapping[str, str] = field(default_factory=dict)
    """Adapters that get more copies than before, in words."""


@dataclass(frozen=True)
class _Places:
    """Which pods are to have which adapters, and what that depends on."""

    having: Mapping[str, Sequence[str] | None]
    """By adapter; None: every pod."""
    counted: list[str] | None = None
    """The pods that adapters are spread over; None: that does not matter."""
    more: Mapping[str, int] = field(default_factory=dict)
    """Pods of the adapters that have more than the others."""
    grown: Mapping[str, growth.Grown] = field(default_factory=dict)
    loads: growth.Loads = field(default_factory=growth.Loads)
    seen: Mapping[str, str] = field(default_factory=dict)
    waits: tuple[float, ...] = ()


def wanted_plan(
    obs: BaseModelObservation, pool: Pool, config_map: ChildObservation | None, workload: Json
) -> WantedPlan:
    """The plan of a pool from now on; `config_map`: that of its plan until now; `workload`: as it is wanted now."""
    before = plan_of(config_map)
    vanished = vanished_since(pool, obs.adapters, before, marks_of(config_map, ANNOTATION_VANISHED_ADAPTERS), obs.now)
    adapters = (*obs.adapters, *as_planned(pool, before, vanished))
    placed = placement(pool, adapters, holders(before))
    known = {a.metadata.name: a for a in adapters if belongs(pool, a)}
    wanted = [a.metadata.name for a in placed.planned]
    # who has no place has none for a while either
    others = known.keys() - placed.refused.keys() - set(wanted) - pool.idle
    unused = _unused_since(obs, before, marks_of(config_map, ANNOTATION_UNUSED_ADAPTERS), others)
    unused = _storable(pool, unused, known, placed.planned)
    number = copies(pool.serving, len(wanted), before, len(unused.keys() | pool.idle))
    room = pool.serving.lora.max_cpu_loras
    if number is None:
        found = _Places(dict.fromkeys([*wanted, *unused][: max(room, len(wanted))]))
    else:
        wish = Wish(wanted, list(unused), number, room, pool.serving.replicas)
        template = template_mark(workload)
        found = _places(obs, pool, wish, known, template=template, before=before, config_map=config_map)
    turn, seen, turn_waits = _turn(obs, pool, before, config_map)
    plan = PoolPlan(
        pool=pool.name,
        base_model=pool.base_model,
        max_rank=pool.serving.lora.max_rank,
        copies=number,
        pods=found.counted,
        turns=turn,
        adapters=[_planned(known[n], found.having[n], found.more.get(n)) for n in sorted(found.having)],
    )
    stays = {name: since for name, since in unused.items() if name in found.having}
    waits = [ADAPTER_GRACE if obs.unreadable else remaining(s, ADAPTER_GRACE, obs.now) for s in stays.values()]
    waits += [growth.LOOK_AGAIN] if found.grown else []
    waits += [remaining(since, ADAPTER_GRACE, obs.now) for since in vanished.values()]
    marks = {
        ANNOTATION_GROWN: {name: g.mark for name, g in found.grown.items()},
        ANNOTATION_UNUSED_ADAPTERS: {name: rfc3339(since) for name, since in stays.items()},
        ANNOTATION_PODS_SEEN: found.seen or seen,
        ANNOTATION_VANISHED_ADAPTERS: {name: rfc3339(since) for name, since in vanished.items()},
    }
    return WantedPlan(plan, marks, (*found.waits, *turn_waits, *waits), _grew(before, plan, found.loads))


def _turn(
    obs: BaseModelObservation, pool: Pool, before: PoolPlan | None, config_map: ChildObservation | None
) -> tuple[list[str] | None, dict[str, str], list[float]]:
    """Who has the turn, which pods were seen ready, and when to look again; nothing where no engine begins anew."""
    if capabilities(pool.serving.engine, pool.serving.custom).adapters is not Loading.AT_START:
        return None, {}, []
    pods = [p for p in obs.pods if p.pool == pool.name and not p.deleted]
    seen, _ = pods_seen(pods, marks_of(config_map, ANNOTATION_PODS_SEEN), obs.now)
    turn, waits = turns(pods, before, seen, obs.now, longest_turn(pool.serving.drain_timeout))
    return turn, seen, waits


def _places(
    obs: BaseModelObservation,
    pool: Pool,
    wish: Wish,
    known: Mapping[str, LoRAAdapterResource],
    *,
    template: str,
    before: PoolPlan | None,
    config_map: ChildObservation | None,
) -> _Places:
    """The pods of each adapter, where not every pod has all.

    `template`: that of the pods that stay; `before`: the plan until now, `config_map`: what it stands in.
    """
    mine = [p for p in obs.pods if p.pool == pool.name]
    pods, going = [p for p in mine if not p.deleted], [p for p in mine if p.hands_over]
    staying = staying_pods(pods, template)
    seen, waits = pods_seen(pods, marks_of(config_map, ANNOTATION_PODS_SEEN), obs.now)
    every_host = hosts_of([*pods, *going], seen, known, obs.now, before)
    hosts = [replace(host, stays=host.name in staying) for host in every_host[: len(pods)]]
    leaving = every_host[len(pods) :]
    counted = sorted(h.name for h in hosts)
    loads = growth.pool_loads(obs.deployments, obs.demand).get((pool.namespace, pool.name), growth.Loads())
    had, limits = growth.remembered(marks_of(config_map, ANNOTATION_GROWN)), growth.bounds(pool.serving, wish.copies)
    grown = growth.grown(wish.adapters, loads, had, limits, known=obs.demand.known, now=obs.now)
    wish = replace(wish, more={name: g.copies for name, g in grown.items()})
    places = spread(wish, hosts, _held(before, counted))
    found, idle = with_leaving(places, hosts, leaving), frozenset(wish.idle)
    having = {name: pods for name, pods in found.items() if pods or name not in idle}
    return _Places(having, counted, _more(wish, places), grown, loads, seen, tuple(waits))


def _grew(before: PoolPlan | None, plan: PoolPlan, loads: growth.Loads) -> dict[str, str]:
    until_now, pods = grown_copies(before), len(plan.pods or ())
    return {
        name: f"gets {copies} of {pods} pods for {loads.adapters.get(name, 0):.0f} requests under way"
        for name, copies in grown_copies(plan).items()
        if copies > until_now.get(name, 0)
    }


def _more(wish: Wish, found: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many pods should have each hot adapter: as many as it deserves and there was room for."""
    there = {name: min(copies, len(found.get(name, ()))) for name, copies in wish.more.items()}
    return {name: copies for name, copies in there.items() if copies > wish.copies}


def pods_seen(
    pods: Iterable[PodObservation], before: Mapping[str, str], now: datetime
) -> tuple[dict[str, str], list[float]]:
    """Which pods are ready and since when others are not any more, and after how many seconds one of these is lost.

    One that was never ready is left out: nothing is lost with it. A new pod's own word is enough; later Kubernetes must
    find it ready too, because a report outlives the node of its pod.
    """
    seen: dict[str, str] = {}
    waits: list[float] = []
    for pod in pods:
        ready = pod.ready and offers(pod)
        known = before.get(pod.name)
        if ready:
            seen[pod.name] = _READY
        elif known is not None:
            since = parsed_time(known) or now
            seen[pod.name] = rfc3339(since)
            waits.append(remaining(since, LOST_AFTER, now))
    return seen, [w for w in waits if w > 0]


def staying_pods(pods: Sequence[PodObservation], wanted: str) -> frozenset[str]:
    """Names of the pods that are not about to be replaced: those of the template that is wanted now.

    By age alone, an old pod that was evicted and made again would count as the newest, and everything move to it. Where
    no pod is made from that template yet, or somebody restarts a Deployment as it is, age is all there is.
    """
    candidates = [p for p in pods if p.wanted_as == wanted] or pods
    newest = max(candidates, key=lambda p: (p.created, p.name)).template if candidates else ""
    return frozenset(p.name for p in candidates if p.template == newest)


def hosts_of(
    pods: Sequence[PodObservation],
    seen: Mapping[str, str],
    adapters: Mapping[str, LoRAAdapterResource],
    now: datetime,
    before: PoolPlan | None,
) -> list[Host]:
    """The pods that adapters may be spread over."""
    counted = frozenset[str]()
    if before is not None:
        # a plan that named no pod was every pod's
        counted = frozenset(p.name for p in pods) if before.pods is None else frozenset(before.pods)
    engine_names = {name: engine for name, a in adapters.items() if (engine := _engine_name(a))}
    found = []
    for pod in pods:
        known = seen.get(pod.name)
        since = parsed_time(known)
        # a pod that has served once and does not now is given a little time; one that never has must say that it does
        serves = (known == _READY) if since is None else remaining(since, LOST_AFTER, now) > 0
        serves = serves or (known is None and offers(pod))
        loaded = _loaded(pod, engine_names) if serves else frozenset()
        found.append(Host(pod.name, serves=serves, fresh=pod.name not in counted, loaded=loaded))
    return found


def _engine_name(adapter: LoRAAdapterResource) -> str | None:
    digest = adapter.pinned_digest
    return names.engine_adapter_name(adapter.metadata.name, digest) if digest else None


def _loaded(pod: PodObservation, engine_names: Mapping[str, str]) -> frozenset[str]:
    """The adapters that a pod offers under the names that gateways ask for."""
    if pod.report is None or pod.report.engine != "Ready":
        return frozenset()
    said = pod.report.adapters.items()
    return frozenset(n for n, a in said if a.state == "Loaded" and engine_names.get(n, a.engine_name) == a.engine_name)


def _held(before: PoolPlan | None, pods: list[str]) -> dict[str, list[str]]:
    """The pods of each adapter in the plan until now."""
    return {a.name: pods if a.pods is None else a.pods for a in before.adapters} if before else {}


def _unused_since(
    obs: BaseModelObservation, before: PoolPlan | None, marks: Mapping[str, str], known: Iterable[str]
) -> dict[str, datetime]:
    """Those of the known adapters that are in the plan, not wanted any more and may stay a little: since when.

    The longest unwanted come first.
    """
    unused = {name: parsed_time(marks.get(name)) or obs.now for name in set(holders(before)).intersection(known)}
    ordered = sorted(unused.items(), key=lambda item: (item[1], item[0]))
    return {n: since for n, since in ordered if obs.unreadable or remaining(since, ADAPTER_GRACE, obs.now) > 0}


def _storable(
    pool: Pool,
    unused: Mapping[str, datetime],
    known: Mapping[str, LoRAAdapterResource],
    planned: Iterable[LoRAAdapterResource],
) -> dict[str, datetime]:
    """As many of the unused adapters as the plan and its marks have room for beside what is wanted."""
    left_of_marks = _UNUSED_BYTES
    left_of_plan = PLAN_BYTES - sum(stored_bytes(pool.serving, a) for a in planned) if unused else 0
    kept = {}
    for name, since in unused.items():
        left_of_marks -= len(name) + _MARK_BYTES
        left_of_plan -= stored_bytes(pool.serving, known[name])
        if left_of_marks < 0 or left_of_plan < 0:
            break
        kept[name] = since
    return kept


def _planned(adapter: LoRAAdapterResource, pods: Sequence[str] | None, copies: int | None) -> PlannedAdapter:
    digest = adapter.pinned_digest
    named = None if pods is None else list(pods)
    # all of it was read as what it is: to check that again for thousands takes longer than to place them
    return PlannedAdapter.model_construct(
        name=adapter.metadata.name, source=adapter.spec.source, digest=digest, pods=named, copies=copies
    )
