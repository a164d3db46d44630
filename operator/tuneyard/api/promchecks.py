"""Numbers of Prometheus that a candidate is judged by beside its answers: `spec.rollout.analysis.prometheus`.

A check is a query whose answer is one number, and the bounds of that number. Which server is asked the chart says and no
deployment: otherwise whoever creates one could make the operator send requests, and its token, anywhere.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import Duration, RevisionName, Text, cel

MAX_CHECKS = 8
DEFAULT_FAILURES = 3
DEFAULT_INTERVAL = 30
"""Seconds."""

Bound = Annotated[float, Field(allow_inf_nan=False)]


class PrometheusCheck(ApiModel):
    """One query and the bounds of its number."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "has(self.max) || has(self.min)",
                    "a check of analysis.prometheus needs a limit: set max or min, for example max: 0.2",
                ),
                cel(
                    "!has(self.max) || !has(self.min) || self.min <= self.max",
                    "min of a check of analysis.prometheus must not be above its max",
                ),
                cel(
                    "!has(self.interval) || (duration(self.interval) >= duration('5s') && duration(self.interval) <= "
                    "duration('1h'))",
                    "interval of a check of analysis.prometheus must be 5s to 1h",
                    field_path=".interval",
                ),
            ]
        }
    )

    name: Annotated[RevisionName, Field(description="What status and verdict call it.")]
    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            description="PromQL whose answer is a scalar, or a vector of one element. The words $candidate, $stable, "
            "$deployment and $namespace become the names; any other $ stays.",
        ),
    ]
    max: Annotated[Bound | None, Field(description="The number may not be above it.")] = None
    min: Annotated[Bound | None, Field(description="The number may not be below it.")] = None
    failures: Annotated[
        int | None,
        Field(
            ge=1,
            le=100,
            description="Evaluations in a row out of bounds that reject the candidate. Until then, no step is taken. "
            "Default 3.",
        ),
    ] = None
    interval: Annotated[Duration | None, Field(description="Between two evaluations; 5s to 1h. Default 30s.")] = None


class CheckStatus(ApiModel):
    """Where one check stands."""

    name: str
    value: Annotated[str | None, Field(description="The number of the last evaluation that gave one.")] = None
    limit: Annotated[str, Field(description="For example max 0.2.")]
    failures: Annotated[int, Field(description="Evaluations in a row that were out of bounds.")] = 0
    message: Text
