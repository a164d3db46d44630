"""The `serving.autoscaling` block: how many replicas a pool has, by what is asked of it; and what is kept of that."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.lineage import Moment
from tuneyard.api.schema import Duration, cel

DEFAULT_DOWN_WINDOW = "5m"
DEFAULT_UP_WINDOW = "0s"

Latency = Annotated[str, Field(max_length=16, pattern=r"^[1-9][0-9]*(ms|s|m)$")]
Money = Annotated[float, Field(ge=0.0001, le=1_000_000)]


class TtftTarget(ApiModel):
    """Time to the first token of streams, as gateways measure it."""

    percentile: Annotated[int, Field(ge=50, le=99, description="Which percentile is held against max.")] = 95
    max: Annotated[Latency, Field(description="For example 2s or 800ms.")]


class AutoscalingTargets(ApiModel):
    """What a replica should have to do. Of several targets the one that needs most replicas decides."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "has(self.waitingRequests) || has(self.inFlightRequests) || has(self.kvCacheUtilization) || "
                    "has(self.ttft) || has(self.tokensPerSecond)",
                    "autoscaling.targets needs at least one target, for example inFlightRequests: 16",
                )
            ]
        }
    )

    in_flight_requests: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="Requests under way per replica, running or queued, as gateways count them. Proportional, so it "
            "scales both ways at once: the target to begin with.",
        ),
    ] = None
    waiting_requests: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="Requests per replica that wait in the engines' queues, or at gateways. Says when there are too "
            "few replicas, and not how many would do: replicas are taken back one at a time.",
        ),
    ] = None
    kv_cache_utilization: Annotated[
        int | None,
        Field(ge=1, le=100, description="Percent of the engines' KV cache in use, the mean over replicas."),
    ] = None
    ttft: Annotated[
        TtftTarget | None,
        Field(description="Time to the first token. As waitingRequests, it says only when there are too few replicas."),
    ] = None
    tokens_per_second: Annotated[
        int | None,
        Field(
            ge=1,
            le=10_000_000,
            description="Generated tokens per second and replica. Below what a replica can do, or it is never reached.",
        ),
    ] = None


class CostCeiling(ApiModel):
    """What the pool may cost at most; replicas that would cost more are not asked for."""

    per_hour: Annotated[Money, Field(description="Of the whole pool, in any one currency.")]
    per_replica_hour: Annotated[Money, Field(description="Of one replica with all its GPUs, in the same currency.")]


class ScalingRules(ApiModel):
    """How fast it goes in one direction."""

    stabilization_window: Annotated[
        Duration | None,
        Field(description="How long the load has to ask for it. Default: 0s for scaleUp, 5m for scaleDown."),
    ] = None
    max_step: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="Replicas at a time: for scaleUp in 15 s (default: as many as there are, 4 at least), for "
            "scaleDown in one window (default: all that are not needed).",
        ),
    ] = None


class Autoscaling(ApiModel):
    """How many replicas a pool has, by what all ModelDeployments that share it are asked together."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "has(self.external) && self.external ? !(has(self.minReplicas) || has(self.maxReplicas) || "
                    "has(self.targets) || has(self.costCeiling) || has(self.scaleUp) || has(self.scaleDown)) : "
                    "has(self.maxReplicas) && has(self.targets)",
                    "autoscaling needs maxReplicas and targets; with external: true it takes nothing else, because "
                    "somebody else's autoscaler decides",
                ),
                cel(
                    "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
                    "autoscaling.minReplicas may not be above maxReplicas",
                ),
                cel(
                    "!has(self.costCeiling) || self.costCeiling.perReplicaHour * "
                    "double(has(self.minReplicas) && self.minReplicas > 1 ? self.minReplicas : 1) "
                    "<= self.costCeiling.perHour",
                    "autoscaling.costCeiling.perHour does not pay for minReplicas (1 at least): raise it, or lower "
                    "minReplicas",
                ),
            ]
        }
    )

    min_replicas: Annotated[
        int | None,
        Field(
            ge=0,
            le=1000,
            description="Default 1. With 0 the pool has 1 at least while it is awake, and none when nobody has asked "
            "for scaleToZeroAfter.",
        ),
    ] = None
    max_replicas: Annotated[int | None, Field(ge=1, le=1000)] = None
    targets: AutoscalingTargets | None = None
    cost_ceiling: CostCeiling | None = None
    scale_up: ScalingRules | None = None
    scale_down: ScalingRules | None = None
    external: Annotated[
        bool | None,
        Field(
            description="Leave the Deployment's replicas to somebody else, for example a HorizontalPodAutoscaler or KEDA "
            "(tuneyard export hpa). 1 at least: no request is held for a pool that has none."
        ),
    ] = None


class Peak(ApiModel):
    """What was asked for in one part of the window."""

    at: Moment
    """The end of that part."""
    replicas: int


class ScalingStatus(ApiModel):
    """What has to be remembered between two decisions: another operator goes on from here."""

    since: Annotated[Moment | None, Field(description="When wantedReplicas was changed last.")] = None
    from_replicas: Annotated[int | None, Field(description="How many were wanted before that.")] = None
    limit: Annotated[
        Literal["MaxReplicas", "CostCeiling"] | None,
        Field(description="What keeps it from having as many replicas as the load asks for; none: nothing."),
    ] = None
    higher_since: Annotated[
        Moment | None, Field(description="Since when the load asks for more (scaleUp.stabilizationWindow).")
    ] = None
    lower_since: Annotated[Moment | None, Field(description="Since when it asks for less.")] = None
    peaks: Annotated[
        list[Peak] | None, Field(max_length=16, description="The most that it asked for, in the window of scaleDown.")
    ] = None
    sustained: Annotated[
        float | None,
        Field(
            description="Requests under way per replica at which waitingRequests or ttft was missed last: with fewer, "
            "replicas can be taken back."
        ),
    ] = None
    sustained_at: Moment | None = None
