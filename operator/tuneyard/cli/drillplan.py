"""A rehearsal of a rollback, as values: the object that it makes, and what its requests say of the time it took. Pure.

Rules:
- the rehearsal has a ModelDeployment of its own, `<name>-drill`, under a model name of its own: no user's request ever
  meets the fault, and the object that stands in Git is not touched;
- both of its revisions are what the deployment's stable revision is, so they are loaded already; the candidate differs
  by its fault alone (planning/contents.py), and what is rejected is that;
- objectives are the deployment's own, and so are the operator, the gateways and their times: that is what is rehearsed;
- times are those of the client: from the first answer that the fault has spoiled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuneyard.api import names
from tuneyard.api.base import ApiModel
from tuneyard.api.drill import Fault
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.api.rollout import RolloutStatus, Verdict
from tuneyard.cli.errors import UserError

STABLE, CANDIDATE = "stable", "drill"
_SUFFIX = "-drill"
_LONGEST_NAME = 253


@dataclass(frozen=True)
class Answer:
    """One request of the rehearsal. Times are seconds of one clock."""

    sent: float
    ended: float
    status: int
    """0: no answer came."""
    revision: str | None = None
    """The answer's header x-revision."""


class Result(ApiModel):
    """What was seen."""

    rolled_back: bool
    weight: int
    """Percent that the candidate had."""
    requests: int
    spoiled: int
    """Answers that the fault has reached."""
    seconds_to_detect: float | None = None
    """From the first spoiled answer to the operator's verdict."""
    seconds_to_roll_back: float | None = None
    """From the first spoiled answer to the last request that was given to the candidate."""
    reason: str | None = None
    evidence: str | None = None


def drill_name(name: str) -> str:
    """Name of the rehearsal's object."""
    return name[: _LONGEST_NAME - len(_SUFFIX)] + _SUFFIX


def drill_model(deployment: ModelDeploymentResource) -> str:
    """The model name that only the rehearsal asks for."""
    return deployment.model_name[: _LONGEST_NAME - len(_SUFFIX)] + _SUFFIX


def drilled(deployment: ModelDeploymentResource, *, own_pods: bool) -> Revision:
    """The revision whose contents are rehearsed; raises UserError where no rehearsal is possible."""
    spec, name = deployment.spec, deployment.metadata.name
    if spec.rollout is None or spec.rollout.analysis is None:
        raise UserError(
            f"{name} has no spec.rollout.analysis, so nothing would be rolled back by itself: say there what a good "
            "answer is, for example slo: {errorRate: 1%}"
        )
    if not spec.progressive:
        raise UserError(
            f"{name} has spec.rollout.mode Manual (the default), in which nobody looks at analysis, so nothing would "
            "be rolled back by itself: set mode: Progressive and steps, for example [{weight: 5, hold: 10m}]"
        )
    stable = (deployment.status.rollout or RolloutStatus()).stable
    found = next((r for r in spec.revisions if r.name == stable), None)
    if found is None:
        raise UserError(f"{name} has no stable revision yet: wait until `tuneyard status {name}` says that it is ready")
    if (spec.serving is not None or found.serving is not None) and not own_pods:
        raise UserError(
            f"{name} has pods of its own (serving), and a rehearsal of it would start as many again: say --own-pods if "
            "there is room for them"
        )
    return found


def drill_object(
    deployment: ModelDeploymentResource, revision: Revision, fault: Fault, *, weight: int, token: str
) -> dict[str, Any]:
    """The rehearsal's ModelDeployment, all of it on what is stable.

    `weight`: percent that the candidate gets when it begins; `token`: another one for each rehearsal.
    """
    spec = deployment.spec
    analysis = spec.rollout.analysis if spec.rollout else None
    same = {k: v for k, v in revision.to_dict().items() if k != "name"}
    body: dict[str, Any] = {
        "revisions": [{"name": STABLE, **same}, {"name": CANDIDATE, **same}],
        "modelName": drill_model(deployment),
        "traffic": traffic(0),
        "rollout": {
            "mode": "Progressive",
            "analysis": analysis.to_dict() if analysis else None,
            "steps": [{"weight": weight, "hold": "24h"}],
            "retryToken": token,
        },
    }
    if spec.serving is not None:
        body["serving"] = spec.serving.to_dict()
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelDeployment",
        "metadata": {
            "name": drill_name(deployment.metadata.name),
            "namespace": deployment.metadata.namespace,
            "annotations": {names.ANNOTATION_DRILL: json.dumps(fault.to_dict())},
        },
        "spec": body,
    }


def traffic(candidate: int) -> list[dict[str, Any]]:
    """spec.traffic with that much for the candidate."""
    return [{"revision": STABLE, "weight": 100 - candidate}, {"revision": CANDIDATE, "weight": candidate}]


def is_spoiled(answer: Answer, fault: Fault) -> bool:
    """Whether the fault has reached that answer."""
    return answer.revision == CANDIDATE and (answer.status != 200 or bool(fault.delay_ms))


def result(
    answers: Sequence[Answer], fault: Fault, weight: int, verdict: Verdict | None, decided: float | None
) -> Result:
    """The times; `decided`: when the verdict was seen."""
    spoiled = [a for a in answers if is_spoiled(a, fault)]
    first = min((a.ended for a in spoiled), default=None)
    last = max((a.sent for a in answers if a.revision == CANDIDATE), default=None)
    return Result(
        rolled_back=verdict is not None,
        weight=weight,
        requests=len(answers),
        spoiled=len(spoiled),
        seconds_to_detect=None if first is None or decided is None else round(max(0.0, decided - first), 2),
        seconds_to_roll_back=(
            None if first is None or last is None or verdict is None else round(max(0.0, last - first), 2)
        ),
        reason=verdict.reason if verdict else None,
        evidence=verdict.evidence if verdict else None,
    )
