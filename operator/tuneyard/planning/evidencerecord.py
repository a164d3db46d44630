"""The ConfigMap of an EvidenceRecord: how it is read, and when it is written.

Rules:
- the ModelDeployment owns it: what is created again is another object, of which gateways begin to count anew;
- one that cannot be read, or is about another object, other objectives or another stable revision, says nothing:
  evidence begins anew, which costs time and can neither reject nor pass;
- it is written at a look (rolloutanalysis.py), before the status that follows from it, or after one that takes traffic
  away: after a crash between the two the same answers are looked at again, from where the stored record ends;
- it is removed with `spec.rollout.analysis`;
- a ConfigMap of its name without its label is somebody else's, and neither believed nor written nor deleted.
"""

from __future__ import annotations

import json
from typing import Any

from tuneyard.api import names
from tuneyard.api.base import parsed
from tuneyard.api.evidence import EvidenceRecord
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.children import label_value, marked, owner
from tuneyard.planning.observations import RECORD_KEY, ChildObservation
from tuneyard.planning.plan import Action, Apply, Delete


def evidence_of(config_map: ChildObservation | None, deployment: ModelDeploymentResource) -> EvidenceRecord | None:
    """What the ConfigMap says of this object."""
    if config_map is None or _foreign(config_map):
        return None
    record = parsed(EvidenceRecord, config_map.record)
    return record if record is not None and record.uid == deployment.metadata.uid else None


def evidence_object(deployment: ModelDeploymentResource, record: EvidenceRecord) -> dict[str, Any]:
    """The ConfigMap of a record."""
    meta = deployment.metadata
    metadata = {
        "name": names.rollout_evidence(meta.name),
        "namespace": meta.namespace,
        "labels": {
            names.LABEL_NAME: "tuneyard-rollout",
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_COMPONENT: names.ROLLOUT_EVIDENCE,
            names.LABEL_DEPLOYMENT: label_value(meta.name),
        },
        "ownerReferences": [owner(deployment)],
    }
    text = json.dumps(record.to_dict(), sort_keys=True, separators=(",", ":"))
    return marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {RECORD_KEY: text}})


def evidence_actions(
    deployment: ModelDeploymentResource, config_map: ChildObservation | None, record: EvidenceRecord | None
) -> tuple[Action, ...]:
    """Store the record of a new look; without an analysis in the spec, remove what is left of one."""
    if config_map is not None and _foreign(config_map):
        return ()
    if record is not None:
        return (Apply(evidence_object(deployment, record)),)
    if deployment.spec.analysis is not None or config_map is None or config_map.deleted:
        return ()
    found = config_map
    return (Delete("v1", "ConfigMap", found.namespace, found.name, found.uid, found.resource_version),)


def _foreign(config_map: ChildObservation) -> bool:
    return config_map.component != names.ROLLOUT_EVIDENCE
