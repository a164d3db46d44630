"""Why a revision cannot be served: wrong references first, then what its pods say, then what is still going on.

Rules:
- a wrong reference makes the deployment not Accepted, but only that revision gets no traffic;
- causes are looked for nearest to the revision: the pods of its own pool know better than what the status of its
  adapter or base says of all pools;
- a cause that time alone removes (pods starting, adapters loading) is work, every other one is a problem.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.conditions import find
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.api.reasons import Reason, reason_of
from tuneyard.planning import servingchecks
from tuneyard.planning.external import told_lacking
from tuneyard.planning.observations import ModelDeploymentObservation, PodObservation, Problem, problem_of
from tuneyard.planning.podreport import failed_with
from tuneyard.planning.pools import pool_of, serving_of, volume_not_declared
from tuneyard.planning.remedies import clipped, unnamed, with_remedy
from tuneyard.planning.resolvedserving import Serving

_WORK = frozenset(
    {
        Reason.STARTING,
        Reason.LOADING,
        Reason.FETCHING,
        Reason.RESOLVING,
        Reason.RECONCILING,
        Reason.ENGINE_NOT_READY,
        Reason.DRAINING,
        Reason.NO_READY_ENDPOINT,
        Reason.NOT_USED,
        Reason.BUILD_PENDING,
        Reason.BUILD_RUNNING,
    }
)


@dataclass(frozen=True)
class RevisionState:
    """A revision, what it refers to as far as that exists, and the pods of its pool that are not leaving."""

    revision: Revision
    base: BaseModelResource | None
    adapter: LoRAAdapterResource | None
    serving: Serving | None
    """None while the base is missing, and of an external one."""
    pool: str
    pods: tuple[PodObservation, ...]
    violation: Problem | None
    """Why its pool is not made or changed."""
    lacking: str = ""
    """Why nothing can be sent to an external one."""


def is_work(problem: Problem) -> bool:
    """Whether it goes by waiting."""
    return problem.reason in _WORK


def is_obstacle(problem: Problem) -> bool:
    """Whether it would keep an adapter that is not loaded from being loaded: a full pool makes room for one."""
    return not is_work(problem) and problem.reason is not Reason.POOL_FULL


def revision_states(obs: ModelDeploymentObservation, deployment: ModelDeploymentResource) -> tuple[RevisionState, ...]:
    """Every revision of the deployment with what it refers to."""
    namespace = deployment.metadata.namespace
    bases = {b.metadata.name: b for b in obs.base_models if b.metadata.namespace == namespace}
    adapters = {a.metadata.name: a for a in obs.adapters if a.metadata.namespace == namespace}
    states, lacking = [], told_lacking(deployment, obs.applied)
    for revision in deployment.spec.revisions:
        base = bases.get(revision.base_model)
        pool = pool_of(deployment, revision)
        serving = serving_of(base, deployment, revision) if base else None
        pods = [p for p in obs.pods if p.namespace == namespace and p.pool == pool and not p.deleted]
        states.append(
            RevisionState(
                revision=revision,
                base=base,
                adapter=adapters.get(revision.adapter or ""),
                serving=serving,
                pool=pool,
                pods=tuple(sorted(pods, key=lambda p: (p.created, p.name))),
                violation=servingchecks.violation(base, serving, obs.settings) if base and serving else None,
                lacking=lacking.get(revision.name, ""),
            )
        )
    return tuple(states)


def wrong_reference(state: RevisionState) -> Problem | None:
    """What the revision names and is not there, or is another base's."""
    revision = state.revision
    if revision.external is not None:
        return None
    if state.base is None:
        words = f"revision {revision.name}: BaseModel {revision.base_model} does not exist"
        return Problem(Reason.BASE_MODEL_NOT_FOUND, words)
    if revision.adapter is None:
        return None
    if state.adapter is None:
        words = f"revision {revision.name}: LoRAAdapter {revision.adapter} does not exist"
        return Problem(Reason.ADAPTER_NOT_FOUND, words)
    if state.adapter.spec.base_model != revision.base_model:
        words = (
            f"revision {revision.name}: LoRAAdapter {revision.adapter} was trained for BaseModel "
            f"{state.adapter.spec.base_model}, the revision names {revision.base_model}"
        )
        return Problem(Reason.BASE_MODEL_MISMATCH, words)
    return None


def cause(state: RevisionState) -> Problem:
    """Why no pod serves the revision; to be asked only while none does."""
    if state.revision.external is not None:
        return Problem(Reason.CREDENTIALS_MISSING, state.lacking)
    return (
        wrong_reference(state)
        or state.violation
        or _refused_by_pods(state)
        or _no_place(state)
        or problem_of(state.pods)
        or _no_pod(state)
        or _going_on(state)
    )


def _refused_by_pods(state: RevisionState) -> Problem | None:
    """A pod that read the adapter and could not serve it."""
    for pod in state.pods:
        report = pod.report.adapters.get(state.revision.adapter or "") if pod.report else None
        if report is not None and state.adapter is not None and failed_with(report, state.adapter):
            reason, words = reason_of(report.reason or ""), report.message or ""
            told = words if reason or not report.reason else f"{report.reason}: {words}"
            return Problem(reason or Reason.LOAD_REFUSED, f"pod {pod.name}: {told}")
    return None


def _no_place(state: RevisionState) -> Problem | None:
    """The pool cannot hold the adapter."""
    if state.adapter is None or state.serving is None:
        return None
    loaded = find(state.adapter.status.conditions, "Loaded")
    full = loaded is not None and loaded.reason == Reason.POOL_FULL.value
    return volume_not_declared(state.serving, state.adapter) or (
        Problem(Reason.POOL_FULL, loaded.message.split(";")[0]) if loaded and full else None
    )


def _no_pod(state: RevisionState) -> Problem | None:
    """Pods that nobody wants, or that nobody can make."""
    if state.pods or state.base is None or state.serving is None:
        return None
    if state.serving.replicas == 0:
        return Problem(Reason.NO_READY_ENDPOINT, f"pool {state.pool} has 0 replicas: raise serving.replicas")
    # Only the plan of the base sees the Deployment: progress begins with the reason (remedies.named) if it is stuck.
    return unnamed(next((p.progress or "" for p in state.base.status.pools or [] if p.name == state.pool), ""))


def _going_on(state: RevisionState) -> Problem:
    if not state.pods:
        return Problem(Reason.STARTING, f"pool {state.pool} has no pod yet")
    ready = [p for p in state.pods if p.report is not None and p.report.engine == "Ready"]
    if not ready:
        return Problem(Reason.STARTING, f"{len(state.pods)} pods of pool {state.pool} are starting")
    return Problem(
        Reason.LOADING, f"{len(ready)} pods of pool {state.pool} are loading {state.revision.adapter or 'the base'}"
    )


def withheld_for(problem: Problem) -> str:
    """The text of status.traffic[].withheld for a revision that no pod serves."""
    if problem.reason is Reason.NO_READY_ENDPOINT:
        return clipped(f"{problem.reason.value}: {with_remedy(problem)}")
    return clipped(f"{Reason.NO_READY_ENDPOINT.value} ({problem.reason.value}): {with_remedy(problem)}")


def says_full(withheld: str | None) -> bool:
    """Whether such a text says that the pool has no place; gateways know no more than the status."""
    return bool(withheld) and str(withheld).startswith(f"{Reason.NO_READY_ENDPOINT.value} ({Reason.POOL_FULL.value})")


def first_wrong_reference(states: Iterable[RevisionState]) -> Problem | None:
    """Of all revisions, in their order."""
    return next((p for p in map(wrong_reference, states) if p), None)
