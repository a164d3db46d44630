"""Filling the cache of chosen nodes before pods start there: a DaemonSet, the plan that it follows, and how far it is.

Rules:
- it begins with the field and not with a reference: before a rollout nothing refers to the base yet;
- its pods serve nothing, so whatever becomes of them, the base is as ready as its pools are;
- nothing in its pods depends on digests or adapters: these change while they run, and reach them by the plan;
- without the field everything goes at once. What was fetched stays in the cache, where eviction judges it;
- while a check finds something, what is there stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import PlannedAdapter, PrewarmPlan, stored_plan
from tuneyard.planning import servingchecks
from tuneyard.planning.children import RBAC, Json, label_value, marked, owner, plan_access
from tuneyard.planning.observations import (
    KEEP,
    PREWARM,
    VERIFY,
    BaseModelObservation,
    ChildObservation,
    PodObservation,
    Problem,
    problem_of,
)
from tuneyard.planning.podparts import (
    BASE,
    BASE_DIGEST,
    BASE_LINK,
    KEPT_MARK,
    RUN,
    base_digest,
    bounded,
    cache_mount,
    cache_volume,
    container,
    fetching,
    literal,
    mount,
    security_context,
    source_text,
    token_mount,
    token_volume,
    value,
)
from tuneyard.planning.remedies import clipped, named
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.settings import Settings
from tuneyard.planning.sizes import slowest, transfer_for_people

_KINDS = ("DaemonSet", "ConfigMap", "RoleBinding", "Role")
"""What is made, in the order in which it goes."""
_GRACE = 30
_PROGRESS_LIMIT = 300


@dataclass(frozen=True)
class PrewarmState:
    """What fills caches for a base, as it should be and as it is."""

    wanted: tuple[Json, ...] = ()
    """Objects, in the order in which they are applied; none without the field, or with a violation."""
    unwanted: tuple[ChildObservation, ...] = ()
    """Objects that go, in that order."""
    violation: Problem | None = None
    daemon_set: ChildObservation | None = None
    pods: tuple[PodObservation, ...] = ()
    """Those that are not leaving."""

    @property
    def prewarmed(self) -> str | None:
        """Nodes that are ready, of those chosen; None where nobody has counted them yet."""
        daemon_set = self.daemon_set
        if daemon_set is None or not daemon_set.observed:
            return None
        return f"{min(daemon_set.ready_replicas, daemon_set.replicas)}/{daemon_set.replicas}"

    @property
    def progress(self) -> str | None:
        """For people, in a few words; None where nothing is wanted or nothing is left to do."""
        if self.violation:
            return clipped(named(self.violation), _PROGRESS_LIMIT)
        if not self.wanted:
            return None
        if self.daemon_set is None or self.prewarmed is None:
            return "starting"
        chosen, ready = self.daemon_set.replicas, self.daemon_set.ready_replicas
        if not chosen:
            return "no node fits serving.cache.prewarm.nodeSelector and the tolerations"
        if ready >= chosen:
            return None
        problem = problem_of(self.pods)
        if problem:
            return clipped(named(problem), _PROGRESS_LIMIT)
        if not self.pods:
            return f"no pod yet: see kubectl describe daemonset {self.daemon_set.name}"
        transfer = slowest(t for p in self.pods for t in _transfers(p))
        return transfer_for_people(transfer) if transfer else f"{ready} of {chosen} nodes are ready"


def _transfers(pod: PodObservation) -> tuple[Any, ...]:
    return (pod.report.base_transfer if pod.report else None, pod.kept.transfer if pod.kept else None)


def prewarm_state(
    obs: BaseModelObservation,
    base: BaseModelResource,
    mine: Iterable[ChildObservation],
    adapters: Sequence[PlannedAdapter],
    digest: str | None,
) -> PrewarmState:
    """What fills caches for a base. `adapters`: the shared pool's plan; `digest`: the base's pinned one."""
    serving, name = resolved_serving(base.spec.serving), names.prewarm(base.metadata.name)
    found = {c.kind: c for c in mine if c.name == name and not c.pool and not c.deployment and c.kind in _KINDS}
    source = base.spec.source
    if serving.cache.prewarm is None or not (source.is_remote or source.build is not None):
        going = (found[kind] for kind in _KINDS if kind in found)
        return PrewarmState(unwanted=tuple(c for c in going if not c.deleted))
    settings = obs.settings
    violation = servingchecks.violation(base, serving, settings) or servingchecks.malformed_prewarm_selector(serving)
    return PrewarmState(
        wanted=() if violation else prewarm_objects(base, serving, adapters, digest, settings),
        violation=violation,
        daemon_set=found.get("DaemonSet"),
        pods=tuple(p for p in obs.pods if p.prewarms and not p.deleted),
    )


def prewarm_objects(
    base: BaseModelResource,
    serving: Serving,
    adapters: Sequence[PlannedAdapter],
    digest: str | None,
    settings: Settings,
) -> tuple[Json, ...]:
    """Everything that fills nodes' caches for a base, in the order in which it is applied."""
    name, namespace = names.prewarm(base.metadata.name), base.metadata.namespace
    plan = PrewarmPlan(
        base_model=base.metadata.name,
        source=base.spec.source,
        digest=digest,
        # every node may get any pod
        adapters=[a.model_copy(update={"pods": None, "copies": None}) for a in adapters if a.source.is_remote],
    )
    stored = stored_plan(plan)
    data = {**stored.pop("data", {}), BASE_DIGEST: digest or ""}
    role, binding = plan_access(name, namespace)
    return (
        _object("v1", "ConfigMap", base, data=data, **stored),
        _object(f"{RBAC}/v1", "Role", base, **role),
        _object(f"{RBAC}/v1", "RoleBinding", base, **binding),
        _object("apps/v1", "DaemonSet", base, spec=_daemon_set(base, serving, settings)),
    )


def _object(api_version: str, kind: str, base: BaseModelResource, **fields: Any) -> Json:
    metadata = {
        "name": names.prewarm(base.metadata.name),
        "namespace": base.metadata.namespace,
        "labels": _labels(base),
        "ownerReferences": [owner(base)],
    }
    return marked({"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields})


def _labels(base: BaseModelResource) -> dict[str, str]:
    """No label of a pool: gateways and pools' objects look for that."""
    return {
        names.LABEL_NAME: "tuneyard-prewarm",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: PREWARM,
        names.LABEL_BASE_MODEL: label_value(base.metadata.name),
    }


def _daemon_set(base: BaseModelResource, serving: Serving, settings: Settings) -> Json:
    labels = _labels(base)
    return {
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": {k: labels[k] for k in (names.LABEL_NAME, names.LABEL_BASE_MODEL)}},
        # they serve nobody: a node that is not well need not hold the others up
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
        "template": {"metadata": {"labels": labels}, "spec": _pod(base, serving, settings)},
    }


def _pod(base: BaseModelResource, serving: Serving, settings: Settings) -> Json:
    spec: Json = {
        "serviceAccountName": names.AGENT_SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE,
        "securityContext": security_context(),
        "initContainers": [_verify(base, serving, settings)],
        "containers": [_keep(base, serving, settings)],
        "volumes": [
            cache_volume(serving.cache),
            {"name": "base", "emptyDir": {}},
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
            token_volume(),
        ],
    }
    if serving.tolerations:
        spec["tolerations"] = [t.to_dict() for t in serving.tolerations]
    if settings.model_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.model_pull_secrets]
    selector = _node_selector(serving)
    if selector:
        spec["nodeSelector"] = dict(selector)
    return spec


def _node_selector(serving: Serving) -> Mapping[str, str]:
    chosen = serving.cache.prewarm.node_selector if serving.cache.prewarm else None
    return serving.node_selector if chosen is None else chosen


def _verify(base: BaseModelResource, serving: Serving, settings: Settings) -> Json:
    """Fetches the base and looks at it, as in a model pod, so that what is wrong with it shows before a rollout."""
    return container(
        VERIFY,
        settings.images.tuneyard,
        settings,
        command=["tuneyard", "agent", "verify"],
        args=[
            *("--base-model", literal(base.metadata.name)),
            *("--path", BASE_LINK),
            "--digest=$(TUNEYARD_BASE_DIGEST)",
            *("--source", source_text(base.spec.source)),
        ],
        env=[base_digest(names.prewarm(base.metadata.name)), *fetching(serving.cache, settings)],
        resources=bounded("100m", "128Mi", settings),
        volumeMounts=[
            cache_mount(base.metadata.namespace, serving.cache),
            mount("base", BASE),
            mount("run", RUN),
            token_mount(),
        ],
    )


def _keep(base: BaseModelResource, serving: Serving, settings: Settings) -> Json:
    """Brings what else the plan names, and keeps it all from being evicted."""
    look = f"import os, sys; sys.exit(not os.path.exists({KEPT_MARK!r}))"
    return container(
        KEEP,
        settings.images.tuneyard,
        settings,
        command=["tuneyard", "agent", "keep"],
        env=[
            *fetching(serving.cache, settings),
            value("TUNEYARD_PREWARM_PLAN", names.prewarm(base.metadata.name)),
        ],
        readinessProbe={
            "exec": {"command": ["python3", "-ISc", look]},
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 1,
        },
        resources=bounded("10m", "96Mi", settings),
        volumeMounts=[
            cache_mount(base.metadata.namespace, serving.cache),
            mount("run", RUN),
            token_mount(),
        ],
    )
