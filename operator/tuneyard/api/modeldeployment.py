"""ModelDeployment: a model name that clients use, its named immutable revisions, and the traffic each gets."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.analysis import AnalysisSpec
from tuneyard.api.base import ApiModel
from tuneyard.api.conditions import Condition
from tuneyard.api.drift import DriftStatus
from tuneyard.api.external import ExternalSpec
from tuneyard.api.lineage import Moment
from tuneyard.api.metadata import ObjectMeta
from tuneyard.api.mirror import MirrorSpec, MirrorStatus, mirror_rules
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.api.routing import Routing
from tuneyard.api.schema import ObjectName, RevisionName, Text, cel, exactly_one, unchanged
from tuneyard.api.serving import ServingSpec
from tuneyard.api.systemprompt import SystemPrompt


class Revision(ApiModel):
    """One thing that may be served under the model name; its contents never change under its name."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    # an external one's own rule says what of it may change
                    unchanged("baseModel", "adapter", "serving") + " && has(self.external) == has(oldSelf.external)",
                    "a revision's contents are immutable; add a revision under a new name and move traffic to it",
                    message_expression="'revision ' + self.name + ' is immutable: add a revision under a new name and move "
                    "traffic to it'",
                ),
                exactly_one("a revision", "baseModel", "external"),
                cel(
                    "!has(self.external) || (!has(self.adapter) && !has(self.serving))",
                    "an external revision has no pods: remove adapter and serving from it",
                ),
            ]
        }
    )

    name: RevisionName
    base_model: Annotated[
        ObjectName, Field(exclude_if=lambda name: not name, description="The BaseModel, unless it is served elsewhere.")
    ] = ""
    """Empty for an external one."""
    adapter: Annotated[ObjectName | None, Field(description="A LoRAAdapter; none: the base itself.")] = None
    serving: Annotated[ServingSpec | None, Field(description="Pods of its own for this revision.")] = None
    external: Annotated[
        ExternalSpec | None, Field(description="An API that serves it, in place of pods of this cluster.")
    ] = None

    @property
    def system_prompt_of_its_own(self) -> SystemPrompt | None:
        """The one of an external revision; others have their adapter's."""
        return self.external.system_prompt if self.external else None


class TrafficTarget(ApiModel):
    """The share of requests a revision is meant to get."""

    revision: RevisionName
    weight: Annotated[int, Field(ge=0, le=100)]


class ModelDeploymentSpec(ApiModel):
    """What clients can ask for, and how requests are shared."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.traffic.all(t, self.revisions.exists(r, r.name == t.revision))",
                    "every traffic.revision must be listed in spec.revisions",
                    message_expression="'traffic names revision %s, which is not in spec.revisions %s: add the revision or "
                    "correct the name'.format([self.traffic.map(t, t.revision).filter(n, !self.revisions.exists(r, r.name "
                    "== n))[0], self.revisions.map(r, r.name)])",
                    field_path=".traffic",
                ),
                cel(
                    "(!has(self.serving) || !has(self.serving.cache) || !has(self.serving.cache.prewarm)) && "
                    "self.revisions.all(r, !has(r.serving) || !has(r.serving.cache) || !has(r.serving.cache.prewarm))",
                    "serving.cache.prewarm belongs to a base model: set it in spec.serving of the BaseModel",
                ),
                *mirror_rules(),
            ]
        }
    )

    model_name: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
            description="What clients send as model. Default: metadata.name.",
        ),
    ] = None
    revisions: Annotated[
        list[Revision],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    traffic: Annotated[
        list[TrafficTarget],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["revision"],
                "x-kubernetes-validations": [
                    cel(
                        "self.map(t, t.weight).sum() == 100",
                        "traffic weights must sum to 100",
                        message_expression="'traffic weights must sum to 100, they sum to "
                        "%d'.format([self.map(t, t.weight).sum()])",
                    )
                ],
            },
        ),
    ]
    rollout: RolloutSpec | None = None
    routing: Routing | None = None
    mirror: Annotated[
        MirrorSpec | None, Field(description="Copies of requests for another revision, whose answers nobody gets.")
    ] = None
    serving: Annotated[ServingSpec | None, Field(description="Pods of its own for this deployment.")] = None

    @property
    def progressive(self) -> bool:
        """Whether candidates climb by steps."""
        return self.rollout is not None and self.rollout.mode == "Progressive"

    @property
    def analysis(self) -> AnalysisSpec | None:
        """What candidates' answers are judged by, if the spec says so."""
        return self.rollout.analysis if self.rollout is not None else None

    def weight_of(self, revision: str) -> int:
        """The spec weight of a revision, 0 where traffic does not name it."""
        return next((t.weight for t in self.traffic if t.revision == revision), 0)


class TrafficStatus(ApiModel):
    """What a revision really gets."""

    revision: str
    spec_weight: int
    weight: int
    verified: Annotated[bool, Field(description="Every gateway has applied this weight.")] = False
    ready_endpoints: int = 0
    withheld: Annotated[Text | None, Field(description="Why weight is below specWeight.")] = None


class ModelDeploymentStatus(ApiModel):
    """What is really served."""

    observed_generation: int | None = None
    model_name: str | None = None
    url: str | None = None
    reason: Annotated[str | None, Field(description="Why it is not ready, for the REASON column.")] = None
    traffic: Annotated[
        list[TrafficStatus],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["revision"]}),
    ] = []
    rollout: RolloutStatus | None = None
    drift: Annotated[
        DriftStatus | None,
        Field(description="What is known of stable over days, where spec.rollout.drift asks for it."),
    ] = None
    mirror: Annotated[MirrorStatus | None, Field(description="What is mirrored now.")] = None
    idle_since: Annotated[
        Moment | None, Field(description="Since when its adapters need not be loaded: the next request loads them.")
    ] = None
    waking_since: Annotated[
        Moment | None, Field(description="Since when they are being loaded again; requests are held until they are.")
    ] = None
    conditions: Annotated[
        list[Condition],
        Field(json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = []


class ModelDeploymentResource(ApiModel):
    """The whole object."""

    metadata: ObjectMeta
    spec: ModelDeploymentSpec
    status: ModelDeploymentStatus = ModelDeploymentStatus()

    @property
    def model_name(self) -> str:
        """What clients send as `model`."""
        return self.spec.model_name or self.metadata.name
