"""How requests find a revision and a pod, beyond the weights.

Rules:
- stickiness chooses the revision, affinity the pod among those of the chosen revision; neither weakens the other;
- what a request says of itself comes first: one that may name its revision (`x-revision`, a gate) gets it;
- a header that Envoy removes from every client's request cannot be asked for, and none that holds credentials: where
  clients need keys those are taken off before a route is chosen, and who changes its key is the same user. There the
  gateway itself says whose a request is (x-tenant).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import Duration, cel, exactly_one

_REMOVED = r"^(x-model|x-prefix|x-tuneyard-.*|x-envoy-.*)$"
_CREDENTIALS = r"^(authorization|x-api-key|api-key|proxy-authorization|tuneyard-gate)$"

HeaderName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    f"!self.lowerAscii().matches('{_REMOVED}')",
                    "gateways remove this header from every request before it is looked at: name another one",
                ),
                cel(
                    f"!self.lowerAscii().matches('{_CREDENTIALS}')",
                    "this header holds credentials, which stand for no user or session: name x-tenant (set where clients "
                    "need keys), or a header of your own",
                ),
            ]
        },
    ),
]


Patience = Annotated[
    Duration,
    Field(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "duration(self) >= duration('1s') && duration(self) <= duration('24h')",
                    "write 1s to 24h; for no limit leave the field out",
                )
            ]
        }
    ),
]


class StickyBy(ApiModel):
    """What a user is known by."""

    header: Annotated[
        HeaderName,
        Field(
            description="The header whose value stands for a user, for example x-user-id, or x-tenant where clients "
            "need keys. Requests without it, or with an empty one, go by chance."
        ),
    ]


class PrefixAffinity(ApiModel):
    """By the first 1,024 bytes of `messages` (of completions: of `prompt`) as they stand in the request."""


class Affinity(ApiModel):
    """Which requests go to the same pod."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [exactly_one("routing.affinity", "header", "prefix")]}
    )

    header: Annotated[
        HeaderName | None,
        Field(
            description="The header whose value stands for a session, for example x-session-id: requests with one value "
            "go to one pod. Requests without it go to any."
        ),
    ] = None
    prefix: Annotated[
        PrefixAffinity | None,
        Field(
            description="Requests whose prompts begin alike go to one pod: by the first 1,024 bytes of messages (of "
            "completions: of prompt), as they stand in the request. Write {}."
        ),
    ] = None


class ColdStart(ApiModel):
    """How requests wait for what is not loaded, or has no pod, because nobody asked for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.holdTimeout) || duration(self.holdTimeout) <= duration('9m')",
                    "coldStart.holdTimeout may be 9m at most: gateways end what is silent for longer. Clients that are told "
                    "503 may ask again after retry-after seconds",
                )
            ]
        }
    )

    hold_timeout: Annotated[
        Duration | None,
        Field(
            description="How long a request waits at the gateway before it gets 503, 9m at most; 0s: it gets that at once, "
            "and starts what it asked for all the same. Default: the chart's gateway.hold.seconds."
        ),
    ] = None
    max_held: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description="How many requests wait at each gateway, within the chart's gateway.hold.requests for all "
            "ModelDeployments together. Default: the chart's gateway.hold.perDeployment.",
        ),
    ] = None


class Routing(ApiModel):
    """How requests find a revision, beyond the weights."""

    allow_revision_header: Annotated[
        bool | None,
        Field(description="Whether a client may choose a revision by the header x-revision. Default false."),
    ] = None
    sticky_by: Annotated[
        StickyBy | None,
        Field(
            description="Keeps each user on one revision: as a candidate's weight grows users join it and none leaves, and "
            "at a rollback all go back. It chooses the revision only. A revision that a request may name by x-revision "
            "comes before it. Default: each request by chance."
        ),
    ] = None
    cold_start: Annotated[
        ColdStart | None,
        Field(
            description="How requests wait for what nobody asked for (serving.lora.idleTimeout, serving.scaleToZeroAfter)."
        ),
    ] = None
    affinity: Annotated[
        Affinity | None,
        Field(
            description="Which of the chosen revision's pods is asked: the same one for the same session or prompt prefix, "
            "unless that has more than one and a half times its share of the requests under way, leaves or lacks the "
            "adapter; then another. Default: of two pods by chance the one with fewer requests."
        ),
    ] = None
    timeout: Annotated[
        Patience | None,
        Field(
            description="How long a request may take, from its arrival to the last byte of its answer; waiting for an "
            "adapter to be loaded counts. Past it the client gets 504 (of a stream that has begun: no more), and the "
            "engine stops. A client may set less by the header grpc-timeout. Default: no limit but the client's."
        ),
    ] = None
    idle_timeout: Annotated[
        Patience | None,
        Field(
            description="How long nothing may come from the engine: before a stream's first token, between two, and, for "
            "an answer that does not stream, until it is there. Past it as with timeout. Default 10m."
        ),
    ] = None
