"""What `tuneyard rollout status` and `tuneyard history` show, as values. Pure; `now` is an argument.

Rule: it says what the status says, and works out nothing but how long things take still.
"""

from __future__ import annotations

from datetime import datetime

from tuneyard.api.base import ApiModel
from tuneyard.api.conditions import find
from tuneyard.api.gates import Gate, GateStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import AnalysisStatus, LastCommand, Outcome, RolloutStatus, Verdict
from tuneyard.api.schema import seconds
from tuneyard.cli.driftview import drift_line
from tuneyard.planning.gatejudging import limits
from tuneyard.planning.rolloutposition import stays
from tuneyard.planning.timestamps import parsed_time, remaining


class StepView(ApiModel):
    """One step. `state`: done, now or ahead."""

    weight: int
    hold: str | None = None
    state: str


class SplitView(ApiModel):
    """What a revision gets of the traffic."""

    revision: str
    weight: int
    spec_weight: int
    verified: bool = False
    """Every gateway serves just that."""
    withheld: str | None = None


class GateView(ApiModel):
    """Where one gate of the candidate stands."""

    name: str
    state: str
    progress: str | None = None
    """How far it is; None: it does not run, or nobody has told."""
    numbers: str
    """Those that were measured against their limits; before there are any, the limits or what is waited for."""
    since: str | None = None
    """Since when it runs, or is over."""
    seconds: int | None = None
    """How long that is."""
    seconds_left: int | None = None
    """Until it is run again, where it could not run."""


class RolloutView(ApiModel):
    """Where a rollout stands."""

    namespace: str
    name: str
    mode: str
    phase: str
    stable: str | None = None
    stable_since: str | None = None
    candidate: str | None = None
    weight: int | None = None
    target: int | None = None
    position: str | None = None
    seconds_left: int | None = None
    """Until time alone lets it go on; None: it waits for something else."""
    paused_by: str | None = None
    steps: list[StepView] = []
    split: list[SplitView] = []
    gates: list[GateView] = []
    analysis: AnalysisStatus | None = None
    message: str = ""
    """What the Ready condition says."""
    drift: str | None = None
    """What the Drifting condition says."""
    verdicts: list[Verdict] = []
    last_command: LastCommand | None = None


class HistoryView(ApiModel):
    """Who was stable and who was rejected, the oldest first."""

    namespace: str
    name: str
    stable: str | None = None
    stable_since: str | None = None
    outcomes: list[Outcome] = []


def rollout_view(deployment: ModelDeploymentResource, now: datetime) -> RolloutView:
    """The rollout of one ModelDeployment."""
    rollout, spec = deployment.status.rollout or RolloutStatus(), deployment.spec.rollout
    paused_by = "spec.rollout.paused" if spec and spec.paused else "a command" if rollout.paused else None
    ready = find(deployment.status.conditions, "Ready")
    return RolloutView(
        namespace=deployment.metadata.namespace,
        name=deployment.metadata.name,
        mode="Progressive" if deployment.spec.progressive else "Manual",
        phase=rollout.phase,
        stable=rollout.stable,
        stable_since=rollout.stable_since,
        candidate=rollout.candidate,
        weight=rollout.weight,
        target=rollout.target,
        position=rollout.position,
        seconds_left=_seconds_left(deployment, rollout, now),
        paused_by=paused_by if deployment.spec.progressive else None,
        steps=_steps(deployment, rollout),
        split=[
            SplitView(
                revision=t.revision,
                weight=t.weight,
                spec_weight=t.spec_weight,
                verified=t.verified,
                withheld=t.withheld,
            )
            for t in deployment.status.traffic
            if t.weight or t.spec_weight
        ],
        gates=_gates(deployment, rollout, now),
        analysis=rollout.analysis,
        message=ready.message if ready else "no status yet: the operator has not seen it",
        drift=drift_line(deployment),
        verdicts=list(rollout.verdicts or ()),
        last_command=rollout.last_command,
    )


def _steps(deployment: ModelDeploymentResource, rollout: RolloutStatus) -> list[StepView]:
    spec = deployment.spec.rollout
    if spec is None or not deployment.spec.progressive:
        return []
    at = rollout.step

    def state(number: int) -> str:
        if at is None or number > at:
            return "ahead"
        return "now" if number == at else "done"

    return [StepView(weight=s.weight, hold=s.hold, state=state(n)) for n, s in enumerate(spec.steps or ())]


def _gates(deployment: ModelDeploymentResource, rollout: RolloutStatus, now: datetime) -> list[GateView]:
    spec = deployment.spec.rollout
    named = {g.name: g for g in (spec.gates if spec else None) or ()}
    return [_gate(state, named.get(state.name), now) for state in rollout.gates or ()]


def _gate(state: GateStatus, gate: Gate | None, now: datetime) -> GateView:
    since = state.ended_at or state.started_at
    began, again = parsed_time(since), parsed_time(state.retry_at)
    told = state.message.removeprefix(f"gate {state.name}: ")
    if not told and gate is not None:
        told = ", ".join(limits(gate))
    return GateView(
        name=state.name,
        state=state.state,
        progress=_progress(state, gate),
        numbers=told,
        since=since,
        seconds=max(0, int((now - began).total_seconds())) if began else None,
        seconds_left=max(0, int((again - now).total_seconds())) if again else None,
    )


def _progress(state: GateStatus, gate: Gate | None) -> str | None:
    if state.progress is None:
        return None
    what = " prompts" if gate and gate.evaluation else " requests to each" if gate else ""
    return f"{state.progress.done} of {state.progress.total}{what}"


def _seconds_left(deployment: ModelDeploymentResource, rollout: RolloutStatus, now: datetime) -> int | None:
    spec, since = deployment.spec.rollout, parsed_time(rollout.step_started_at)
    if (
        spec is None
        or since is None
        or rollout.step is None
        or rollout.phase not in ("Progressing", "Inconclusive", "Baking")
    ):
        return None
    hold = stays(spec, rollout.step)
    return max(0, int(remaining(since, seconds(hold), now))) if hold else None


def history_view(deployment: ModelDeploymentResource) -> HistoryView:
    """The history of one ModelDeployment."""
    rollout = deployment.status.rollout or RolloutStatus()
    return HistoryView(
        namespace=deployment.metadata.namespace,
        name=deployment.metadata.name,
        stable=rollout.stable,
        stable_since=rollout.stable_since,
        outcomes=list(rollout.history or ()),
    )


def summary(view: RolloutView) -> str | None:
    """One line for `tuneyard status`; None where nothing goes on that weights do not tell."""
    if view.mode == "Manual" or view.candidate is None:
        return None
    words = f"rollout: {view.candidate} has {view.weight} of {view.target} %"
    if view.position is not None:
        words += f", {view.position} steps done"
    if view.paused_by:
        return f"{words}, paused by {view.paused_by}"
    return f"{words}, {view.analysis.outcome}" if view.analysis is not None else words


def evidence_line(view: RolloutView) -> str:
    """One line of a live view where no terminal is."""
    words = summary(view) or f"rollout: {view.stable or 'nobody'} is stable"
    words = f"{words} ({view.phase})"
    open_ = next((g for g in view.gates if g.state not in ("Passed", "Skipped")), None)
    if view.phase == "Gating" and open_ is not None:
        return f"{words}: gate {open_.name} {open_.state}, {open_.progress or open_.numbers}"
    return f"{words}: {view.analysis.sentence}" if view.analysis is not None else words
