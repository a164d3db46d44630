"""How a candidate gets its traffic: `spec.rollout`, where it stands (`status.rollout`), and what outlives the object.

Three words (docs/explanation/rollout.md): the *ceiling* is the spec's weight and stands in Git, the *position* is in the
status and is worth nothing without it, the *verdict* is keyed by contents and outlives the object in a ConfigMap.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.analysis import AnalysisSpec
from tuneyard.api.base import ApiModel
from tuneyard.api.drift import DRIFT_RULES, DriftSpec
from tuneyard.api.gates import MAX_GATES, Gate, GateStatus
from tuneyard.api.lineage import Moment
from tuneyard.api.promchecks import MAX_CHECKS, CheckStatus
from tuneyard.api.schema import Duration, Text, cel

Phase = Literal["Idle", "Gating", "Progressing", "Paused", "Inconclusive", "Baking", "Completed", "RolledBack"]
MAX_VERDICTS = 16
MAX_HISTORY = 20
MAX_COMMANDS = 16
Token = Annotated[str, Field(max_length=63)]


class Step(ApiModel):
    """One weight on the way up."""

    weight: Annotated[
        int, Field(ge=1, le=100, description="Percent that the candidate may get; its spec weight stays the ceiling.")
    ]
    hold: Annotated[
        Duration | None,
        Field(
            description="How long every gateway serves this weight before the next step. Default: no longer than that."
        ),
    ] = None


class RolloutSpec(ApiModel):
    """How weight is given to a candidate."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.mode) || self.mode != 'Progressive' || (has(self.steps) && self.steps.size() > 0)",
                    "rollout.mode Progressive needs rollout.steps, for example [{weight: 1, hold: 5m}, {weight: 25, hold: "
                    "15m}]",
                ),
                *DRIFT_RULES,
            ]
        }
    )

    mode: Annotated[
        Literal["Manual", "Progressive"] | None,
        Field(description="Manual (default): spec weights apply at once. Progressive: candidates climb by steps."),
    ] = None
    steps: Annotated[
        list[Step] | None,
        Field(
            max_length=20,
            description="In mode Progressive, ascending; after the last one the candidate gets its spec weight.",
            json_schema_extra={
                "x-kubernetes-list-type": "atomic",
                "x-kubernetes-validations": [
                    cel(
                        "self.map(s, s.weight).isSorted() && self.all(s, self.exists_one(t, t.weight == s.weight))",
                        "rollout.steps must have ascending weights: sort them and give each weight once",
                        message_expression="'rollout.steps must have ascending weights, they are %s: sort them and give each "
                        "weight once'.format([self.map(s, s.weight)])",
                    )
                ],
            },
        ),
    ] = None
    progress_deadline: Annotated[
        Duration | None,
        Field(
            description="In mode Progressive, how long a candidate may be without a ready pod while stable has one, before "
            "it is rejected. Default 1h."
        ),
    ] = None
    bake_time: Annotated[
        Duration | None,
        Field(
            description="In mode Progressive, how long a candidate with all traffic may still be rolled back by itself, "
            "before it becomes the stable revision. Default 0s."
        ),
    ] = None
    keep_warm: Annotated[
        int | None,
        Field(
            ge=0,
            le=16,
            description="In mode Progressive, how many of the revisions that were stable before stay loaded at weight 0. "
            "Default: all that are listed.",
        ),
    ] = None
    analysis: Annotated[
        AnalysisSpec | None,
        Field(description="In mode Progressive, what the candidate's answers are judged by. Default: by nothing."),
    ] = None
    gates: Annotated[
        list[Gate] | None,
        Field(
            max_length=MAX_GATES,
            description="In mode Progressive, what a candidate has to pass before the first step, in this order.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = None
    drift: Annotated[
        DriftSpec | None,
        Field(description="In mode Progressive, what of stable is watched over days. It changes no traffic."),
    ] = None
    paused: Annotated[bool | None, Field(description="In mode Progressive, no step is taken while true.")] = None
    retry_token: Annotated[
        Token | None, Field(description="Another text than before: rejected revisions are tried once more.")
    ] = None


class Verdict(ApiModel):
    """Contents that get no traffic, under whatever name."""

    revision: str
    content_hash: str
    reason: str
    evidence: Annotated[Text, Field(description="What was seen, in one sentence with its numbers.")] = ""
    at: Moment
    retry_token: Annotated[Token | None, Field(description="spec.rollout.retryToken at that time.")] = None


class Outcome(ApiModel):
    """One line of the history: who became stable, who was rejected."""

    revision: str
    content_hash: str
    outcome: Literal["Stable", "Rejected"]
    at: Moment
    reason: Annotated[str | None, Field(description="Of a rejection.")] = None


class LastCommand(ApiModel):
    """The answer to the command that was given last by the annotation tuneyard.dev/command."""

    id: Token
    action: str
    revision: str | None = None
    accepted: bool
    message: Text
    at: Moment


class ObjectiveCounts(ApiModel):
    """Answers of both revisions that were judged by one objective, in the same time."""

    objective: str
    candidate_judged: int
    candidate_bad: int
    stable_judged: int
    stable_bad: int


class AnalysisStatus(ApiModel):
    """What the candidate's answers say of it; written every few seconds at most."""

    outcome: Literal["Pass", "Reject", "Continue", "NoTraffic", "MetricsUnavailable"]
    sentence: Annotated[Text, Field(description="Why, with its numbers.")]
    stable_broken: Annotated[
        Text | None, Field(description="How stable itself breaks an objective; no step is taken meanwhile.")
    ] = None
    objectives: Annotated[list[ObjectiveCounts] | None, Field(max_length=8)] = None
    checks: Annotated[list[CheckStatus] | None, Field(max_length=MAX_CHECKS, description="Of Prometheus.")] = None
    since: Annotated[Moment, Field(description="When the candidate's traffic, and with it the evidence, began.")]
    inconclusive_since: Annotated[
        Moment | None,
        Field(description="Since when the step's hold is over and the evidence, though gateways tell it, not enough."),
    ] = None
    halted_since: Annotated[
        Moment | None, Field(description="Since when that time does not run; it comes later by as long.")
    ] = None


class RolloutStatus(ApiModel):
    """Where the rollout stands."""

    phase: Phase = "Idle"
    stable: str | None = None
    stable_since: Annotated[
        Moment | None, Field(description="When stable first got all traffic, since it became the stable one.")
    ] = None
    candidate: str | None = None
    weight: Annotated[int | None, Field(description="The candidate's effective weight.")] = None
    target: Annotated[int | None, Field(description="The candidate's spec weight.")] = None
    step: Annotated[int | None, Field(description="Index in spec.rollout.steps; their number: past all of them.")] = (
        None
    )
    position: Annotated[str | None, Field(description="The same for people, for example 2/4.")] = None
    step_started_at: Annotated[
        Moment | None, Field(description="Since when every gateway serves the step's weight; none: not yet.")
    ] = None
    promoted_to: Annotated[
        dict[str, int] | None,
        Field(
            description="Per revision in `allowed` that a command promoted, the spec weight that stood then, as long as "
            "it is more than the step's weight; 100: it is past all steps by command.",
            json_schema_extra={"x-kubernetes-map-type": "atomic"},
        ),
    ] = None
    waiting_since: Annotated[
        Moment | None, Field(description="Since when the candidate has had no ready pod, while stable had one.")
    ] = None
    analysis: AnalysisStatus | None = None
    paused: Annotated[bool | None, Field(description="By a command.")] = None
    allowed: Annotated[
        dict[str, int] | None,
        Field(
            description="Per revision, the weight above which gateways may not go; 0: it has a verdict. One that is "
            "missing gets its spec weight in mode Manual, and nothing in mode Progressive.",
            # else server-side apply makes null of a map whose last entry goes, and the API server refuses that
            json_schema_extra={"x-kubernetes-map-type": "atomic"},
        ),
    ] = None
    contents: Annotated[
        dict[str, str] | None,
        Field(
            description="Per revision in `allowed`, stable and the candidate, the hash of what it would serve; with other "
            "contents under its name it begins anew.",
            json_schema_extra={"x-kubernetes-map-type": "atomic"},
        ),
    ] = None
    gates: Annotated[list[GateStatus] | None, Field(max_length=MAX_GATES, description="The candidate's.")] = None
    gates_since: Annotated[
        Moment | None, Field(description="The last retry: what gates found until then does not count.")
    ] = None
    verdicts: Annotated[list[Verdict] | None, Field(max_length=MAX_VERDICTS)] = None
    history: Annotated[list[Outcome] | None, Field(max_length=MAX_HISTORY, description="Oldest first.")] = None
    last_command: LastCommand | None = None
    command_ids: Annotated[
        list[Token] | None,
        Field(max_length=MAX_COMMANDS, description="Of the last commands, the newest last: none of them acts again."),
    ] = None

    def rejects(self, content_hash: str | None, revision: str | None = None) -> Verdict | None:
        """The verdict on these contents, if there is one; while they are not known, on the name of the revision."""
        if content_hash is None:
            return next((v for v in self.verdicts or () if v.revision == revision), None)
        return next((v for v in self.verdicts or () if v.content_hash == content_hash), None)


class StableContents(ApiModel):
    """Who was stable, by contents."""

    revision: str
    content_hash: str


class RolloutRecord(ApiModel):
    """What outlives the ModelDeployment and its status: a ConfigMap `<deployment>-verdicts`, key `record.json`."""

    version: Literal[1] = 1
    deployment: str
    stable: StableContents | None = None
    paused: bool | None = None
    gates_since: Moment | None = None
    verdicts: list[Verdict] = []
    history: list[Outcome] = []
    last_command: LastCommand | None = None
    command_ids: list[Token] = []
