"""The objects beside a pool's pods, and the marks that all of them carry.

Rules:
- names follow from the pool's name alone, so that a crash never leaves an orphan and a pool is adopted by name;
- every object carries a hash of what was wanted; one that is there with the same hash, and of which nobody has changed
  a field since, is not written again;
- what belongs to a pool is owned by its BaseModel. What a namespace's pools share (the agents' account, who may read
  and annotate pods) is owned by all BaseModels of the namespace: garbage collection takes it with the last of them;
- an object without the Deployment is useless but harmless, so the Deployment is applied last and deleted first; a
  LeaderWorkerSet stands in its place where a replica spans nodes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import PoolPlan, stored_plan
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.grouprolling import next_rolling
from tuneyard.planning.observations import ChildObservation, EngineKeys, PodObservation
from tuneyard.planning.ownership import owns
from tuneyard.planning.plan import Redacted
from tuneyard.planning.podgroups import (
    LABEL_SET,
    LEADER_WORKER_SET,
    group_policy,
    group_spec,
    group_templates,
    set_annotations,
)
from tuneyard.planning.podparts import BASE_DIGEST, KEY
from tuneyard.planning.podspec import pod_labels, pod_template
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings

ANNOTATION_UNUSED_ADAPTERS = f"{names.GROUP}/unused-adapters"
"""On a plan ConfigMap: JSON object, adapter name -> since when nothing refers to it, RFC 3339."""
ANNOTATION_VANISHED_ADAPTERS = f"{names.GROUP}/vanished-adapters"
"""On a plan ConfigMap: JSON object, adapter name -> since when there is no such object though it is named, RFC 3339."""
ANNOTATION_PODS_SEEN = f"{names.GROUP}/pods-seen"
"""On a plan ConfigMap: JSON object, pod name -> "Ready", or since when it is not any more, RFC 3339."""
ANNOTATION_GROWN = f"{names.GROUP}/grown-adapters"
"""On a plan ConfigMap: JSON object, adapter name -> its copies, and since when it deserves fewer, RFC 3339."""
SCRAPE_LABEL = f"{names.GROUP}/scrape"
"""Label (value "true") of namespaces whose pods may read engines' metrics through the front."""
RBAC = "rbac.authorization.k8s.io"

KINDS = (
    ("v1", "ServiceAccount"),
    (f"{RBAC}/v1", "Role"),
    (f"{RBAC}/v1", "RoleBinding"),
    ("v1", "ConfigMap"),
    ("v1", "Secret"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("v1", "Service"),
    ("policy/v1", "PodDisruptionBudget"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "DaemonSet"),
)
"""(apiVersion, kind) of everything that the operator makes, all labelled app.kubernetes.io/managed-by=tuneyard.

LeaderWorkerSets come in addition where the chart enables them: not every cluster knows the kind."""
DEPLOYMENT = ("apps/v1", "Deployment")
WORKLOADS = (DEPLOYMENT, LEADER_WORKER_SET)
"""What makes a pool's pods: one or the other, and both while a pool changes from one to the other."""

Json = dict[str, Any]


def content_hash(obj: Json) -> str:
    """Hash of a wanted object, its own mark left out; secrets count by their value."""
    return names.short_hash(json.dumps(obj, sort_keys=True), length=16)


def marked(obj: Json) -> Json:
    """The object with the hash of itself."""
    metadata = obj["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_CONTENT: content_hash(obj)}
    return {**obj, "metadata": {**metadata, "annotations": annotations}}


def as_applied(child: ChildObservation, wanted: Json) -> bool:
    """Whether the object that is there is the wanted one, as it was applied."""
    same = child.content_hash == wanted["metadata"]["annotations"][names.ANNOTATION_CONTENT]
    return same and owns(child.owned, wanted)


def label_value(name: str) -> str:
    """An object's name as a label value: names may have 253 characters, label values 63."""
    return names.bounded(name)


def service_name(pool: str) -> str:
    """Name of the pool's headless Service: a DNS label, while a base's name may have dots or begin with a digit."""
    name = names.pool_deployment(pool)
    if re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return name
    return names.bounded(f"pool-{name.replace('.', '-')}", 54) + f"-{names.short_hash(pool)}"


def owner(resource: BaseModelResource | ModelDeploymentResource) -> Json:
    """The reference that lets garbage collection take a child with what it belongs to."""
    kind = "BaseModel" if isinstance(resource, BaseModelResource) else "ModelDeployment"
    meta = resource.metadata
    return {"apiVersion": names.API_VERSION, "kind": kind, "name": meta.name, "uid": meta.uid}


def _labels(pool: Pool) -> dict[str, str]:
    own = {names.LABEL_DEPLOYMENT: label_value(pool.deployment)} if pool.deployment else {}
    return {**pod_labels(pool), **own}


def _object(api_version: str, kind: str, name: str, pool: Pool, base: BaseModelResource, **fields: Any) -> Json:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": pool.namespace,
            "labels": _labels(pool),
            "ownerReferences": [owner(base)],
        },
        **fields,
    }


def kinds(settings: Settings) -> tuple[tuple[str, str], ...]:
    """KINDS, and LeaderWorkerSets where they are enabled."""
    return (*KINDS, LEADER_WORKER_SET) if settings.leader_worker_sets else KINDS


def is_workload(kind: str) -> bool:
    """Whether objects of this kind make a pool's pods."""
    return any(kind == known for _, known in WORKLOADS)


def template_mark(workload: Json) -> str:
    """What the pods of a wanted workload say that they were made from."""
    spec = workload["spec"]
    template = spec["template"] if "template" in spec else spec["leaderWorkerTemplate"]["leaderTemplate"]
    return str(template["metadata"]["annotations"][names.ANNOTATION_TEMPLATE])


def template_hash(pool: Pool, base: BaseModelResource, settings: Settings) -> str:
    """What pods of the pool's present template say that they were made from."""
    return template_mark(pool_workload(pool, base, settings))


def _with_mark(template: Json, mark: str) -> Json:
    metadata = template["metadata"]
    annotations = {**metadata.get("annotations", {}), names.ANNOTATION_TEMPLATE: mark}
    return {**template, "metadata": {**metadata, "annotations": annotations}}


def pool_workload(
    pool: Pool,
    base: BaseModelResource,
    settings: Settings,
    pods: Iterable[PodObservation] = (),
    *,
    with_replicas: bool = True,
) -> Json:
    """What makes the pool's pods now; its serving block passed servingchecks.violation.

    `pods`: the pool's that are not leaving, by which groups of pods are replaced step by step. `with_replicas`: whether
    the number of a Deployment's is ours to set.
    """
    if pool.serving.nodes_per_replica == 1:
        return pool_deployment(pool, base, settings, with_replicas=with_replicas)
    templates = group_templates(pool, base, settings)
    mark = content_hash({"leader": templates[0], "workers": templates[1]})
    leader, workers = (_with_mark(template, mark) for template in templates)
    spec = group_spec(pool, leader, workers, next_rolling(pool, mark, pods))
    obj = _object(*LEADER_WORKER_SET, names.pool_groups(pool.name), pool, base, spec=spec)
    obj["metadata"]["annotations"] = set_annotations(pool)
    return marked(obj)


def pool_deployment(pool: Pool, base: BaseModelResource, settings: Settings, *, with_replicas: bool = True) -> Json:
    """The pool's Deployment; its serving block passed servingchecks.violation.

    Without replicas they are somebody else's to set.
    """
    serving = pool.serving
    surge = serving.update == "Surge"
    template = pod_template(pool, base, settings)
    template = _with_mark(template, content_hash(template))
    spec = {
        **({"replicas": pool.pods} if with_replicas else {}),
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": serving.startup_timeout + 600,
        "strategy": {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": 1 if surge else 0, "maxUnavailable": 0 if surge else 1},
        },
        "selector": {"matchLabels": {names.LABEL_NAME: "tuneyard-pool", names.LABEL_POOL: pool.name}},
        "template": template,
    }
    return marked(_object("apps/v1", "Deployment", names.pool_deployment(pool.name), pool, base, spec=spec))


def pool_plan(
    pool: Pool, base: BaseModelResource, plan: PoolPlan, marks: Mapping[str, Mapping[str, str]], digest: str | None
) -> Json:
    """The plan that the pool's agents watch, and the digest that starting pods check the base against.

    `marks`: what is to be remembered with it, by annotation; empty ones are left out.
    """
    stored = stored_plan(plan)
    data = {**stored.pop("data", {}), BASE_DIGEST: digest or ""}
    obj = _object("v1", "ConfigMap", names.pool_plan(pool.name), pool, base, data=data, **stored)
    annotations = {name: json.dumps(mark, sort_keys=True) for name, mark in marks.items() if mark}
    if annotations:
        obj["metadata"]["annotations"] = annotations
    return marked(obj)


def marks_of(config_map: ChildObservation | None, annotation: str) -> dict[str, str]:
    """What was remembered with a plan; what somebody has spoilt counts as nothing."""
    try:
        marks = json.loads(config_map.annotations.get(annotation, "{}")) if config_map else {}
    except ValueError:
        marks = {}
    return {str(name): str(text) for name, text in marks.items()} if isinstance(marks, dict) else {}


def pool_companions(
    pool: Pool, base: BaseModelResource, keys: EngineKeys, settings: Settings, now: datetime
) -> tuple[Json, ...]:
    """What a pool has beside its Deployment and its plan, in the order in which it is applied."""
    name = names.pool_deployment(pool.name)
    plan = names.pool_plan(pool.name)
    role, binding = plan_access(plan, pool.namespace)
    selector = {"matchLabels": {names.LABEL_POOL: pool.name}}
    groups = names.pool_groups(pool.name) if pool.serving.nodes_per_replica > 1 else None
    between = (
        marked(_object("networking.k8s.io/v1", "NetworkPolicy", groups, pool, base, spec=group_policy(pool)))
        if groups
        else None
    )
    # of a group any pod is as good as all: what a drain may take is counted over leaders and workers
    counted = {"matchLabels": {LABEL_SET: groups}} if groups else selector
    return (
        marked(_key_secret(pool, base, keys, now)),
        marked(_object(f"{RBAC}/v1", "Role", plan, pool, base, **role)),
        marked(_object(f"{RBAC}/v1", "RoleBinding", plan, pool, base, **binding)),
        marked(_network_policy(pool, base, settings)),
        *((between,) if between else ()),
        marked(
            _object(
                "v1",
                "Service",
                service_name(pool.name),
                pool,
                base,
                spec={
                    "clusterIP": "None",
                    "selector": selector["matchLabels"],
                    "ports": [{"name": "front", "port": names.FRONT_PORT, "protocol": "TCP"}],
                },
            )
        ),
        marked(
            _object(
                "policy/v1",
                "PodDisruptionBudget",
                name,
                pool,
                base,
                # A pod that is not healthy serves nobody: a drain need not wait for it.
                spec={"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": counted},
            )
        ),
    )


def _key_secret(pool: Pool, base: BaseModelResource, keys: EngineKeys, now: datetime) -> Json:
    """The certificate is there whether pods use it or not: they find it, and keep it, while the setting changes."""
    certificate = keys.certificate(pool.namespace, pool.name, now)
    contents = {
        KEY: keys.of(pool.namespace, pool.name).encode(),
        "tls.crt": certificate.certificate,
        "tls.key": certificate.key,
    }
    data = {name: Redacted(base64.b64encode(content).decode()) for name, content in contents.items()}
    return _object("v1", "Secret", names.pool_key_secret(pool.name), pool, base, type="Opaque", data=data)


def plan_access(name: str, namespace: str) -> tuple[Json, Json]:
    """The fields of a Role and its RoleBinding by which agents read the plan of this name; both have its name too."""
    rule = {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name], "verbs": ["get", "list", "watch"]}
    agent = {"kind": "ServiceAccount", "name": names.AGENT_SERVICE_ACCOUNT, "namespace": namespace}
    return {"rules": [rule]}, {"roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name}, "subjects": [agent]}


def _network_policy(pool: Pool, base: BaseModelResource, settings: Settings) -> Json:
    """Gateways reach the front, and who scrapes metrics. Probes come from the pod's node, which no policy cuts off."""
    allowed = [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.tuneyard_namespace}}},
        {"namespaceSelector": {"matchLabels": {SCRAPE_LABEL: "true"}}},
    ]
    spec = {
        "podSelector": {"matchLabels": {names.LABEL_POOL: pool.name}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": allowed, "ports": [{"port": names.FRONT_PORT, "protocol": "TCP"}]}],
    }
    return _object("networking.k8s.io/v1", "NetworkPolicy", names.pool_deployment(pool.name), pool, base, spec=spec)


def namespace_access(
    namespace: str, bases: Iterable[BaseModelResource], credentials: Iterable[str], settings: Settings
) -> tuple[Json, ...]:
    """What all pools of a namespace share: the agents' account and rights, and the gateways' right to see pods.

    `credentials`: names of the Secrets that sources of the namespace name; agents may read these.
    """
    owners = [owner(b) for b in sorted(bases, key=lambda b: b.metadata.uid)]
    agent = {"kind": "ServiceAccount", "name": names.AGENT_SERVICE_ACCOUNT, "namespace": namespace}
    gateway = {"kind": "ServiceAccount", "name": names.GATEWAY_POD_READER, "namespace": settings.tuneyard_namespace}

    def shared(api_version: str, kind: str, name: str, **fields: Any) -> Json:
        labels = {
            names.LABEL_NAME: "tuneyard-access",
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_COMPONENT: "access",
        }
        given = settings.agent_service_account_annotations if kind == "ServiceAccount" else {}
        metadata: Json = {"name": name, "namespace": namespace, "labels": labels, "ownerReferences": owners}
        if given:
            metadata["annotations"] = dict(given)
        return marked({"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields})

    named = sorted(credentials)
    secrets = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": named, "verbs": ["get"]}

    def may(name: str, verbs: list[str], subject: Json, *further: Json) -> tuple[Json, Json]:
        rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": verbs}, *further]
        role_ref = {"apiGroup": RBAC, "kind": "Role", "name": name}
        return (
            shared(f"{RBAC}/v1", "Role", name, rules=rules),
            shared(f"{RBAC}/v1", "RoleBinding", name, roleRef=role_ref, subjects=[subject]),
        )

    return (
        # The token is projected into the agent alone, never mounted by default.
        shared("v1", "ServiceAccount", names.AGENT_SERVICE_ACCOUNT, automountServiceAccountToken=False),
        *may(names.AGENT_SERVICE_ACCOUNT, ["get", "patch"], agent, *([secrets] if named else [])),
        *may(names.GATEWAY_POD_READER, ["get", "list", "watch"], gateway),
    )
