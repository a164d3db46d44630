"""The ConfigMap that outlives a ModelDeployment: its verdicts, who was stable, which commands were the last.

Rules (rollout.md 3):
- nothing owns it, so no garbage collection takes it with an object that a forced sync deletes and creates again. The
  operator removes it RECORD_SECONDS after the deployment is gone;
- it is read only for a deployment whose status says nothing of a rollout; while there is a status that is the truth;
- it is written from the status that is stored, in the pass after: a rollback does not wait for it;
- a ConfigMap of its name without its label is somebody else's: it is neither believed nor written nor deleted. One that
  cannot be read is not deleted: it may be a newer operator's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tuneyard.api import names
from tuneyard.api.base import parsed
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import RolloutRecord, RolloutStatus, StableContents
from tuneyard.planning.children import as_applied, label_value, marked
from tuneyard.planning.observations import RECORD_KEY, ChildObservation
from tuneyard.planning.plan import Action, Apply, Delete, Plan
from tuneyard.planning.timestamps import parsed_time, remaining, rfc3339

RECORD_SECONDS = 7 * 86400.0

Hashes = Mapping[str, str | None]


def record_of(config_map: ChildObservation | None) -> RolloutRecord | None:
    """What the ConfigMap says; one that somebody has spoilt says nothing, like somebody else's."""
    return parsed(RolloutRecord, config_map.record) if config_map and not _foreign(config_map) else None


def _foreign(config_map: ChildObservation | None) -> bool:
    return config_map is not None and config_map.component != names.ROLLOUT_RECORD


def worth_keeping(deployment: ModelDeploymentResource, rollout: RolloutStatus | None) -> bool:
    """Whether a rollout's status, the stored one or the next, says something that a record is made of."""
    found = rollout and (deployment.spec.progressive or rollout.verdicts or rollout.history or rollout.last_command)
    return bool(found)


def remembered(
    deployment: ModelDeploymentResource, config_map: ChildObservation | None, hashes: Hashes
) -> RolloutStatus | None:
    """Where the rollout stood: from the status, else what the record has kept. A position is never kept."""
    record = record_of(config_map)
    if deployment.status.rollout is not None or record is None:
        return deployment.status.rollout
    return RolloutStatus(
        stable=_listed(record.stable, hashes),
        paused=record.paused,
        gates_since=record.gates_since,
        verdicts=record.verdicts or None,
        history=record.history or None,
        last_command=record.last_command,
        command_ids=record.command_ids or None,
    )


def _listed(stable: StableContents | None, hashes: Hashes) -> str | None:
    """The revision with these contents now: its name may be another one."""
    if stable is None:
        return None
    same = [name for name, found in hashes.items() if found == stable.content_hash]
    if stable.revision in same or hashes.get(stable.revision, "") is None:
        return stable.revision
    return same[0] if same else None


def wanted_record(
    deployment: ModelDeploymentResource, rollout: RolloutStatus, config_map: ChildObservation | None, hashes: Hashes
) -> RolloutRecord | None:
    """What is to be kept; None for a deployment of which there is nothing to keep."""
    if config_map is None and not worth_keeping(deployment, rollout):
        return None
    before = record_of(config_map)
    # whom the status is about: its name may stand for other contents by now
    found = (rollout.contents or {}).get(rollout.stable or "") or hashes.get(rollout.stable or "")
    stable = StableContents(revision=rollout.stable, content_hash=found) if rollout.stable and found else None
    return RolloutRecord(
        deployment=deployment.metadata.name,
        stable=stable or (before.stable if before else None),
        paused=rollout.paused,
        gates_since=rollout.gates_since,
        verdicts=list(rollout.verdicts or ()),
        history=list(rollout.history or ()),
        last_command=rollout.last_command,
        command_ids=list(rollout.command_ids or ()),
    )


def record_object(namespace: str, record: RolloutRecord, unused_since: str | None = None) -> dict[str, Any]:
    """The ConfigMap of a record."""
    metadata: dict[str, Any] = {
        "name": names.rollout_record(record.deployment),
        "namespace": namespace,
        "labels": {
            names.LABEL_NAME: "tuneyard-rollout",
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_COMPONENT: names.ROLLOUT_RECORD,
            names.LABEL_DEPLOYMENT: label_value(record.deployment),
        },
    }
    if unused_since is not None:
        metadata["annotations"] = {names.ANNOTATION_UNUSED_SINCE: unused_since}
    text = json.dumps(record.to_dict(), sort_keys=True, separators=(",", ":"))
    return marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {RECORD_KEY: text}})


def record_actions(
    deployment: ModelDeploymentResource, config_map: ChildObservation | None, hashes: Hashes
) -> tuple[Action, ...]:
    """Bring the record to what the stored status says."""
    stored = deployment.status.rollout
    record = wanted_record(deployment, stored, config_map, hashes) if stored else None
    if record is None or _foreign(config_map):
        return ()
    wanted = record_object(deployment.metadata.namespace, record)
    return () if config_map is not None and as_applied(config_map, wanted) else (Apply(wanted),)


def differs(
    deployment: ModelDeploymentResource, planned: RolloutStatus, config_map: ChildObservation | None, hashes: Hashes
) -> bool:
    """Whether the planned status asks for another record than the stored one."""
    stored = deployment.status.rollout
    before = wanted_record(deployment, stored, config_map, hashes) if stored else record_of(config_map)
    return wanted_record(deployment, planned, config_map, hashes) != before


def takes_away(deployment: ModelDeploymentResource, planned: RolloutStatus) -> bool:
    """Whether the planned status allows a revision less than the stored one, or gives a verdict: nothing goes before.

    What the actions keep is worked out again from what was kept before, where a crash comes between.
    """
    stored, allowed = deployment.status.rollout or RolloutStatus(), planned.allowed or {}
    less = (limit > allowed.get(name, 0) for name, limit in (stored.allowed or {}).items() if name != planned.stable)
    known = {v.content_hash for v in stored.verdicts or ()}
    others = {r.name for r in deployment.spec.revisions if deployment.spec.progressive} - {planned.stable}
    deposed = stored.stable in others and allowed.get(stored.stable or "", 0) < 100
    return any(less) or deposed or any(v.content_hash not in known for v in planned.verdicts or ())


def plan_orphan(config_map: ChildObservation | None, now: datetime) -> Plan:
    """What becomes of the record of a deployment that is gone."""
    record = record_of(config_map)
    if config_map is None or record is None or config_map.deleted:
        return Plan()
    since = parsed_time(config_map.annotations.get(names.ANNOTATION_UNUSED_SINCE))
    if since is None:
        return Plan((Apply(record_object(config_map.namespace, record, rfc3339(now))),), requeue_after=RECORD_SECONDS)
    left = remaining(since, RECORD_SECONDS, now)
    if left > 0:
        return Plan(requeue_after=left)
    gone = Delete("v1", "ConfigMap", config_map.namespace, config_map.name, config_map.uid, config_map.resource_version)
    return Plan((gone,))
