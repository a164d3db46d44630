"""The documents that Tuneyard's processes leave for each other.

Plan (operator -> agents): a ConfigMap `<pool>-plan`, key `plan.json`; a long one as `plan.json.gz` in its binaryData, so
    that it stays far below the 1 MiB that a ConfigMap may have.
Prewarm plan (operator -> pods that keep a node's cache): a ConfigMap `<base>-prewarm`, in the same way.
Pod report (agent -> operator, gateways): the annotation tuneyard.dev/adapters of its own pod.
Keep report (pod that keeps a node's cache -> operator): the same annotation.
Base report (init container -> operator): its termination message, on success and on failure.
Applied report (gateway -> operator): GET /v1/applied on the gateway process, bearer token.
Demand report (gateway -> operator): GET /v1/demand there, in the same way.
Evidence report (gateway -> operator): GET /v1/evidence there, in the same way.

Readers ignore fields they do not know; `version` changes only when a reader must refuse.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any, Literal

from tuneyard.api.analysis import Slo
from tuneyard.api.base import ApiModel
from tuneyard.api.gatereports import GateRun
from tuneyard.api.sources import Source

PLAN_KEY = "plan.json"
PACKED_PLAN_KEY = "plan.json.gz"
_LONGEST_PLAIN = 128 << 10
"""Characters up to which a plan is stored so that people can read it."""
_LONGEST_UNPACKED = 64 << 20
"""A plan that unpacks to more is not one."""


class PlannedAdapter(ApiModel):
    """One adapter that the pool's pods should have."""

    name: str
    source: Source
    digest: str | None = None
    """Pinned digest; None while nobody has read the artifact: then the agent reports what it computes."""
    pods: list[str] | None = None
    """Names of the pods that should have it; None: all of the pool."""
    copies: int | None = None
    """How many pods should have it in the end, where more should than have the others."""


class PoolPlan(ApiModel):
    """What the pods of one pool should serve."""

    version: Literal[1] = 1
    pool: str
    base_model: str
    """Name of the BaseModel, which is also the engine's --served-model-name."""
    max_rank: int = 16
    copies: int | None = None
    """How many pods should have each adapter in the end; None: all of them."""
    pods: list[str] | None = None
    """The pods among which the adapters are spread; one that is missing was not thought of yet. None: every pod has
    every adapter."""
    turns: list[str] | None = None
    """The pods whose engine may begin anew now, where engines load adapters only when they begin; None: nobody asks."""
    adapters: list[PlannedAdapter] = []

    def share(self, pod: str) -> PoolPlan:
        """What of the plan is for one pod. Its `pods` is empty where the plan was made without that pod."""
        mine = [a for a in self.adapters if a.pods is None or pod in a.pods]
        counted = None if self.pods is None else [p for p in self.pods if p == pod]
        turns = None if self.turns is None else [p for p in self.turns if p == pod]
        return self.model_copy(update={"adapters": mine, "pods": counted, "turns": turns})


def stored_plan(plan: PoolPlan | PrewarmPlan) -> dict[str, dict[str, str]]:
    """The plan as the `data` or the `binaryData` of its ConfigMap, by one of these two names."""
    text = json.dumps(plan.to_dict(), sort_keys=True, separators=(",", ":"))
    if len(text) <= _LONGEST_PLAIN:
        return {"data": {PLAN_KEY: text}}
    packed = gzip.compress(text.encode(), compresslevel=6, mtime=0)
    return {"binaryData": {PACKED_PLAN_KEY: base64.b64encode(packed).decode()}}


def plan_text(config_map: Mapping[str, Any]) -> str | None:
    """The JSON of the plan in a ConfigMap, None where there is none; raises ValueError for one that was not packed."""
    packed = (config_map.get("binaryData") or {}).get(PACKED_PLAN_KEY)
    if packed is None:
        text = (config_map.get("data") or {}).get(PLAN_KEY)
        return None if text is None else str(text)
    unpacking = zlib.decompressobj(wbits=31)
    try:
        found = unpacking.decompress(base64.b64decode(packed), _LONGEST_UNPACKED)
    except zlib.error as error:
        raise ValueError(f"{PACKED_PLAN_KEY} cannot be unpacked: {error}") from error
    if not unpacking.eof:
        raise ValueError(f"{PACKED_PLAN_KEY} is cut, or longer than {_LONGEST_UNPACKED} bytes")
    return found.decode()


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
    source: str | None = None
    """Hash of the source that is spoken of (podreport.source_mark): an adapter may be another one under the same name. An
    older agent does not say it, nor does a long report of one whose digest the plan has pinned."""
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
    wished: str | None = None
    """Only with a failure: the digest that the plan asked for, if any. An older agent does not say it."""
    lasting: bool | None = None
    """Only with a failure: it came at several attempts in a row, or is not tried again. A single one may pass."""
    overdue: bool | None = None
    """Its files have been coming for so long that the pod's readiness does not wait for them."""


class PodReport(ApiModel):
    """What a model pod says of itself; gateways route by this alone."""

    version: Literal[1] = 1
    address: str
    """host:port of the pod's front."""
    engine: Literal["Starting", "Ready", "Draining"]
    base_model: str
    tls: bool | None = None
    """Whether the front takes TLS too; None: plain HTTP only."""
    awaits_share: bool | None = None
    """Whether the plan was made without this pod; None: the plan has every adapter on every pod."""
    asks_for_turn: bool | None = None
    """Whether its engine has to begin anew for adapters of the plan, and waits for the plan to say that it may."""
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
    contents: dict[str, str] = {}
    """What each revision is (served.py); an older gateway does not say it."""
    held: list[str] = []
    """Revisions whose requests are held until a pod has loaded their adapter."""
    lacking: dict[str, str] = {}
    """External revisions that this gateway cannot send anything to, and why."""


class AppliedReport(ApiModel):
    """What one gateway serves, by `namespace/name` of the ModelDeployment."""

    gateway: str
    version: int
    """Grows with every acknowledged change; GET /v1/applied?after=N answers when it is above N, or after 20 s."""
    deployments: dict[str, AppliedDeployment] = {}


class RevisionDemand(ApiModel):
    """What one gateway sent to one revision."""

    requests: int = 0
    """Sent to engines since the gateway's Envoy began to report; one that was tried on another pod counts for each."""
    in_flight: float = 0.0
    """Under way, smoothed over some seconds."""
    ttft: dict[int, int] = {}
    """Streams of the last minute by the time to their first token: milliseconds (one of planning/firsttokens.EDGES, the
    last one for all that is longer) -> how many."""
    waiting: int = 0
    """Requests that are held until it is loaded."""


class DeploymentDemand(ApiModel):
    """What is asked of one ModelDeployment by way of one gateway."""

    idle_seconds: float = 0.0
    """Since its last request ended, or since the gateway began to look, if that is later; 0 while one is under way.

    Only what was looked at counts: it does not grow while the gateway's Envoy does not say what it does.
    """
    waiting: int = 0
    """Requests that are held until an adapter of it is loaded."""
    revisions: dict[str, RevisionDemand] = {}
    """Those that were asked since the gateway's Envoy began to report, or that somebody waits for."""
    gate: GateRun | None = None
    """The newest run of a gate that has asked here, and how far it was."""


class EngineLoad(ApiModel):
    """What one engine has to do, as a gateway has read it."""

    running: float = 0.0
    waiting: float = 0.0
    """Requests in its queue."""
    kv_cache: float = 0.0
    """Share of its cache that is in use, 0 to 1."""
    tokens_per_second: float | None = None
    """Generated, since the look before; None: there was none."""
    age_seconds: float = 0.0
    """Since it was read."""


class DemandReport(ApiModel):
    """What is asked of one gateway, by `namespace/name` of the ModelDeployment.

    Of a deployment that is missing the gateway knows nothing: it is not routed, or not looked at yet.
    """

    gateway: str
    version: int
    """Another one whenever there is something new; GET /v1/demand?after=N answers when it is not N, or after 20 s."""
    deployments: dict[str, DeploymentDemand] = {}
    engines: dict[str, EngineLoad] = {}
    """By `namespace/pod`, of pools that are scaled by what engines say."""


Counted = dict[str, dict[str, dict[int, tuple[int, int, int, int]]]]
"""Revision -> objective (planning/evidence.py; readers leave out those they do not know) -> length of the prompt, by
`prompt_bucket` -> answers that were judged, those that were bad, those whose predecessor was bad, and those of them that
were bad too."""


class DeploymentEvidence(ApiModel):
    """What one gateway has seen of the answers of one ModelDeployment."""

    uid: str
    """The object's; another one began to be counted anew."""
    slo: Slo
    """What answers were judged by; with another one counting begins anew."""
    contents: dict[str, str] = {}
    """Per revision, whose answers are counted now (planning/served.py); an older gateway does not say it."""
    counts: Counted = {}


class EvidenceReport(ApiModel):
    """What one gateway has seen of answers, by `namespace/name` of those ModelDeployments that name objectives.

    Counters only grow while the process lives; all of a report are of one moment.
    """

    gateway: str
    process: str
    """Another one after each start of the process that counts."""
    age_seconds: float
    """How long it has been counting."""
    version: int
    """Another one whenever there is something new, once a second at most; GET /v1/evidence?after=N answers when it is
    not N, or after 20 s."""
    judging: bool = True
    """Whether Envoy tells what becomes of requests now; when not, silence says nothing."""
    deployments: dict[str, DeploymentEvidence] = {}
