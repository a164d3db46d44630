"""Usage as it leaves the cluster: one record of the tokens of one request.

Rules:
- records are lines of JSON, camelCase, UTF-8, each ended by a line feed; a reader ignores fields that it does not know;
- there is no prompt and no answer in it. A record is known by `gateway` and `id`, which the gateway alone gives:
  `requestId` is the client's own where he sent one, and who sends the same again is counted again;
- numbers of the engine's and estimates are never in one sum: `estimated` says which a record has.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tuneyard.api.base import ApiModel
from tuneyard.api.external import ExternalPricing
from tuneyard.api.schema import Digest

MAX_REQUEST_ID = 200


class Endpoint(StrEnum):
    """What was asked for."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


class Outcome(StrEnum):
    """How a request ended."""

    OK = "ok"
    LEFT = "left"
    """The client went before the answer was whole."""
    REFUSED = "refused"
    """A status of 400 to 499."""
    FAILED = "failed"
    """A status of 500 and above, no connection, or a stream that broke off."""


class UsageRecord(ApiModel):
    """The tokens of one request to a revision."""

    id: str
    """Which of the gateway's records it is: its run, the file and the offset of the line that it was made from."""
    time: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$")]
    """When the request came, in UTC."""
    request_id: str
    """The answer's header x-request-id, its first 200 characters."""
    attempt: int = 1
    """How many pods were asked until one answered."""
    gateway: str
    """The gateway's pod."""
    tenant: str | None = None
    model: str
    """The name that the client asked for."""
    deployment: str
    """`namespace/name` of the ModelDeployment."""
    revision: str
    contents: str
    """Hash of what answered under the revision's name."""
    pool: str | None = None
    """Name of the pool whose engine answered, in the deployment's namespace."""
    adapter: str | None = None
    """The LoRAAdapter that answered; none where the revision serves a base itself."""
    adapter_digest: Digest | None = None
    base: str | None = None
    """The BaseModel."""
    base_digest: Digest | None = None
    external: str | None = None
    """Host of the API that answered, where that was not a pool of the cluster."""
    price: ExternalPricing | None = None
    """What its revision said, when the request came, that a million of its tokens cost."""
    endpoint: Endpoint
    gate: bool = False
    """A benchmark or an evaluation of Tuneyard's own asked, not a client."""
    status: int
    """Of HTTP; 0: the client left before there was one."""
    outcome: Outcome
    prompt_tokens: int
    cached_tokens: int = 0
    """Of the prompt's, those that the engine had computed before."""
    completion_tokens: int
    estimated: bool = False
    """The engine has not told its numbers, because the client left, the engine failed or its answer had none: the prompt's
    come from the size of the request, the answer's from the number of chunks or, of a whole one, from its size. False:
    they are the engine's own."""

    def line(self) -> bytes:
        """The record as it is written: one line."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
