"""LoRAAdapter: one immutable version of a fine-tune, and where its files are."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.conditions import Condition
from tuneyard.api.lineage import LINEAGE_STAYS, LineageField, Moment
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.schema import Digest, ObjectName, Text, cel, unchanged
from tuneyard.api.sources import NO_IMAGE, PINNED, Source
from tuneyard.api.systemprompt import SystemPromptField


class LoRAAdapterSpec(ApiModel):
    """What the adapter is."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    unchanged("baseModel", "source", "digest", "systemPrompt"),
                    "a LoRAAdapter is immutable except lineage.evals: create a new LoRAAdapter (for example with the next version in its name) "
                    "and add a revision that names it",
                ),
                PINNED,
                NO_IMAGE,
                *LINEAGE_STAYS,
            ]
        }
    )

    base_model: ObjectName
    source: Source
    digest: Annotated[
        Digest | None,
        Field(description="The artifact's digest; pods refuse other bytes. Default: pinned when first read."),
    ] = None
    system_prompt: SystemPromptField = None
    lineage: LineageField = None


class LoRAAdapterStatus(ApiModel):
    """What the pods have found out about the adapter."""

    observed_generation: int | None = None
    digest: str | None = None
    engine_name: str | None = None
    rank: int | None = None
    target_modules: list[str] | None = None
    size_bytes: int | None = None
    size: Annotated[str | None, Field(description="sizeBytes for people, for example 3.5 MiB.")] = None
    loaded: Annotated[str | None, Field(description="Pods that serve it of pods that should, for example 3/3.")] = None
    progress: Annotated[Text | None, Field(description="How far pods are with fetching it, while they are.")] = None
    used_by: list[str] | None = None
    promoted_at: Annotated[
        Moment | None,
        Field(description="When a ModelDeployment first gave it all traffic as its stable revision; kept for ever."),
    ] = None
    promoted_by: Annotated[str | None, Field(description="By which one: ModelDeployment/revision.")] = None
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []


class LoRAAdapterResource(ApiModel):
    """The whole object."""

    metadata: ObjectMeta
    spec: LoRAAdapterSpec
    status: LoRAAdapterStatus = LoRAAdapterStatus()

    @property
    def pinned_digest(self) -> str | None:
        """The digest that pods must find: the spec's, or the one that the status has."""
        return self.spec.digest or self.status.digest

    @property
    def parent_name(self) -> str | None:
        """Name of the object that its lineage gives as its parent."""
        return self.spec.lineage.parent_name if self.spec.lineage else None
