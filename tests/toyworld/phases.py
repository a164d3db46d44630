"""Every kind in every phase that people and their tools see, as the operator's plans write it: kind -> name -> object.

Rules: a status comes from a plan, never from here, so that what is tested with these objects is what the operator says.
The exceptions are named: no status yet, and a status of an older generation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.builders import (
    VOLUME,
    Situation,
    adapter,
    base_model,
    child_of,
    deployment,
    failed,
    pinned,
    pod,
    revision,
)
from tests.toyworld.drifting import run, watched
from tests.toyworld.gates import SPEED
from tests.toyworld.rollouts import PROGRESSIVE, RolloutWorld, canary, finished
from tests.unit.planning.basemodels import applied_to
from tests.unit.planning.sleepers import QUIET, TIMEOUT, base, chat, planned
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.crds import NEW_STATUS
from tuneyard.api.documents import AdapterReport
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.names import API_VERSION
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutSpec
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply

Object = dict[str, Any]
Resource = BaseModelResource | LoRAAdapterResource | ModelDeploymentResource


def everything() -> dict[str, dict[str, Object]]:
    """Kind -> name of the phase -> object."""
    return {
        "BaseModel": {name: stored("BaseModel", r) for name, r in _base_models().items()},
        "LoRAAdapter": {name: stored("LoRAAdapter", r) for name, r in _adapters().items()},
        "ModelDeployment": {name: stored("ModelDeployment", r) for name, r in _deployments().items()},
    }


def stored(kind: str, resource: Resource) -> Object:
    """The object as the API server has it."""
    found: Object = {"apiVersion": API_VERSION, "kind": kind, **resource.to_dict()}
    found["metadata"] = {key: value for key, value in found["metadata"].items() if value}
    new = resource.status == type(resource.status)()
    return {**found, "status": NEW_STATUS} if new else found


# -- ModelDeployment -------------------------------------------------------------------------------------------------


def _deployments() -> dict[str, ModelDeploymentResource]:
    aborted, twice = canary(), canary()
    aborted.command("abort", "v2")
    aborted.settle()
    twice.broken["v2"] = Reason.NON_FINITE_VALUES
    twice.ready["v3"] = True
    twice.settle()
    twice.spec({"v1": 0, "v2": 0, "v3": 100})
    twice.settle()
    edited = canary()
    edited.spec({"v1": 50, "v2": 50})
    by_command, in_git = canary(), canary(paused=True)
    by_command.command("pause")
    by_command.settle()
    return {
        "new": deployment(revisions=[revision("v1", "v1")], rollout=RolloutSpec.from_dict(PROGRESSIVE)),
        "stale": edited.now,
        "starting": _first_status(pods=()),
        "completed": RolloutWorld().now,
        "drifting": _drifting(),
        "progressing": canary().now,
        "manual-90-10": canary({"v1": 90, "v2": 10}, mode="Manual", steps=None, progressDeadline=None).now,
        "at-its-ceiling": _at_its_ceiling(),
        "paused-by-command": by_command.now,
        "paused-in-spec": in_git.now,
        "gating": canary(gates=[SPEED]).now,
        "inconclusive": _inconclusive(),
        "baking": finished(bakeTime="1h").now,
        "rolled-back": aborted.now,
        "next-candidate-after-a-rejected-one": twice.now,
        "unschedulable": _first_status(
            pods=(pod("a", engine="Starting", problem=Problem(Reason.UNSCHEDULABLE, "0/3 nodes have a free GPU")),)
        ),
        "base-missing": _first_status(bases=()),
        "asleep": chat(planned(chat(), QUIET)[0]),
    }


def _drifting() -> ModelDeploymentResource:
    world = watched()
    run(world, 0.9)
    run(world, 0.7)
    return world.now


def _inconclusive() -> ModelDeploymentResource:
    world = canary(analysis={"slo": {"errorRate": "1%"}})
    world.wait(6)
    world.settle()
    return world.now


def _at_its_ceiling() -> ModelDeploymentResource:
    world = canary({"v1": 90, "v2": 10})
    world.wait(5)
    world.settle()
    return world.now


def _first_status(**fields: Any) -> ModelDeploymentResource:
    """What is said of a deployment at first; no gateway serves it yet."""
    found = deployment()
    seen = Situation(bases=(base_model(),), adapters=(pinned("v1"),), deployments=(found,))
    status = plan_modeldeployment(replace(seen, **fields).deployment()).status
    return found.model_copy(update={"status": status})


# -- LoRAAdapter -----------------------------------------------------------------------------------------------------


def _adapters() -> dict[str, LoRAAdapterResource]:
    loaded = pod("a", "v1")
    wrong = failed("NonFiniteValues", "layer 3 has a NaN", lasting=True)
    fresh = _adapter(pods=(loaded,))
    return {
        "new": adapter("v1"),
        "stale": fresh.model_copy(update={"metadata": fresh.metadata.model_copy(update={"generation": 2})}),
        "not-used": _adapter(deployments=()),
        "starting": _adapter(),
        "loading": _adapter(pods=(pod("a", reports={"v1": AdapterReport(state="Loading")}),)),
        "loaded": fresh,
        "corrupt": _adapter(pods=(pod("a", reports={"v1": wrong}),)),
        "base-missing": _adapter(bases=()),
        "asleep": _sleeping_adapter(),
    }


def _adapter(**fields: Any) -> LoRAAdapterResource:
    found = adapter("v1")
    seen = Situation(bases=(base_model(),), adapters=(found,), deployments=(deployment(),))
    status = plan_loraadapter(replace(seen, **fields).adapter("v1")).status
    return found.model_copy(update={"status": status})


def _sleeping_adapter() -> LoRAAdapterResource:
    """Its only deployment has gone to sleep."""
    asleep = chat(planned(chat(), QUIET)[0])
    return _adapter(bases=(base(),), adapters=(pinned("v1"), pinned("v2")), deployments=(asleep,), pods=(pod("a"),))


# -- BaseModel -------------------------------------------------------------------------------------------------------


def _base_models() -> dict[str, BaseModelResource]:
    crashed = Problem(Reason.ENGINE_CRASHED, "engine ended with exit code 1 (OOMKilled) after 3 restarts")
    ready = _base(pods=(pod("a", "v1"),))
    return {
        "new": base_model(),
        "stale": ready.model_copy(update={"metadata": ready.metadata.model_copy(update={"generation": 2})}),
        "not-used": _base(deployments=()),
        "starting": _base(),
        "ready": ready,
        "crashing": _base(pods=(pod("a", engine="Starting", problem=crashed),)),
        "asleep": _sleeping_base(),
    }


def _sleeping_base() -> BaseModelResource:
    """Nobody asks for the only deployment of its pool: it goes to sleep, and then its pod goes."""
    serving = ServingSpec(artifact_volumes=[VOLUME], scale_to_zero_after=TIMEOUT)
    idle = chat(planned(chat(), QUIET)[0])
    seen = Situation(
        bases=(base_model(serving=serving),),
        adapters=(pinned("v1"), pinned("v2")),
        deployments=(idle,),
        pods=(pod("a", "v1", "v2"),),
        demand=QUIET,
    )
    (found,) = applied_to(replace(applied_to(applied_to(seen)), pods=())).bases
    return found


def _base(**fields: Any) -> BaseModelResource:
    """A BaseModel whose pool is there."""
    found = base_model()
    seen = Situation(bases=(found,), adapters=(pinned("v1"),), deployments=(deployment(),))
    seen = replace(seen, **fields)
    first = plan_basemodel(seen.base_model())
    made = tuple(
        child_of(a.object, replicas=1, updatedReplicas=1, readyReplicas=1)
        for a in first.actions
        if isinstance(a, Apply)
    )
    status = plan_basemodel(replace(seen, children=made).base_model()).status
    return found.model_copy(update={"status": status})
