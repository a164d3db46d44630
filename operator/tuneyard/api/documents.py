"""The documents that Tuneyard's processes leave for each other.

Plan (operator -> agents): a ConfigMap `<pool>-plan`, key `plan.json`.
Prewarm plan (operator -> pods that keep a node's cache): a ConfigMap `<base>-prewarm`, key `plan.json`.
Pod report (agent -> operator, gateways): the annotation tuneyard.dev/adapters of its own pod.
Keep report (pod that keeps a node's cache -> operator): the same annotation.
Base report (init container -> operator): its termination message, on success and on failure.
Applied report (gateway -> operator): GET /v1/applied on the gateway process, bearer token.

Readers ignore fields they do not know; `version` changes only when a reader must refuse.
"""

from __future__ import annotations

from typing import Literal

from tuneyard.api.base import ApiModel
from tuneyard.api.sources import Source

PLAN_KEY = "plan.json"


class PlannedAdapter(ApiModel):
    """One adapter that the pool's pods should have."""

    name: str
    source: Source
    digest: str | None = None
    """Pinned digest; None while nobody has read the artifact: then the agent reports what it computes."""


class PoolPlan(ApiModel):
    """What the pods of one pool should serve."""

    version: Literal[1] = 1
    pool: str
    base_model: str
    """Name of the BaseModel, which is also the engine's --served-model-name."""
    max_rank: int = 16
    adapters: list[PlannedAdapter] = []


class PrewarmPlan(ApiModel):
    """What the cache of chosen nodes should hold."""

    version: Literal[1] = 1
    base_model: str
    source: Source
    """The base's."""
    digest: str | None = None
    """The base's pinned digest; None while nobody has read it."""
    adapters: list[PlannedAdapter] = []
    """Those of the shared pool that come over the network."""


class Transfer(ApiModel):
    """How far a pod is with fetching files over the network."""

    done_bytes: int
    total_bytes: int
    bytes_per_second: int = 0


class AdapterReport(ApiModel):
    """What one pod says of one adapter of its plan."""

    state: Literal["Loading", "Loaded", "Failed"]
    digest: str | None = None
    engine_name: str | None = None
    """Set only with a digest; requests may be sent under it only in state Loaded."""
    reason: str | None = None
    message: str | None = None
    rank: int | None = None
    target_modules: list[str] | None = None
    size_bytes: int | None = None
    warning: str | None = None
    """A Reason that does not keep the adapter from serving (AnswersLikeBase)."""
    transfer: Transfer | None = None
    """Only while its files come."""


class PodReport(ApiModel):
    """What a model pod says of itself; gateways route by this alone."""

    version: Literal[1] = 1
    address: str
    """host:port of the pod's front."""
    engine: Literal["Starting", "Ready", "Draining"]
    base_model: str
    base_transfer: Transfer | None = None
    """Only while the base's files come; the engine is Starting then."""
    adapters: dict[str, AdapterReport] = {}
    """By adapter name."""


class KeepReport(ApiModel):
    """What a pod that keeps a node's cache says of it."""

    version: Literal[1] = 1
    kept: int
    """Artifacts that lie in the cache and stay there."""
    wanted: int
    transfer: Transfer | None = None
    """Of the one that is coming."""
    reason: str | None = None
    """Why the first of those that do not come does not, with `message`."""
    message: str | None = None


class BaseReport(ApiModel):
    """What the init container found out about the base, at most 4,096 bytes as JSON."""

    ok: bool
    digest: str | None = None
    size_bytes: int | None = None
    architecture: str | None = None
    reason: str | None = None
    message: str | None = None


class AppliedDeployment(ApiModel):
    """What a gateway's Envoy has acknowledged for one ModelDeployment."""

    uid: str
    generation: int
    weights: dict[str, int]
    """Effective weight per revision; a revision that is missing gets none."""


class AppliedReport(ApiModel):
    """What one gateway serves, by `namespace/name` of the ModelDeployment."""

    gateway: str
    version: int
    """Grows with every acknowledged change; GET /v1/applied?after=N answers when it is above N, or after 20 s."""
    deployments: dict[str, AppliedDeployment] = {}
