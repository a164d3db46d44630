"""What of an object decides whether a change of it concerns anybody, as values that can be compared (wakes.py).

Rule: who reads more of another object than stands here is not woken when it changes.
"""

from __future__ import annotations

import json

from tuneyard.api import names
from tuneyard.api.documents import PodReport
from tuneyard.planning.observations import PodObservation
from tuneyard.systems.kube.client import Object


def identity(item: Object) -> tuple[object, ...]:
    """Which object it is, with which spec, and whether it is going."""
    metadata = item["metadata"]
    return metadata.get("uid"), metadata.get("generation"), bool(metadata.get("deletionTimestamp"))


def orders(item: Object) -> tuple[object, ...]:
    """What somebody asks of the object: its spec, and the command that stands in its annotations."""
    annotations = item["metadata"].get("annotations") or {}
    return *identity(item), annotations.get(names.ANNOTATION_COMMAND)


def references(item: Object) -> object:
    """What others read of a ModelDeployment: which pools and adapters it uses under which name, not its weights.

    Of its status only whether its adapters are wanted, and whether requests wait for them; with keepWarm also which,
    and with more than one pool how much each revision gets and is about to get: pools may be scaled for that.
    """
    spec, status, metadata = item.get("spec") or {}, item.get("status") or {}, item["metadata"]
    used = {part: spec.get(part) for part in ("modelName", "revisions", "serving")}
    sleep = bool(status.get("idleSince")), bool(status.get("wakingSince"))
    used |= _keeps_warm(spec, status) | _shares(spec, status)
    return metadata.get("uid"), bool(metadata.get("deletionTimestamp")), sleep, json.dumps(used, sort_keys=True)


def _keeps_warm(spec: Object, status: Object) -> Object:
    """What decides which revisions are loaded, where that is not all of them (planning/keepwarm.py)."""
    rollout = status.get("rollout") or {}
    if (spec.get("rollout") or {}).get("keepWarm") is None:
        return {}
    weighted = sorted(str(t.get("revision")) for t in spec.get("traffic") or () if t.get("weight"))
    history = [line.get("revision") for line in rollout.get("history") or () if line.get("outcome") == "Stable"]
    mirrored = (spec.get("mirror") or {}).get("revision")
    keep = spec["rollout"]["keepWarm"], spec["rollout"].get("mode"), mirrored
    return {"warm": [*keep, rollout.get("stable"), rollout.get("candidate"), weighted, history]}


def _shares(spec: Object, status: Object) -> Object:
    """What decides how much its pools are about to be asked, where a rollout moves it between them."""
    revisions = [r for r in spec.get("revisions") or () if isinstance(r, dict)]
    rollout = status.get("rollout") or {}
    own = any(r.get("serving") for r in revisions) or len({r.get("baseModel") for r in revisions}) > 1
    if not own or (spec.get("rollout") or {}).get("mode") != "Progressive":
        return {}
    weights = [(t.get("revision"), t.get("weight")) for t in status.get("traffic") or ()]
    told = [rollout.get(part) for part in ("phase", "stable", "candidate", "step", "allowed")]
    return {"shares": [weights, spec.get("traffic"), spec["rollout"].get("steps"), told]}


def signature(item: Object) -> object:
    """What others read of a BaseModel or LoRAAdapter: not, for example, who uses it."""
    status = item.get("status") or {}
    pools = tuple((str(p.get("name")), str(p.get("progress"))) for p in status.get("pools") or ())
    conditions = tuple(tuple(c.get(f) for f in ("type", "status", "reason")) for c in status.get("conditions") or ())
    return identity(item), status.get("digest"), pools, conditions, pool_sizes(item)


def pool_sizes(item: Object) -> object:
    """How many pods a BaseModel's status gives its pools that are scaled by load: places for adapters go by that."""
    pools = (item.get("status") or {}).get("pools") or ()
    return tuple((str(p.get("name")), p.get("wantedReplicas"), p.get("replicas")) for p in pools)


def reasons(item: Object) -> set[str]:
    """The reasons of its conditions."""
    return {str(c.get("reason")) for c in (item.get("status") or {}).get("conditions") or ()}


def changed_adapters(before: PodObservation | None, now: PodObservation | None) -> set[str] | None:
    """The adapters that two observations of one pod say different things of; None where more than that differs."""
    if before is None or now is None or before.report is None or now.report is None:
        return None
    if _without_adapters(before) != _without_adapters(now):
        return None
    old, new = before.report.adapters, now.report.adapters
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def standing(pod: PodObservation | None) -> object:
    """What decides which of a pool's problems is told."""
    return None if pod is None or pod.deleted else (pod.pool, pod.template, pod.created, pod.problem)


def said_of_adapters(pod: PodObservation | None) -> dict[str, object]:
    """What is read of a pod for each adapter: of one that leaves nothing."""
    if pod is None or pod.deleted or pod.report is None:
        return {}
    return {name: (pod.pool, report) for name, report in pod.report.adapters.items()}


def _without_adapters(pod: PodObservation) -> tuple[object, ...]:
    report = pod.report or PodReport(address="", engine="Starting", base_model="")
    rest = report.model_copy(update={"adapters": {}})
    return (pod.uid, pod.pool, pod.base_model, pod.deleted, pod.ready, pod.problem, pod.base_report, pod.node, rest)
