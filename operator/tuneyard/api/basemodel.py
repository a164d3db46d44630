"""BaseModel: a base's bytes and how its shared pool serves them.

The class is named BaseModelResource because pydantic owns the name BaseModel.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.autoscaling import ScalingStatus
from tuneyard.api.base import ApiModel
from tuneyard.api.build import MAY_CHANGE, BaseSource, Build
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.conditions import Condition
from tuneyard.api.lineage import LINEAGE_STAYS, LineageField, Moment
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.schema import Digest, Text, cel, unchanged
from tuneyard.api.serving import ServingSpec
from tuneyard.api.sources import PINNED, PINNED_IMAGE


def _source_stays() -> str:
    """CEL: the source is what it was, but for how the Jobs of a build run."""
    kinds = unchanged(*(f"source.{_word(BaseSource, f)}" for f in BaseSource.model_fields if f != "build"))
    made = unchanged(*(f"source.build.{_word(Build, f)}" for f in Build.model_fields if f not in MAY_CHANGE))
    built = "has(self.source.build)"
    return f"{kinds} && {built} == has(oldSelf.source.build) && (!{built} || ({made}))"


def _word(model: type[ApiModel], field: str) -> str:
    return model.model_fields[field].alias or field


class BaseModelSpec(ApiModel):
    """What is served and how."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    f"{unchanged('digest')} && {_source_stays()}",
                    "a BaseModel is immutable except serving, lineage.evals and how a build's Jobs run (resources, "
                    "nodeSelector, tolerations, timeout, retries, scratch): create a new BaseModel (for example with the "
                    "version in its name)",
                ),
                PINNED,
                PINNED_IMAGE,
                cel(
                    "!has(self.serving) || !has(self.serving.cache) || !has(self.serving.cache.prewarm) || "
                    "has(self.source.huggingFace) || has(self.source.s3) || (has(self.source.build) && "
                    "!has(self.source.build.output.volume))",
                    "serving.cache.prewarm fetches what comes over the network: remove it, a base on a volume or in an "
                    "image needs no cache",
                ),
                *LINEAGE_STAYS,
            ]
        }
    )

    source: BaseSource
    digest: Annotated[
        Digest | None,
        Field(description="The artifact's digest; pods refuse other bytes. Default: pinned when first read."),
    ] = None
    serving: ServingSpec | None = None
    lineage: LineageField = None


class PoolStatus(ApiModel):
    """One pool of this base."""

    name: str
    deployment: Annotated[str | None, Field(description="The ModelDeployment whose own pool it is; none: shared.")] = (
        None
    )
    replicas: int = 0
    ready_replicas: int = 0
    progress: Text | None = None
    asleep_since: Annotated[
        str | None,
        Field(description="Since when it has no pods because nobody asks (serving.scaleToZeroAfter); none: awake."),
    ] = None
    wanted_replicas: Annotated[
        int | None, Field(description="With serving.autoscaling: pods that the load asks for, within its bounds.")
    ] = None
    reason: Annotated[Text | None, Field(description="Why so many.")] = None
    scaling: ScalingStatus | None = None
    makes_room: Annotated[
        list[str] | None,
        Field(description="ModelDeployments that go idle early, because requests wait for adapters without a place."),
    ] = None


class BaseModelStatus(ApiModel):
    """What is known of the base and its pools."""

    observed_generation: int | None = None
    digest: str | None = None
    size_bytes: int | None = None
    architecture: str | None = None
    engine: str | None = None
    tensor_parallel_size: int | None = None
    replicas: Annotated[str | None, Field(description="Ready and wanted pods over all pools, for example 2/2.")] = None
    progress: Text | None = None
    build: Annotated[BuildStatus | None, Field(description="Of a source `build`: how far it is, and its records.")] = (
        None
    )
    prewarmed: Annotated[
        str | None,
        Field(
            description="With serving.cache.prewarm: nodes whose cache holds the base and the pool's remote adapters, of "
            "those chosen, for example 2/3."
        ),
    ] = None
    prewarm_progress: Annotated[
        Text | None, Field(description="How far the other nodes are, or what keeps them from it.")
    ] = None
    promoted_at: Annotated[
        Moment | None,
        Field(
            description="When a ModelDeployment first gave the base itself, without an adapter, all traffic as its stable "
            "revision; kept for ever."
        ),
    ] = None
    promoted_by: Annotated[str | None, Field(description="By which one: ModelDeployment/revision.")] = None
    used_by: list[str] | None = None
    pools: list[PoolStatus] | None = None
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []


class BaseModelResource(ApiModel):
    """The whole object."""

    metadata: ObjectMeta
    spec: BaseModelSpec
    status: BaseModelStatus = BaseModelStatus()

    @property
    def pinned_digest(self) -> str | None:
        """The digest that pods must find: the spec's, or the one that the status has."""
        return self.spec.digest or self.status.digest
