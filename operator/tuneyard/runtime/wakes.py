"""Which keys a change of an object concerns.

- a ModelDeployment: itself; its BaseModels and adapters, before and after; adapters that found no place on these bases;
  others that claim its model name; when its stable revision takes over, that one's adapter or base;
- a LoRAAdapter: itself; its BaseModel; ModelDeployments that name it; adapters whose lineage names it as their parent;
- a BaseModel: itself; its adapters and ModelDeployments; when one comes or goes also the namespace's other BaseModels;
- a model pod: its BaseModel; ModelDeployments that use its pool (where only the report on some adapters differs: only
  those that name them); adapters that it says something else of, and all of the base when it changes which problem the
  pool has: a pod comes up in ten steps, and a thousand adapters need not look at each;
- the record that outlives a ModelDeployment: that one, also when it is gone;
- a pool's child: its BaseModel (one that pools share: all of the namespace); a pool's plan also adapters of that base
  that came into it, went, or wait for a place.

Rules:
- waking is cheap and means nothing but "look again": too much costs time, too little loses a change;
- others are woken only by what they read of an object (signatures.py), or a thousand deployments that share a base
  would wake each other with every status that is written;
- the index is brought up to date before anybody is woken, so whoever looks finds the change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tuneyard.api import names
from tuneyard.api.base import parsed
from tuneyard.api.documents import PoolPlan
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutRecord
from tuneyard.planning import children
from tuneyard.planning.observations import RECORD_KEY, PodObservation, pod_observation
from tuneyard.planning.pools import grown_copies, holders, plan_of, pool_of
from tuneyard.runtime.keys import BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.signatures import (
    changed_adapters,
    identity,
    orders,
    pool_sizes,
    reasons,
    references,
    said_of_adapters,
    signature,
    standing,
)
from tuneyard.runtime.world import CONFIG_MAP, World, read_or_none
from tuneyard.systems.kube.client import Object
from tuneyard.systems.kube.informers import OnChange
from tuneyard.systems.kube.watching import Change

Wake = Callable[[Iterable[Key]], None]
WakeItself = Callable[[Key], None]
Group = Key | tuple[str, ...]

_UNWATCHED = frozenset({names.GATE, names.GATE_REPORTS, names.ROLLOUT_EVIDENCE})
"""Components of ConfigMaps that wake nobody: only the operator's own passes read them, and look when they need them."""


def base_label(namespace: str, label: str) -> Group:
    """Group of the BaseModels (one, in practice) whose pods and children have this value of tuneyard.dev/base-model."""
    return ("label", namespace, label)


def unreadable(namespace: str) -> Group:
    """Group of a namespace's ModelDeployments that cannot be read."""
    return ("unreadable", namespace)


def all_bases(namespace: str) -> Group:
    """Group of a namespace's BaseModels."""
    return ("namespace", namespace)


def claim(model_name: str) -> Group:
    """Group of the ModelDeployments that claim a model name."""
    return ("model", model_name)


def pool_users(namespace: str, pool: str) -> Group:
    """Group of the ModelDeployments with a revision that a pool serves."""
    return ("pool", namespace, pool)


def trained_from(namespace: str, adapter: str) -> Group:
    """Group of the LoRAAdapters whose lineage names this one as their parent."""
    return ("parent", namespace, adapter)


class Wakes:
    """Listens to all informers of a world, keeps its indexes, and tells `wake` who should look again."""

    def __init__(self, world: World, wake_itself: WakeItself, wake: Wake) -> None:
        """`wake_itself`: for what was changed; `wake`: for those whom a change concerns."""
        self._world = world
        self._wake_itself = wake_itself
        self._wake = wake
        self._signatures: dict[Key, object] = {}
        self._promoted: dict[Key, object] = {}
        self._making_room: dict[Key, frozenset[str]] = {}
        self._placing: dict[Key, object] = {}
        self._holders: dict[tuple[str, str], _Holders] = {}
        self._pods: dict[tuple[str, str], PodObservation] = {}
        self._writing: dict[Key, tuple[object, object]] = {}
        for followed, on_change in (
            (world.base_models, self.on_base_model),
            (world.adapters, self.on_adapter),
            (world.deployments, self.on_deployment),
            (world.pods, self.on_pod),
        ):
            followed.informer.listen(on_change)
        for kind, child in world.children.items():
            child.informer.listen(self._child_listener(*kind))

    def writing(self, observed: Object, status: Mapping[str, object]) -> None:
        """The operator is about to write this status onto what it observed: the echo of that is nothing new.

        To be called before the write: the echo may come sooner than the answer.
        """
        self._writing[_key(observed["kind"], observed)] = (orders(observed), status)

    def on_deployment(self, change: Change, item: Object) -> None:
        """A ModelDeployment came, changed or went."""
        world, key = self._world, _key(MODEL_DEPLOYMENT, item)
        found = world.deployments.get(key.namespace, key.name)
        groups: list[Group] = []
        if change != "DELETED" and found is None:
            groups.append(unreadable(key.namespace))
        elif change != "DELETED" and found is not None:
            groups.append(claim(found.model_name))
            for revision in found.spec.revisions:
                if revision.external is not None:
                    continue
                groups.append(Key(BASE_MODEL, key.namespace, revision.base_model))
                groups.append(pool_users(key.namespace, pool_of(found, revision)))
                if revision.adapter:
                    groups.append(Key(LORA_ADAPTER, key.namespace, revision.adapter))
        concerned = self._put(key, groups)
        named = [g for g in concerned if isinstance(g, Key)]
        bases = [g for g in named if g.kind == BASE_MODEL]
        differs = self._differs(key, change, references(item))
        if differs:
            world.places.changed(bases)
        self._itself(key, item)
        self._wake(self._in_scope(self._taken_over(key, None if change == "DELETED" else found)))
        if not differs:
            return
        claims = [g for g in concerned if g[0] == "model"]
        if unreadable(key.namespace) in concerned:
            # nobody knows what it refers to: every base waits for it before it takes anything away
            named += self._of(BASE_MODEL, all_bases(key.namespace))
        self._others(key, named, self._of(MODEL_DEPLOYMENT, *claims), self._without_place(bases))

    def on_adapter(self, change: Change, item: Object) -> None:
        """A LoRAAdapter came, changed or went."""
        key = _key(LORA_ADAPTER, item)
        found = self._world.adapters.get(key.namespace, key.name)
        gone = change == "DELETED" or found is None
        groups: list[Group] = []
        if not gone and found is not None:
            groups.append(Key(BASE_MODEL, key.namespace, found.spec.base_model))
            groups += [trained_from(key.namespace, found.parent_name)] if found.parent_name else []
        bases = [g for g in self._put(key, groups) if isinstance(g, Key)]
        self._places_change(key, change, item, bases)
        self._itself(key, item)
        if self._differs(key, change, signature(item)):
            trained = self._of(LORA_ADAPTER, trained_from(key.namespace, key.name))
            self._others(key, bases, self._of(MODEL_DEPLOYMENT, key), trained)

    def on_base_model(self, change: Change, item: Object) -> None:
        """A BaseModel came, changed or went."""
        key = _key(BASE_MODEL, item)
        own = [base_label(key.namespace, children.label_value(key.name)), all_bases(key.namespace)]
        self._put(key, [] if change == "DELETED" else own)
        self._places_change(key, change, item, [key])
        self._itself(key, item)
        self._others(key, self._asked_to_go(key, change, item))
        if self._differs(key, change, signature(item)):
            self._others(key, self._of(LORA_ADAPTER, key), self._of(MODEL_DEPLOYMENT, key))
        if change != "MODIFIED" or item["metadata"].get("deletionTimestamp"):
            self._others(key, self._of(BASE_MODEL, all_bases(key.namespace)))

    def on_pod(self, change: Change, item: Object) -> None:
        """A model pod came, changed or went."""
        name = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
        before = self._pods.pop(name, None)
        now = None if change == "DELETED" else read_or_none(pod_observation, item)
        if now is not None:
            self._pods[name] = now
        base = (now or before or pod_observation(item)).base_model
        self._world.pod_index.put(name, [(name[0], base)] if now is not None else [])
        if now != before:
            self._wake(self._concerned_by_pod(name[0], before, now))

    def on_child(self, api_version: str, kind: str, change: Change, item: Object) -> None:
        """An object of the operator's own came, changed or went."""
        if (api_version, kind) == CONFIG_MAP and is_record(item):
            self._wake(self._in_scope(_recorded(item)))
            return
        if _component(item) in _UNWATCHED:
            return
        metadata = item["metadata"]
        namespace = metadata.get("namespace", "")
        label = (metadata.get("labels") or {}).get(names.LABEL_BASE_MODEL, "")
        member = (api_version, kind, namespace, metadata["name"])
        self._world.child_index.put(member, [] if change == "DELETED" else [(namespace, label)])
        bases = self._of(BASE_MODEL, base_label(namespace, label) if label else all_bases(namespace))
        adapters = self._moved(change, member, bases) if (api_version, kind) == CONFIG_MAP else []
        self._wake(self._in_scope([*bases, *adapters]))

    def everything(self) -> list[Key]:
        """The keys of all custom resources, BaseModels first: others wait for what they do.

        Then those of ModelDeployments that are gone and have left a record.
        """
        keys = [key for kind in (BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT) for key in self._all(kind)]
        records = (i for i in self._world.children[CONFIG_MAP].informer.items() if is_record(i))
        left = self._in_scope(key for item in records for key in _recorded(item))
        return list(dict.fromkeys([*keys, *left]))

    def deployments(self) -> list[Key]:
        """The keys of all ModelDeployments."""
        return self._all(MODEL_DEPLOYMENT)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _put(self, key: Key, groups: Iterable[Group]) -> set[Group]:
        return {group for _, group in self._world.index.put(key, [(key.kind, group) for group in groups])}

    def _of(self, kind: str, *groups: Group) -> tuple[Key, ...]:
        """The members of this kind of any of these groups."""
        return self._world.index.of(*((kind, group) for group in groups))

    def _itself(self, key: Key, item: Object) -> None:
        echo = self._writing.get(key) == (orders(item), item.get("status"))
        if not echo and self._world.in_scope(key.namespace):
            self._wake_itself(key)

    def _others(self, key: Key, *groups: Iterable[Group]) -> None:
        keys = dict.fromkeys(k for group in groups for k in group if isinstance(k, Key))
        keys.pop(key, None)
        self._wake(self._in_scope(keys))

    def _all(self, kind: str) -> list[Key]:
        return self._in_scope(_key(kind, item) for item in self._world.parsed(kind).informer.items())

    def _in_scope(self, keys: Iterable[Key]) -> list[Key]:
        return [key for key in keys if self._world.in_scope(key.namespace)]

    def _differs(self, key: Key, change: Change, now: object) -> bool:
        """Whether what others read of the object has changed."""
        if change == "DELETED":
            self._signatures.pop(key, None)
            self._writing.pop(key, None)
            return True
        before, self._signatures[key] = self._signatures.get(key), now
        return before != now

    def _asked_to_go(self, key: Key, change: Change, item: Object) -> list[Key]:
        """The deployments that are to make room from now on; who is not any more has nothing to look at."""
        pools = (item.get("status") or {}).get("pools") or ()
        before, now = self._making_room.pop(key, frozenset()), frozenset[str]()
        if change != "DELETED":
            now = frozenset(str(name) for pool in pools for name in pool.get("makesRoom") or ())
        if now:
            self._making_room[key] = now
        return [Key(MODEL_DEPLOYMENT, key.namespace, name) for name in sorted(now - before)]

    def _taken_over(self, key: Key, found: ModelDeploymentResource | None) -> list[Key]:
        """What the stable revision serves, adapter or base, when that has got all traffic: it records it."""
        before = self._promoted.pop(key, None)
        rollout = found.status.rollout if found else None
        if found is None or rollout is None or not rollout.stable_since:
            return []
        now = self._promoted[key] = (rollout.stable, rollout.stable_since)
        stable = (r for r in found.spec.revisions if r.name == rollout.stable and not r.external)
        served = ((LORA_ADAPTER, r.adapter) if r.adapter else (BASE_MODEL, r.base_model) for r in stable)
        return [] if now == before else [Key(kind, key.namespace, name) for kind, name in served]

    def _places_change(self, key: Key, change: Change, item: Object, bases: Iterable[Key]) -> None:
        """Forget who has a place where what decides it has changed. Of a status, which is written all the time,
        that is the number of a pool's pods alone.
        """
        before = self._placing.pop(key, None)
        if change != "DELETED":
            self._placing[key] = (identity(item), pool_sizes(item))
        if before != self._placing.get(key):
            self._world.places.changed(bases)

    def _moved(self, change: Change, plan: tuple[str, str, str, str], bases: Iterable[Key]) -> list[Key]:
        """The adapters that came into a pool's plan or went, and all that want a place beside them; those that should
        have more or fewer copies than the others.

        All of the base, when each should have more or fewer copies.
        """
        name = plan[2:]
        before = self._holders.pop(name, _Holders())
        if change != "DELETED":
            self._holders[name] = _holders_in(plan_of(self._world.children[CONFIG_MAP].get(*name)))
        now = self._holders.get(name, _Holders())
        if now == before:
            return []
        self._world.places.changed(bases)
        adapters = self._of(LORA_ADAPTER, *bases)
        if now.copies != before.copies:
            return list(adapters)
        moved = (now.names ^ before.names) | {name for name, _ in now.grown ^ before.grown}
        if now.names == before.names:
            return [k for k in adapters if k.name in moved]
        return [k for k in adapters if k.name in moved or (k.name not in now.names and self._of(MODEL_DEPLOYMENT, k))]

    def _without_place(self, bases: Iterable[Key]) -> list[Key]:
        """Adapters of these bases that a pool had no place for: one may have become free."""
        adapters = self._of(LORA_ADAPTER, *bases)
        return [k for k in adapters if Reason.POOL_FULL.value in reasons(self._world.raw(k) or {})]

    def _concerned_by_pod(self, namespace: str, before: PodObservation | None, now: PodObservation | None) -> list[Key]:
        pods = [p for p in (before, now) if p is not None]
        bases = self._of(BASE_MODEL, *(base_label(namespace, p.base_model) for p in pods))
        users = set(self._of(MODEL_DEPLOYMENT, *(pool_users(namespace, p.pool) for p in pods)))
        differing = changed_adapters(before, now)
        if differing is not None:
            users.intersection_update(self._of(MODEL_DEPLOYMENT, *(Key(LORA_ADAPTER, namespace, n) for n in differing)))
        return self._in_scope([*bases, *self._adapters_concerned(namespace, before, now, bases), *users])

    def _adapters_concerned(
        self, namespace: str, before: PodObservation | None, now: PodObservation | None, bases: Iterable[Key]
    ) -> Iterable[Key]:
        """The adapters that read another thing of the pod now; of one that leaves they read nothing."""
        pods = [p for p in (before, now) if p is not None]
        if standing(before) != standing(now):
            neighbours = self._world.pods.all(self._world.pod_index.of(*((namespace, p.base_model) for p in pods)))
            if any(p.problem for p in (*pods, *neighbours)):
                return self._of(LORA_ADAPTER, *bases)
        old, new = said_of_adapters(before), said_of_adapters(now)
        return [Key(LORA_ADAPTER, namespace, n) for n in old.keys() | new.keys() if old.get(n) != new.get(n)]

    def _child_listener(self, api_version: str, kind: str) -> OnChange:
        return lambda change, item: self.on_child(api_version, kind, change, item)


@dataclass(frozen=True)
class _Holders:
    """Who has a place in a pool, and on how many pods."""

    names: frozenset[str] = frozenset()
    copies: int | None = None
    grown: frozenset[tuple[str, int]] = frozenset()


def _holders_in(plan: PoolPlan | None) -> _Holders:
    if plan is None:
        return _Holders()
    return _Holders(frozenset(holders(plan)), plan.copies, frozenset(grown_copies(plan).items()))


def _key(kind: str, item: Object) -> Key:
    return Key(kind, item["metadata"].get("namespace", ""), item["metadata"]["name"])


def is_record(item: Object) -> bool:
    """Whether a ConfigMap is what outlives a ModelDeployment."""
    return _component(item) == names.ROLLOUT_RECORD


def _component(item: Object) -> str | None:
    found: str | None = (item["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT)
    return found


def _recorded(item: Object) -> list[Key]:
    """The ModelDeployment of such a ConfigMap; of one that cannot be read nobody knows."""
    record = parsed(RolloutRecord, (item.get("data") or {}).get(RECORD_KEY))
    return [Key(MODEL_DEPLOYMENT, item["metadata"].get("namespace", ""), record.deployment)] if record else []
