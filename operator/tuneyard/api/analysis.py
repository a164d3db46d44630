"""What a candidate is judged by while it climbs: `spec.rollout.analysis`.

An answer is good or bad by each objective on its own. An objective that is not named is not looked at.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.promchecks import MAX_CHECKS, PrometheusCheck
from tuneyard.api.schema import Duration, cel

Percent = Annotated[str, Field(max_length=8, pattern=r"^(0\.[0-9]{0,2}[1-9]0{0,2}|[1-9][0-9]?(\.[0-9]{1,3})?)%$")]
"""Above 0: of no number of good answers it could be said that less than none will be bad."""
Latency = Annotated[str, Field(max_length=16, pattern=r"^[1-9][0-9]*(ms|s|m)$")]

DEFAULT_LATENCY_SHARE = 0.05
DEFAULT_MIN_REQUESTS = 300
DEFAULT_WARM_UP = 30
"""Seconds."""
DEFAULT_INCONCLUSIVE_DEADLINE = 3600
"""Seconds."""

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000}


class Slo(ApiModel):
    """What a good answer is."""

    error_rate: Annotated[
        Percent | None,
        Field(description="Share of answers that may be errors: status 500 and above, a stream that breaks off."),
    ] = None
    ttft: Annotated[
        Latency | None,
        Field(description="Time until the first token is sent to the client, of a streamed answer; for example 2s."),
    ] = None
    itl: Annotated[
        Latency | None,
        Field(description="Mean time between two tokens (chunks) of a streamed answer; for example 100ms."),
    ] = None
    e2e: Annotated[
        Latency | None, Field(alias="e2e", description="Time until the answer is whole; for example 30s.")
    ] = None
    feedback: Annotated[
        Percent | None, Field(description="Share of answers with feedback whose score may be below 0; for example 5%.")
    ] = None
    slow_share: Annotated[
        Percent | None,
        Field(description="Share of answers that may be slower than ttft, itl or e2e, of each. Default 5%."),
    ] = None


class AnalysisSpec(ApiModel):
    """How a candidate is judged against the stable revision."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.prometheus) || self.prometheus.size() == 0 || has(self.slo.errorRate) || "
                    "has(self.slo.ttft) || has(self.slo.itl) || has(self.slo.e2e) || has(self.slo.feedback)",
                    "analysis.prometheus comes beside objectives: name one in analysis.slo, for example errorRate: 1%",
                )
            ]
        }
    )

    slo: Annotated[Slo, Field(description="What a good answer is; objectives that are missing are not looked at.")]
    min_requests: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            description="Judged answers of the candidate that a promotion needs; a rejection may come much earlier. "
            "Default 300.",
        ),
    ] = None
    warm_up: Annotated[
        Duration | None,
        Field(
            description="How long after the candidate's first traffic latencies and numbers of `prometheus` do not "
            "count. Default 30s."
        ),
    ] = None
    on_inconclusive: Annotated[
        Literal["Hold", "Promote", "Rollback"] | None,
        Field(
            description="What happens when the hold of a step is over and the evidence has not been enough for "
            "inconclusiveDeadline. Default Hold."
        ),
    ] = None
    inconclusive_deadline: Annotated[
        Duration | None, Field(description="Counted from the end of the step's hold. Default 1h.")
    ] = None
    prometheus: Annotated[
        list[PrometheusCheck] | None,
        Field(
            max_length=MAX_CHECKS,
            description="Numbers of Prometheus that are looked at too, of the server that the chart names.",
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = None


def share(percent: str) -> float:
    """The share that a text such as `1%` or `0.5%` says; ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{1,2}(?:\.[0-9]{1,3})?)%", percent)
    if match is None:
        raise ValueError(f"{percent!r} is not a share: write a number below 100 and %, for example 1%")
    return float(match[1]) / 100


def milliseconds(latency: str) -> int:
    """Milliseconds of a text such as `300ms` or `2s`; ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+)(ms|s|m)", latency)
    if match is None:
        raise ValueError(f"{latency!r} is not a time: write a number and ms, s or m, for example 300ms")
    return int(match[1]) * _MILLISECONDS[match[2]]
