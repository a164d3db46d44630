"""How stable is watched over days: `spec.rollout.drift`, and what came of it.

Drift is a word, never a deed: it changes no traffic and rejects nobody.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.analysis import Percent
from tuneyard.api.base import ApiModel
from tuneyard.api.lineage import Moment
from tuneyard.api.schema import Duration, Name, Text, cel

DEFAULT_EVERY = "24h"
DEFAULT_MAX_DROP = 0.05
DEFAULT_DAYS = 7
DEFAULT_MAX_RISE = "5%"
DEFAULT_MIN_ANSWERS = 50


class EvaluationDrift(ApiModel):
    """An evaluation of `rollout.gates` is run again for stable, and held against its first result."""

    gate: Annotated[Name, Field(description="An entry of rollout.gates with an evaluation.")]
    every: Annotated[
        Duration | None,
        Field(
            description="How often, 10m at least; above 1h in whole hours. Default 24h.",
            json_schema_extra={
                "x-kubernetes-validations": [
                    cel(
                        "duration(self) >= duration('10m')",
                        "drift.evaluation.every must be 10m or longer: each run asks stable every prompt",
                    )
                ]
            },
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        Field(ge=0.001, le=1, description="How far a mean score may be below the first one. Default 0.05."),
    ] = None


class FeedbackDrift(ApiModel):
    """Feedback on stable's answers in the last days is held against that in its first days."""

    days: Annotated[
        int | None, Field(ge=1, le=14, description="Whole days, in UTC, of each of the two. Default 7.")
    ] = None
    max_rise: Annotated[
        Percent | None,
        Field(description="By how many points of a hundred the share of bad answers may rise. Default 5%."),
    ] = None
    min_answers: Annotated[
        int | None,
        Field(ge=10, le=1_000_000, description="Answers with feedback that each of the two needs. Default 50."),
    ] = None


class DriftSpec(ApiModel):
    """What of stable is watched over days."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "has(self.evaluation) || has(self.feedback)",
                    "rollout.drift must name what is watched: evaluation, feedback or both",
                )
            ]
        }
    )

    evaluation: Annotated[EvaluationDrift | None, Field(description="What it answers to the same prompts.")] = None
    feedback: Annotated[FeedbackDrift | None, Field(description="What users think of its answers.")] = None


DRIFT_RULES = [
    cel(
        "!has(self.drift) || !has(self.drift.evaluation) || (has(self.gates) && self.gates.exists(g, "
        "g.name == self.drift.evaluation.gate && has(g.evaluation)))",
        "rollout.drift.evaluation.gate must be the name of an entry of rollout.gates with an evaluation",
    ),
    cel(
        "!has(self.drift) || !has(self.drift.feedback) || (has(self.analysis) && has(self.analysis.slo.feedback))",
        "rollout.drift.feedback needs rollout.analysis.slo.feedback, for example 5%: else no feedback is counted",
    ),
    cel(
        "!has(self.drift) || (has(self.mode) && self.mode == 'Progressive')",
        "rollout.drift needs rollout.mode Progressive",
    ),
]
"""Of rollout: each thing that is watched needs what it comes from."""


class EvaluationDriftStatus(ApiModel):
    """Where the evaluation of stable stands."""

    key: Annotated[str, Field(max_length=63, description="Hash of stable's contents and of the evaluation.")]
    state: Annotated[
        Literal["Waiting", "Running", "CannotRun"],
        Field(description="CannotRun: it is tried again; it says nothing of stable."),
    ]
    drifting: bool = False
    message: Annotated[Text, Field(description="What the last runs found, with the numbers.")] = ""
    trouble: Annotated[Text | None, Field(description="Why the last run found nothing.")] = None
    attempt: Annotated[int | None, Field(description="Which try of the run this is, or will be.")] = None
    started_at: Moment | None = None
    next_at: Annotated[Moment | None, Field(description="When it is looked at again, and run if it can be.")] = None


class FeedbackDriftStatus(ApiModel):
    """What feedback says of stable; another one each day."""

    drifting: bool = False
    message: Text = ""


class DriftStatus(ApiModel):
    """What is known of stable's drift."""

    evaluation: EvaluationDriftStatus | None = None
    feedback: FeedbackDriftStatus | None = None


class FeedbackSpan(ApiModel):
    """Feedback of some days. Days are like 2026-01-31, in UTC; both belong to it."""

    first: str
    last: str
    counts: tuple[int, int, int, int] = (0, 0, 0, 0)
    """As in api/documents.py: judged, bad, after a bad one, and of them bad again."""


class KeptFeedback(ApiModel):
    """Feedback on the answers of these contents while they were stable."""

    content_hash: str
    revision: str
    baseline: FeedbackSpan | None = None
    days: dict[str, tuple[int, int, int, int]] = {}
    """By day; a day without feedback is missing."""
    drifting: bool = False
    """What the days said that were kept when feedback was counted last."""
