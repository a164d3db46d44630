"""What a gateway knows: the custom resources and the pods' reports, indexed so that a change touches few models.

Rules:
- it is fed by changes (informers) and remembers what vanished for GRACE seconds, with routes.py's meaning of that;
- every feeding method returns the names of the models whose routes may be others now; `routes` computes them anew;
- what cannot be read leaves the last readable form in place;
- it can be written down and read back (`lines`, `restore`): a gateway that starts while the API server is away goes on
  with what the one before it knew. Whatever a list of the API server says later replaces that (`forget_others`). Each
  object's line is made when it changes, so that writing down a large world holds nobody up. No line holds a key.
No input or output here, and no clock: `now` is seconds on any one clock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import PodReport
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.external import Accesses, nothing_asked, secrets_of
from tuneyard.planning.handover import LAST_RESORT_SECONDS
from tuneyard.planning.modelnames import owners
from tuneyard.planning.pools import pool_of
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.routes import (
    GRACE,
    Key,
    ModelRoutes,
    files_of,
    lingering,
    model_routes,
    readable_deployment,
    with_known_digest,
    with_known_rollout,
)

Kind = Literal["deployment", "adapter", "base", "pod"]
_log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = ("deployment", "adapter", "base", "pod")
Json = Mapping[str, Any]

_METADATA = ("name", "namespace", "uid", "generation", "creationTimestamp", "deletionTimestamp")

_Resource = TypeVar("_Resource", ModelDeploymentResource, LoRAAdapterResource, BaseModelResource)
_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Pod:
    """What a gateway knows of a model pod."""

    name: str
    namespace: str
    pool: str
    deleted: bool
    report: PodReport | None
    hands_over: bool = False
    """It is leaving since a short time (handover.py)."""


@dataclass
class _Known(Generic[_Resource]):
    """Objects of one kind, those that are there and those that vanished just now."""

    present: dict[Key, _Resource] = field(default_factory=dict)
    vanished: dict[Key, tuple[_Resource, float]] = field(default_factory=dict)

    def counting(self, keys: Iterable[Key], now: float) -> dict[Key, _Resource]:
        """Those of the keys that count."""
        keys = list(keys)
        return lingering(_only(self.present, keys), _only(self.vanished, keys), now)

    def any(self, key: Key) -> _Resource | None:
        """The object, also when it vanished and was not forgotten yet."""
        gone = self.vanished.get(key)
        return self.present.get(key) or (gone[0] if gone else None)

    def remove(self, key: Key, now: float) -> bool:
        gone = self.present.pop(key, None)
        if gone is not None:
            self.vanished[key] = (gone, now)
        return gone is not None

    def put(self, key: Key, resource: _Resource) -> None:
        self.vanished.pop(key, None)
        self.present[key] = resource

    def expired(self, now: float) -> list[Key]:
        """Forget what vanished long ago; returns their keys."""
        old = [key for key, (_, since) in self.vanished.items() if now - since >= GRACE]
        for key in old:
            del self.vanished[key]
        return old


def _only(objects: Mapping[Key, _Value], keys: Iterable[Key]) -> dict[Key, _Value]:
    return {key: objects[key] for key in keys if key in objects}


def key_of(raw: Json) -> Key:
    """(namespace, name) of an object as JSON."""
    metadata = raw.get("metadata") or {}
    return (metadata.get("namespace", "default"), metadata["name"])


def pod_of(raw: Json) -> Pod:
    """Read a pod's metadata; a report that does not fit counts as none."""
    metadata = raw.get("metadata") or {}
    text = (metadata.get("annotations") or {}).get(names.ANNOTATION_ADAPTERS)
    try:
        report = PodReport.model_validate_json(text) if text else None
    except ValidationError:
        report = None
    namespace, name = key_of(raw)
    pool = (metadata.get("labels") or {}).get(names.LABEL_POOL, "")
    return Pod(name, namespace, pool, bool(metadata.get("deletionTimestamp")), report)


def _takes_requests(pod: Pod | None) -> bool:
    """Whether routes may lead to the pod."""
    if pod is None or (pod.deleted and not pod.hands_over):
        return False
    return pod.report is not None and pod.report.engine == "Ready"


def _changed_adapters(before: Pod | None, after: Pod | None) -> set[str] | None:
    """The adapters that a pod serves otherwise than before; None where more than adapters has changed.

    A pod of a large pool reports after every adapter, and each report holds all of them.
    """
    if before is None or after is None or before.report is None or after.report is None:
        return None
    same = before.report.model_copy(update={"adapters": after.report.adapters})
    if replace(before, report=same) != after:
        return None
    served = [
        {name: (said.state, said.engine_name) for name, said in report.adapters.items()}
        for report in (before.report, after.report)
    ]
    return {name for name, _ in served[0].items() ^ served[1].items()}


class World:
    """Everything that routes are computed from."""

    def __init__(self) -> None:
        self._deployments: _Known[ModelDeploymentResource] = _Known()
        self._adapters: _Known[LoRAAdapterResource] = _Known()
        self._bases: _Known[BaseModelResource] = _Known()
        self._pods: dict[Key, Pod] = {}
        self._pools: dict[Key, dict[str, Pod]] = {}
        """Pods by (namespace, pool), then by name."""
        self._leaving: dict[Key, float] = {}
        """Pods that hand over, and since when."""
        self._borrowed: dict[Key, tuple[LoRAAdapterResource, float]] = {}
        """Adapters that go by the digest of their predecessor: as they really are, and since when."""
        self._users: dict[tuple[str, str, str], set[Key]] = {}
        """Deployments by what they refer to: (adapter | base | pool, namespace, name)."""
        self._secrets: dict[Key, set[Key]] = {}
        """Deployments by the Secrets that their external revisions name."""
        self.accesses: Accesses = nothing_asked
        """What there is for external revisions."""
        self._claims: dict[str, set[Key]] = {}
        """Deployments by model name."""
        self._lines: dict[Kind, dict[Key, str]] = {kind: {} for kind in KINDS}

    # -- changes -------------------------------------------------------------------------------------------------

    def put(self, kind: Kind, raw: Json, now: float) -> set[str]:
        """An object appeared or changed."""
        key = key_of(raw)
        try:
            touched = self._put(kind, key, raw, now)
        except ValueError as error:
            _log.warning("%s %s/%s cannot be read, its last readable form stays: %s", kind, *key, error)
            return set()
        self._lines[kind][key] = _line(kind, raw)
        return touched

    def _put(self, kind: Kind, key: Key, raw: Json, now: float) -> set[str]:
        if kind == "pod":
            return self._put_pod(key, self._handing_over(key, pod_of(raw), now))
        if kind == "deployment":
            return self._put_deployment(key, readable_deployment(raw))
        if kind == "adapter":
            return self._put_adapter(key, LoRAAdapterResource.model_validate(raw), now)
        return self._put_base(key, BaseModelResource.model_validate(raw))

    def remove(self, kind: Kind, key: Key, now: float) -> set[str]:
        """An object is gone."""
        self._lines[kind].pop(key, None)
        if kind == "pod":
            self._leaving.pop(key, None)
            return self._put_pod(key, None)
        known = {"deployment": self._deployments, "adapter": self._adapters, "base": self._bases}[kind]
        known.remove(key, now)  # type: ignore[attr-defined]
        # nothing changes yet: it counts for GRACE seconds more
        return set()

    def forget_others(self, kind: Kind, namespace: str | None, listed: Iterable[Key], now: float) -> set[str]:
        """A list came: what is known of the kind (in the namespace; None: in all) and not listed is gone."""
        known: dict[Kind, Iterable[Key]] = {
            "deployment": self._deployments.present.keys(),
            "adapter": self._adapters.present.keys(),
            "base": self._bases.present.keys(),
            "pod": self._pods.keys(),
        }
        gone = {key for key in known[kind] if namespace in (None, key[0])} - set(listed)
        return set().union(*(self.remove(kind, key, now) for key in sorted(gone)))

    def expire(self, now: float) -> set[str]:
        """Forget what vanished GRACE seconds ago, and give up pods that have been leaving for long."""
        touched: set[str] = set()
        for key in [key for key in self._leaving if self._pods[key].hands_over]:
            touched |= self._put_pod(key, self._handing_over(key, self._pods[key], now))
        for key in self._adapters.expired(now):
            touched |= self._touching("adapter", key)
        for key in self._bases.expired(now):
            touched |= self._touching("base", key)
        for key, (real, since) in list(self._borrowed.items()):
            if now - since >= GRACE:
                del self._borrowed[key]
                if key in self._adapters.present:
                    self._adapters.put(key, real)
                    touched |= self._touching("adapter", key)
        before = {key: gone for key, (gone, _) in self._deployments.vanished.items()}
        for key in self._deployments.expired(now):
            self._unindex(key, before[key])
            touched.add(before[key].model_name)
        return touched

    def next_expiry(self) -> float | None:
        """When `expire` has something to do."""
        times = [
            since for known in (self._deployments, self._adapters, self._bases) for _, since in known.vanished.values()
        ]
        times += [since for _, since in self._borrowed.values()]
        ends = [since + LAST_RESORT_SECONDS for key, since in self._leaving.items() if self._pods[key].hands_over]
        return min([*(t + GRACE for t in times), *ends], default=None)

    def _handing_over(self, key: Key, pod: Pod, now: float) -> Pod:
        """The pod as it counts now if it is leaving."""
        if not pod.deleted:
            self._leaving.pop(key, None)
            return pod
        since = self._leaving.setdefault(key, now)
        return replace(pod, hands_over=now - since < LAST_RESORT_SECONDS)

    def _put_pod(self, key: Key, pod: Pod | None) -> set[str]:
        before = self._pods.pop(key, None)
        if before is not None:
            self._pools.get((before.namespace, before.pool), {}).pop(before.name, None)
        if pod is not None:
            self._pods[key] = pod
            self._pools.setdefault((pod.namespace, pod.pool), {})[pod.name] = pod
        if before == pod or not (_takes_requests(before) or _takes_requests(pod)):
            # a pod that starts tells every few seconds how far it is
            return set()
        changed = _changed_adapters(before, pod)
        touched: set[str] = set()
        for one in (before, pod):
            if one is not None:
                pool = (one.namespace, one.pool)
                touched |= self._touching("pool", pool) if changed is None else self._touching_adapters(pool, changed)
        return touched

    def _put_base(self, key: Key, base: BaseModelResource) -> set[str]:
        before = self._bases.present.get(key)
        self._bases.put(key, base)
        # what an adapter's revision is, has its base in it
        return self._touching("base", key) if before is None or _read(before) != _read(base) else set()

    def _put_adapter(self, key: Key, adapter: LoRAAdapterResource, now: float) -> set[str]:
        before = self._adapters.any(key)
        counted = with_known_digest(adapter, before)
        if counted is adapter:
            self._borrowed.pop(key, None)
        else:
            self._borrowed.setdefault(key, (adapter, now))
        self._adapters.put(key, counted)
        relevant = before is None or _served(before) != _served(counted)
        return self._touching("adapter", key) if relevant else set()

    def _put_deployment(self, key: Key, deployment: ModelDeploymentResource) -> set[str]:
        before = self._deployments.any(key)
        deployment = with_known_rollout(deployment, before)
        touched = {deployment.model_name}
        if before is not None:
            touched.add(before.model_name)
            self._unindex(key, before)
        self._deployments.put(key, deployment)
        self._index(key, deployment)
        return touched

    # -- indexes -------------------------------------------------------------------------------------------------

    @staticmethod
    def _references(key: Key, deployment: ModelDeploymentResource) -> set[tuple[str, str, str]]:
        found = set()
        for revision in deployment.spec.revisions:
            found.add(("base", key[0], revision.base_model))
            found.add(("pool", key[0], pool_of(deployment, revision)))
            if revision.adapter is not None:
                found.add(("adapter", key[0], revision.adapter))
        return found

    def _index(self, key: Key, deployment: ModelDeploymentResource) -> None:
        self._claims.setdefault(deployment.model_name, set()).add(key)
        for reference in self._references(key, deployment):
            self._users.setdefault(reference, set()).add(key)
        for secret in secrets_of(deployment):
            self._secrets.setdefault(secret, set()).add(key)

    def _unindex(self, key: Key, deployment: ModelDeploymentResource) -> None:
        self._claims.get(deployment.model_name, set()).discard(key)
        for reference in self._references(key, deployment):
            self._users.get(reference, set()).discard(key)
        for secret in secrets_of(deployment):
            self._secrets[secret].discard(key)
            if not self._secrets[secret]:
                del self._secrets[secret]

    def _touching(self, what: str, key: Key) -> set[str]:
        return self._models_of(self._users.get((what, *key), ()))

    def _touching_adapters(self, pool: Key, adapters: Iterable[str]) -> set[str]:
        """Models that have one of these adapters in the pool."""
        of_adapters = (self._users.get(("adapter", pool[0], adapter), set()) for adapter in adapters)
        return self._models_of(set[Key]().union(*of_adapters) & self._users.get(("pool", *pool), set()))

    def _models_of(self, users: Iterable[Key]) -> set[str]:
        found = (self._deployments.any(user) for user in users)
        return {deployment.model_name for deployment in found if deployment is not None}

    # -- answers -------------------------------------------------------------------------------------------------

    def routes(self, model: str, now: float) -> ModelRoutes | None:
        """The routes of a model, None where no deployment claims it."""
        counting = self._deployments.counting(self._claims.get(model, ()), now)
        owner = owners(counting.values()).get(model)
        if owner is None:
            return None
        deployment = counting[owner]
        namespace = owner[0]
        revisions = deployment.spec.revisions
        adapters = (self._adapters.any((namespace, r.adapter)) for r in revisions if r.adapter)
        bases = (self._bases.any((namespace, r.base_model)) for r in revisions)
        pods = [
            pod
            for pool in sorted({pool_of(deployment, r) for r in revisions})
            for pod in self._pools.get((namespace, pool), {}).values()
        ]
        return model_routes(deployment, [a for a in adapters if a], [b for b in bases if b], pods, self.accesses)

    def secrets(self) -> Set[Key]:
        """The Secrets, by namespace and name, that external revisions name."""
        return self._secrets.keys()

    def reading(self, secret: Key) -> set[str]:
        """The models that depend on such a Secret."""
        return self._models_of(self._secrets.get(secret, ()))

    def models(self) -> set[str]:
        """Every model name that is claimed."""
        return {model for model, keys in self._claims.items() if keys}

    def namespaces(self) -> set[str]:
        """Namespaces that have deployments, and so pods that matter."""
        return {key[0] for keys in self._claims.values() for key in keys}

    # -- written down --------------------------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """Everything that is present, one JSON text per object."""
        return [text for texts in self._lines.values() for text in texts.values()]

    def restore(self, lines: Iterable[str], now: float) -> set[str]:
        """Take what an earlier process wrote down; ValueError where a line is none of ours."""
        touched: set[str] = set()
        for line in lines:
            told = json.loads(line)
            if told["kind"] not in KINDS:
                raise ValueError(f"a snapshot holds no {told['kind']}")
            touched |= self.put(told["kind"], told["object"], now)
        return touched


def _served(adapter: LoRAAdapterResource) -> tuple[object, ...]:
    """What of an adapter routes are made from."""
    return files_of(adapter), adapter.spec.system_prompt, adapter.status.digest


def _read(base: BaseModelResource) -> tuple[object, ...]:
    """The same of a base."""
    sleeps = resolved_serving(base.spec.serving).scale_to_zero_after
    return base.spec.source, base.spec.digest, base.pinned_digest, sleeps


def _line(kind: Kind, raw: Json) -> str:
    """What of an object is worth keeping, as one line."""
    metadata = raw.get("metadata") or {}
    kept = {f: metadata[f] for f in _METADATA if f in metadata}
    if kind == "pod":
        labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
        kept["labels"] = {names.LABEL_POOL: labels.get(names.LABEL_POOL, "")}
        report = annotations.get(names.ANNOTATION_ADAPTERS)
        kept["annotations"] = {names.ANNOTATION_ADAPTERS: report} if report else {}
        return json.dumps({"kind": kind, "object": {"metadata": kept}})
    fault = (metadata.get("annotations") or {}).get(names.ANNOTATION_DRILL)
    if kind == "deployment" and fault is not None:
        kept["annotations"] = {names.ANNOTATION_DRILL: fault}  # a rehearsal goes on without the API server
    content = {f: raw[f] for f in ("spec", "status") if f in raw}
    return json.dumps({"kind": kind, "object": {"metadata": kept, **content}})
