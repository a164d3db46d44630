"""One pass over one object: gather, plan, execute, write the status once.

Rules:
- a pass that would delete something, name another stable revision, or give a verdict is planned a second time from what
  the API server says at this moment, and only that second plan is executed: the informers may be behind. Weights are
  only reported: gateways work them out from the pods that they see themselves;
- the status is written after the actions, whole, and only when it differs from the stored one. One that takes traffic
  away is written first, and what it says is told then: no write that is slow, refused or fails comes before it;
- what no plan can see (an object that cannot be read, a child that the API server refuses) is said in the status too;
- a conflict means that the object has changed since it was read: its notice is on the way, and the pass is repeated at
  once, not as a failure;
- after a status was written the next pass waits until the informers show it: planning from the older object would only
  meet a conflict.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus
from tuneyard.api.loraadapter import LoRAAdapterResource, LoRAAdapterStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import EngineKeys, Problem
from tuneyard.planning.plan import Delete, Plan
from tuneyard.planning.promqueries import Evaluations
from tuneyard.planning.readiness import stalled_by
from tuneyard.planning.settings import Settings
from tuneyard.runtime.applied import MISSED_SECONDS, SECRET_SECONDS
from tuneyard.runtime.execute import Executor, RefusedError
from tuneyard.runtime.gather import (
    FreshReads,
    FreshReferences,
    GatewayView,
    Reads,
    gather_basemodel,
    gather_loraadapter,
    gather_modeldeployment,
)
from tuneyard.runtime.keys import BASE_MODEL, LORA_ADAPTER, MODEL_DEPLOYMENT, Key
from tuneyard.runtime.wakes import Wakes
from tuneyard.runtime.world import World
from tuneyard.systems.kube.client import Api, ApiError, Object

_log = logging.getLogger(__name__)

_RESOURCES: Mapping[str, type[ApiModel]] = {
    BASE_MODEL: BaseModelResource,
    LORA_ADAPTER: LoRAAdapterResource,
    MODEL_DEPLOYMENT: ModelDeploymentResource,
}
Status = BaseModelStatus | LoRAAdapterStatus | ModelDeploymentStatus
_STATUSES: Mapping[str, type[Status]] = {
    BASE_MODEL: BaseModelStatus,
    LORA_ADAPTER: LoRAAdapterStatus,
    MODEL_DEPLOYMENT: ModelDeploymentStatus,
}
_SOON = 0.05
_ECHO_SECONDS = 5.0


@dataclass(frozen=True)
class _Written:
    """A status that this process wrote, until the informers show it."""

    uid: str
    resource_version: str
    at: float


class Reconciler:
    """Brings objects to what their specs say, one pass at a time per key."""

    def __init__(
        self,
        api: Api,
        world: World,
        wakes: Wakes,
        executor: Executor,
        *,
        keys: EngineKeys,
        settings: Settings,
        gateways: Callable[[], GatewayView],
        checks: Callable[[Key], Evaluations] = lambda _: {},
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._world = world
        self._wakes = wakes
        self._executor = executor
        self._keys = keys
        self._settings = settings
        self._gateways = gateways
        self._checks = checks
        self._now = now
        self._written: dict[Key, _Written] = {}
        self._distrusted: set[Key] = set()

    def distrust(self, key: Key) -> None:
        """Let the next pass over this key read from the API server: the informers have missed a change, or are late."""
        self._distrusted.add(key)

    def reconcile(self, key: Key) -> float | None:
        """One pass; returns the seconds after which time alone asks for another one. Raises ApiError, RefusedError."""
        if key in self._distrusted:
            self._distrusted.discard(key)
            return self._pass(key, FreshReads(self._world, self._api))
        observed = self._world.raw(key)
        if observed is not None and self._behind(key, observed):
            return _SOON
        return self._pass(key, Reads(self._world, self._api))

    def _pass(self, key: Key, reads: Reads) -> float | None:
        observed = reads.object(key)
        if observed is None:
            self._written.pop(key, None)
            return self._gone(key, reads) if key.kind == MODEL_DEPLOYMENT else None
        invalid = invalid_spec(key.kind, observed)
        if invalid is not None:
            return self._write(key, observed, self._stalled(key.kind, observed, None, invalid).to_dict())
        plan = self._plan(reads, key)
        needed = needed_reads(plan, observed)
        if not isinstance(reads, needed):
            return self._pass(key, needed(self._world, self._api))
        if plan.status_first:
            again = self._finish(key, observed, plan)
            if again is None:
                self._executor.execute(plan.actions)
            return plan.requeue_after if again is None else again
        try:
            self._executor.execute(plan.actions)
        except RefusedError as error:
            self._refused(key, observed, plan, error.problem)
            raise
        except ApiError:
            # a rollout's actions keep what it knows and run its gates: its weights do not wait for them
            if key.kind == MODEL_DEPLOYMENT:
                self._finish(key, observed, plan)
            raise
        again = self._finish(key, observed, plan)
        if again is not None:
            return again
        return self._again(key, reads, plan)

    def _finish(self, key: Key, observed: Object, plan: Plan) -> float | None:
        """Write the planned status and tell what it says; returns the seconds to wait where it could not be written."""
        again = self._write(key, observed, plan.status.to_dict()) if plan.status is not None else None
        if again is None:
            self._executor.tell(plan.events)
        return again

    def _refused(self, key: Key, observed: Object, plan: Plan, problem: Problem) -> None:
        """Write the planned status with what was refused; a rollout has moved all the same, and that is told once."""
        status = self._stalled(key.kind, observed, plan.status, problem).to_dict()
        new = _status(key.kind, observed).to_dict() != status
        if self._write(key, observed, status) is None and new and key.kind == MODEL_DEPLOYMENT:
            self._executor.tell(plan.events)

    def _gone(self, key: Key, reads: Reads) -> float | None:
        """One pass over what is left of a ModelDeployment that does not exist any more."""
        plan = self._plan(reads, key)
        needed: type[Reads] = FreshReads if plan.actions else Reads
        if not isinstance(reads, needed):
            return self._pass(key, needed(self._world, self._api))
        self._executor.execute(plan.actions)
        return plan.requeue_after

    def _again(self, key: Key, reads: Reads, plan: Plan) -> float | None:
        """Seconds to the next look: pools' Secrets are not watched, so every base is looked at now and then."""
        if key.kind != BASE_MODEL:
            return plan.requeue_after
        missing = reads.missing(key.namespace, key.name)
        return min(
            SECRET_SECONDS if plan.requeue_after is None else plan.requeue_after,
            MISSED_SECONDS if missing else SECRET_SECONDS,
        )

    def _plan(self, reads: Reads, key: Key) -> Plan:
        now = self._now()
        if key.kind == BASE_MODEL:
            demand = self._gateways().demand
            observed = gather_basemodel(reads, key, keys=self._keys, settings=self._settings, now=now, demand=demand)
            return plan_basemodel(observed)
        if key.kind == LORA_ADAPTER:
            return plan_loraadapter(gather_loraadapter(reads, key, settings=self._settings, now=now))
        gateways = self._gateways()
        return plan_modeldeployment(
            gather_modeldeployment(
                reads,
                key,
                gateways=gateways,
                keys=self._keys,
                settings=self._settings,
                now=now,
                checks=self._checks(key),
            )
        )

    def _stalled(self, kind: str, observed: Object, planned: ApiModel | None, problem: Problem) -> Status:
        """The planned status (without one: the stored one) with a problem that no plan could see."""
        stored = _status(kind, observed)
        generation = int(observed["metadata"].get("generation") or 0)
        told = planned if isinstance(planned, Status) else stored
        return stalled_by(told, problem, stored.conditions, generation, self._now())  # type: ignore[type-var]

    def _write(self, key: Key, observed: Object, status: Mapping[str, Any]) -> float | None:
        """Write a status that differs; returns the seconds to wait where it could not be written now."""
        if observed.get("status") and _status(key.kind, observed).to_dict() == status:
            return None
        self._wakes.writing(observed, status)
        try:
            stored = self._executor.write_status(observed, status)
        except ApiError as error:
            if error.conflict or error.not_found:
                _log.debug("%s has changed meanwhile", key)
                return _SOON * random.uniform(1.0, 3.0)  # noqa: S311
            raise
        version = str(stored["metadata"]["resourceVersion"])
        self._written[key] = _Written(str(stored["metadata"]["uid"]), version, time.monotonic())
        return None

    def _behind(self, key: Key, observed: Object) -> bool:
        """Whether the informers do not show yet what was written last; given up after some seconds."""
        written = self._written.get(key)
        if written is None:
            return False
        metadata = observed["metadata"]
        version = str(metadata.get("resourceVersion"))
        same = metadata.get("uid") == written.uid and version.isdecimal() and written.resource_version.isdecimal()
        if same and int(version) < int(written.resource_version) and time.monotonic() - written.at < _ECHO_SECONDS:
            return True
        del self._written[key]
        return False


def invalid_spec(kind: str, observed: Object) -> Problem | None:
    """Why the object does not fit its class (it was written under another version of the CRD), if so."""
    try:
        _RESOURCES[kind].from_dict({**observed, "status": {}})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return Problem(Reason.INVALID_SPEC, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    return None


def _status(kind: str, observed: Object) -> Status:
    """The stored status, an empty one where it cannot be read."""
    try:
        return _STATUSES[kind].from_dict(observed.get("status") or {})
    except ValidationError:
        return _STATUSES[kind]()


def needed_reads(plan: Plan, observed: Object) -> type[Reads]:
    """How sure the observation has to be for this plan to be executed."""
    if any(isinstance(action, Delete) for action in plan.actions):
        return FreshReferences
    rollout = plan.status.rollout if isinstance(plan.status, ModelDeploymentStatus) else None
    stored = (observed.get("status") or {}).get("rollout") or {}
    decides = rollout is not None and (promotes(stored, rollout) or judges(stored, rollout))
    return FreshReads if decides else Reads


def promotes(stored: Mapping[str, Any], rollout: RolloutStatus) -> bool:
    """Whether another revision than the stored one is named stable: what is withheld goes to that one then.

    The first one does not hang on pods, so that a thousand new deployments do not list a thousand times.
    """
    before = stored.get("stable")
    return before is not None and rollout.stable not in (None, before)


def judges(stored: Mapping[str, Any], rollout: RolloutStatus) -> bool:
    """Whether a verdict is given that is not stored yet: it outlives what it was given for."""
    known = {v.get("contentHash") for v in stored.get("verdicts") or ()}
    return any(v.content_hash not in known for v in rollout.verdicts or ())
