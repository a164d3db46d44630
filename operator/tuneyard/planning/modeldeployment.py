"""The plan for a ModelDeployment: what is really served, why that is not the spec, and how far the rollout may go.

Rules (rollout.md 1, 2, 5):
- weights come from traffic.effective, which gateways compute too: this plan reports them, and sets no more than what
  the rollout allows (rollout.py). Its actions are the record that outlives the object (rolloutrecord.py),
  the evidence on its candidate (evidencerecord.py), what gates need (gates.py) and what the watch over stable does
  (drift.py);
- they come before the status that follows from them, unless it takes traffic away: then it is written first;
- a weight is verified when every gateway that takes traffic says that it serves exactly this weight, and of these
  contents;
- a deployment whose model name belongs to an older one is served by nobody: its weights are 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tuneyard.api import names
from tuneyard.api.conditions import Finding, is_true, merged
from tuneyard.api.drill import fault_of
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus, TrafficStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.answers import Answers
from tuneyard.planning.contents import content_hashes
from tuneyard.planning.drift import Drift, plan_drift
from tuneyard.planning.endpoints import ready_endpoints
from tuneyard.planning.evidencerecord import evidence_actions, evidence_of
from tuneyard.planning.external import told_lacking
from tuneyard.planning.gates import under_way
from tuneyard.planning.idling import Sleep, idle_words, look_again, next_sleep, sleepers
from tuneyard.planning.mirror import mirror_status
from tuneyard.planning.modelnames import owners
from tuneyard.planning.observations import ModelDeploymentObservation, Problem
from tuneyard.planning.plan import Action, Event, ObjectReference, Plan
from tuneyard.planning.promotion import Served, stable_since
from tuneyard.planning.readiness import readiness, stalled_event
from tuneyard.planning.rehearsal import rehearsal_left, rehearsal_over
from tuneyard.planning.remedies import clipped, named, with_remedy
from tuneyard.planning.revisions import (
    RevisionState,
    cause,
    first_wrong_reference,
    is_obstacle,
    is_work,
    revision_states,
    withheld_for,
)
from tuneyard.planning.rollout import Decision, decide
from tuneyard.planning.rolloutcontents import in_force, still_about
from tuneyard.planning.rolloutrecord import differs, plan_orphan, record_actions, remembered, takes_away
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.served import served_of
from tuneyard.planning.timestamps import rfc3339
from tuneyard.planning.traffic import Split, effective


@dataclass(frozen=True)
class Serving:
    """What is served of a deployment now."""

    seen: Seen
    split: Split
    taken: Problem | None
    """Why its model name is not its own."""
    applied: Mapping[str, bool]
    """Per revision: every gateway says that it serves this weight."""
    decision: Decision
    sleep: Sleep
    """Whether its adapters are wanted."""

    @property
    def causes(self) -> dict[str, Problem]:
        """Why revisions that should get traffic are served by no pod; of idle ones what loading them would not cure.

        Of those with a verdict nobody asks.
        """
        seen, rejected = self.seen, self.split.withheld
        found = {
            name: cause(state)
            for name, state in seen.states.items()
            # stable takes what others cannot, also without a share of its own
            if (seen.spec.weight_of(name) or self.split.weights[name])
            and not seen.ready[name]
            and rejected.get(name) is not Reason.CANDIDATE_REJECTED
        }
        if not self.sleep.idle_since:
            return found
        return {r: c for r, c in found.items() if r not in seen.on_demand or is_obstacle(c)}


def plan_modeldeployment(obs: ModelDeploymentObservation) -> Plan:
    """What is known of a ModelDeployment now."""
    deployment = obs.deployment
    if deployment is None:
        return plan_orphan(obs.record, obs.now)
    if deployment.metadata.deletion_timestamp:
        return Plan()
    serving = _serving(obs, deployment)
    decision, hashes = serving.decision, serving.seen.hashes
    rejected = serving.taken or first_wrong_reference(serving.seen.states.values())
    causes = serving.causes
    over = rehearsal_over(deployment, obs.now)
    problem = rejected or over or decision.problem or next((c for c in causes.values() if not is_work(c)), None)
    unapplied = _unapplied(obs, serving)
    work = next(iter(causes.values()), None) or unapplied or decision.work
    done = Problem(Reason.READY, "every revision gets its weight")
    done = idle_words(serving.sleep, deployment, obs.base_models) if serving.sleep.idle_since else done
    findings = [
        *readiness(problem, work, done),
        _accepted(rejected),
        _available(serving, problem or work, done),
        _traffic_applied(serving, unapplied),
    ]
    now, generation = rfc3339(obs.now), deployment.metadata.generation
    wrong = problem or work or (done if serving.sleep.idle_since else None)
    rollout = _rollout(serving, (*obs.adapters, *obs.base_models), now)
    drift = _drift(obs, serving, rollout)
    findings += drift.findings
    status = ModelDeploymentStatus(
        observed_generation=generation,
        model_name=deployment.model_name,
        url=f"{obs.settings.gateway_url.rstrip('/')}/v1",
        reason=wrong.reason.value if wrong else None,
        traffic=_traffic(serving, causes),
        rollout=rollout,
        drift=drift.status,
        mirror=None if serving.taken else mirror_status(deployment.spec, serving.seen.ready, rollout.allowed),
        idle_since=serving.sleep.idle_since,
        waking_since=serving.sleep.waking_since,
        conditions=list(merged(deployment.status.conditions, findings, now, generation or None)),
    )
    ends = None if over else rehearsal_left(deployment, obs.now)
    waits = (decision.requeue_after, drift.look_again, look_again(serving.sleep, deployment, status), ends)
    again = min((w for w in waits if w is not None), default=None)
    return Plan(
        actions=(
            *record_actions(deployment, obs.record, hashes),
            *_kept(obs, serving),
            *(decision.actions if not serving.taken else ()),
            *drift.actions,
        ),
        status=status,
        events=(*_events(serving, status, problem), *drift.events),
        status_first=takes_away(deployment, rollout),
        requeue_after=0.0 if differs(deployment, rollout, obs.record, hashes) else again,
    )


def _kept(obs: ModelDeploymentObservation, serving: Serving) -> tuple[Action, ...]:
    """The evidence of a new look."""
    found = None if serving.taken else serving.decision.look
    record = found.record if found is not None and not found.stored else None
    return evidence_actions(serving.seen.deployment, obs.evidence, record)


def _drift(obs: ModelDeploymentObservation, serving: Serving, rollout: RolloutStatus) -> Drift:
    """What is known of stable over days; of a deployment whose name is somebody else's what was known before."""
    if serving.taken:
        return Drift(serving.seen.deployment.status.drift)
    look = serving.decision.look
    return plan_drift(serving.seen, obs.gates, rollout, look.record if look is not None else serving.seen.evidence)


def _serving(obs: ModelDeploymentObservation, deployment: ModelDeploymentResource) -> Serving:
    endpoints = ready_endpoints(
        deployment, obs.adapters, obs.base_models, obs.pods, told_lacking(deployment, obs.applied)
    )
    ready = {revision: len(addresses) for revision, addresses in endpoints.items()}
    states = revision_states(obs, deployment)
    sleep = next_sleep(obs, deployment, states, ready)
    on_demand = sleepers(deployment, obs.base_models) if sleep.idle_since or sleep.waking_since else ()
    seen = _seen(obs, deployment, states, ready, frozenset(on_demand))
    decision = decide(seen)
    split = decision.split
    taken = _model_name_taken(obs, deployment)
    if taken:
        split = Split(split.stable, dict.fromkeys(split.weights, 0), split.withheld, 100)
    return Serving(
        seen=seen,
        split=split,
        taken=taken,
        applied=_applied(obs, deployment, split, served_of(states, fault_of(deployment.metadata.annotations))),
        decision=decision,
        sleep=sleep,
    )


def _seen(
    obs: ModelDeploymentObservation,
    deployment: ModelDeploymentResource,
    states: tuple[RevisionState, ...],
    ready: Mapping[str, int],
    on_demand: frozenset[str],
) -> Seen:
    """What the rollout is decided from; gateways are asked for the weights that the stored status gives."""
    hashes = content_hashes(states, fault_of(deployment.metadata.annotations))
    takers = {name for name, number in ready.items() if number} | on_demand
    before = still_about(remembered(deployment, obs.record, hashes), hashes, takers)
    stored = in_force(deployment.status.rollout, hashes, takers, progressive=deployment.spec.progressive)
    split = effective(deployment.spec, ready, stable=stored.stable, allowed=stored.allowed, on_demand=on_demand)
    contents = served_of(states, fault_of(deployment.metadata.annotations))
    applied = _applied(obs, deployment, split, contents)
    return Seen(
        deployment=deployment,
        before=before,
        states={s.revision.name: s for s in states},
        hashes=hashes,
        ready=ready,
        confirmed={revision: weight for revision, weight in split.weights.items() if applied[revision]},
        now=obs.now,
        on_demand=on_demand,
        served=split.weights,
        answers=_answers(obs, deployment, contents),
        evidence=evidence_of(obs.evidence, deployment),
        demand=obs.demand,
        gates=obs.gates if under_way(deployment.status.rollout) else None,
        record=obs.record,
        settings=obs.settings,
        checks=obs.checks,
    )


def _answers(
    obs: ModelDeploymentObservation, deployment: ModelDeploymentResource, contents: Mapping[str, str]
) -> Answers:
    analysis, meta = deployment.spec.analysis, deployment.metadata
    if analysis is None:
        return Answers()
    return obs.answers.of(meta.key, meta.uid, analysis.slo, contents)


def _model_name_taken(obs: ModelDeploymentObservation, deployment: ModelDeploymentResource) -> Problem | None:
    others = [c for c in obs.claims if c.metadata.key != deployment.metadata.key]
    owner = owners([*others, deployment])[deployment.model_name]
    if owner == deployment.metadata.key:
        return None
    return Problem(
        Reason.MODEL_NAME_TAKEN,
        f"model name {deployment.model_name} belongs to the older ModelDeployment {owner[0]}/{owner[1]}",
    )


def _applied(
    obs: ModelDeploymentObservation, deployment: ModelDeploymentResource, split: Split, contents: Mapping[str, str]
) -> dict[str, bool]:
    """Per revision: every gateway says that it gives this weight to these contents."""
    key = "/".join(deployment.metadata.key)
    told = [r.deployments.get(key) for r in obs.applied]
    same = [d for d in told if d is not None and d.uid == deployment.metadata.uid]
    everyone = bool(same) and len(same) == len(told) and len(same) >= obs.gateways_expected and not obs.unreachable
    return {
        revision: everyone
        and all(
            d.weights.get(revision, 0) == weight
            # an older gateway does not say of which contents it speaks
            and (not weight or d.contents.get(revision, contents[revision]) == contents[revision])
            for d in same
        )
        for revision, weight in split.weights.items()
    }


def _unapplied(obs: ModelDeploymentObservation, serving: Serving) -> Problem | None:
    """Why gateways do not (provably) serve these weights; nothing is asked of them for a name of somebody else."""
    if serving.taken or all(serving.applied.values()):
        return None
    if obs.unreachable:
        words = f"gateways {', '.join(sorted(obs.unreachable))} do not say what they serve"
        return Problem(Reason.GATEWAY_UNREACHABLE, words)
    if not obs.gateways_expected:
        return Problem(Reason.GATEWAY_UNREACHABLE, "no gateway is running")
    waiting = ", ".join(r for r, applied in serving.applied.items() if not applied)
    return Problem(Reason.APPLYING, f"not every gateway serves the weights of {waiting} yet")


def _accepted(rejected: Problem | None) -> Finding:
    if rejected:
        return Finding(type="Accepted", status="False", reason=rejected.reason, message=with_remedy(rejected))
    return Finding(type="Accepted", status="True", reason=Reason.ACCEPTED, message=Reason.ACCEPTED.doc)


def _available(serving: Serving, wrong: Problem | None, done: Problem) -> Finding:
    """Whether every request finds a pod, or one that is loaded for it."""
    split = serving.split
    if not split.unserved and not wrong and serving.sleep.idle_since:
        return Finding(type="Available", status="True", reason=done.reason, message=done.message)
    if not split.unserved:
        served = ", ".join(f"{r} {w} %" for r, w in split.weights.items() if w)
        return Finding(type="Available", status="True", reason=Reason.AVAILABLE, message=served)
    if serving.taken or not any(split.weights.values()):
        found = wrong or Problem(Reason.NO_READY_ENDPOINT, "no pod serves any revision")
        return Finding(type="Available", status="False", reason=found.reason, message=with_remedy(found))
    words = f"{split.unserved} % of the requests are answered by nobody: stable revision {split.stable} has no pod"
    detail = serving.causes.get(split.stable)
    words = f"{words} ({named(detail)})" if detail else words
    return Finding(type="Available", status="False", reason=Reason.STABLE_NOT_READY, message=clipped(words))


def _traffic_applied(serving: Serving, unapplied: Problem | None) -> Finding:
    if serving.taken:
        return Finding(
            type="TrafficApplied", status="False", reason=serving.taken.reason, message=with_remedy(serving.taken)
        )
    if unapplied:
        return Finding(type="TrafficApplied", status="False", reason=unapplied.reason, message=with_remedy(unapplied))
    return Finding(type="TrafficApplied", status="True", reason=Reason.APPLIED, message=Reason.APPLIED.doc)


def _traffic(serving: Serving, causes: Mapping[str, Problem]) -> list[TrafficStatus]:
    spec = serving.seen.spec
    return [
        TrafficStatus(
            revision=name,
            spec_weight=spec.weight_of(name),
            weight=weight,
            verified=serving.applied[name],
            ready_endpoints=serving.seen.ready[name],
            withheld=_withheld(serving, name, causes.get(name)),
        )
        for name, weight in serving.split.weights.items()
    ]


def _withheld(serving: Serving, revision: str, unready: Problem | None) -> str | None:
    if serving.taken and serving.seen.spec.weight_of(revision):
        return named(serving.taken)
    if unready:
        return withheld_for(unready)
    work = serving.decision.work
    if work and work.reason is Reason.AWAITING_REPLICAS and revision == serving.decision.status.candidate:
        return named(work)
    reason = serving.split.withheld.get(revision)
    return f"{reason.value}: {reason.doc}" if reason else None


def _rollout(serving: Serving, served: Iterable[Served], now: str) -> RolloutStatus:
    """The decided status, with since when stable is; a deployment whose name is somebody else's stays where it was."""
    deployment, decided, split = serving.seen.deployment, serving.decision.status, serving.split
    if serving.taken:
        kept = serving.seen.before or RolloutStatus()
        gone = (
            "candidate",
            "weight",
            "target",
            "step",
            "position",
            "step_started_at",
            "waiting_since",
            "analysis",
            "gates",
        )
        return kept.model_copy(update={"phase": "Idle", **dict.fromkeys(gone)})
    if decided.stable is None or decided.stable not in split.weights:
        return decided
    whole = deployment.spec.weight_of(decided.stable) == 100 and split.weights[decided.stable] == 100
    since = stable_since(deployment, decided.stable, served, whole=whole, now=now)
    return decided.model_copy(update={"stable_since": since})


def _events(serving: Serving, status: ModelDeploymentStatus, problem: Problem | None) -> tuple[Event, ...]:
    """Told on a change of what is served only."""
    deployment = serving.seen.deployment
    before, meta = deployment.status, deployment.metadata
    about = ObjectReference(names.API_VERSION, "ModelDeployment", meta.namespace, meta.name, meta.uid)
    events: list[Event] = []
    old = {t.revision: t.weight for t in before.traffic}
    new = {t.revision: t.weight for t in status.traffic}
    changes = [f"{r} {old.get(r, 0)} → {new.get(r, 0)} %" for r in {**new, **old} if old.get(r, 0) != new.get(r, 0)]
    if changes:
        events.append(Event("Normal", Reason.WEIGHT_CHANGED, clipped(", ".join(changes)), about))
    was = before.rollout.stable if before.rollout else None
    now = status.rollout.stable if status.rollout else None
    if was is not None and now is not None and was != now and new.get(now) == 100:
        events.append(Event("Normal", Reason.PROMOTED, f"{now} serves all traffic and is stable, after {was}", about))
    if not serving.taken:
        events += [Event(kind, reason, words, about) for kind, reason, words in serving.decision.told]
    if status.idle_since and not before.idle_since and is_true(before.conditions, "Ready"):
        # one that only found no room has said so: it was asked for, and each retry would tell this again
        events.append(Event("Normal", Reason.IDLE, "nobody asks for it: what it needs goes until somebody does", about))
    events += stalled_event(before.conditions, problem, about)
    return tuple(events)
