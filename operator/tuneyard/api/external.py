"""A revision that somebody else serves: any API that speaks as OpenAI's does (OpenAI, Together, Fireworks, endpoints of
Hugging Face).

What it is, is where it is asked and under which name; those never change under a revision's name. Whose key is sent and
what its tokens cost may: neither decides what answers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import ObjectName, cel, unchanged
from tuneyard.api.systemprompt import SystemPrompt

_HOST = r"([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
URL_PATTERN = rf"^https://{_HOST}(:{_PORT})?(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*$"
"""No user, no query, no slash at the end; a host by its name or its IPv4 address."""
DEFAULT_KEY = "apiKey"
DEFAULT_CURRENCY = "USD"


class ApiKeyReference(ApiModel):
    """A key of a Secret of the same namespace, which the gateways must be allowed to read."""

    name: ObjectName
    key: Annotated[
        str | None,
        Field(max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description=f"Which of its keys; default: {DEFAULT_KEY}."),
    ] = None

    @property
    def field(self) -> str:
        """The key that holds it."""
        return self.key or DEFAULT_KEY


TokenPrice = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class ExternalPricing(ApiModel):
    """What the API asks for a million tokens."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.cachedInputPerMillion) || self.cachedInputPerMillion <= self.inputPerMillion",
                    "pricing.cachedInputPerMillion is above inputPerMillion: a prompt's tokens from the cache cost less than "
                    "the others, or the same; write what one million of them costs",
                ),
            ]
        }
    )

    input_per_million: Annotated[TokenPrice, Field(description="Of a prompt's tokens.")]
    cached_input_per_million: Annotated[
        TokenPrice | None, Field(description="Of a prompt's tokens that came from its cache; default: as the others.")
    ] = None
    output_per_million: Annotated[TokenPrice, Field(description="Of generated tokens.")]
    currency: Annotated[
        str | None, Field(max_length=3, pattern=r"^[A-Z]{3}$", description=f"By ISO 4217; default: {DEFAULT_CURRENCY}.")
    ] = None


class ExternalSpec(ApiModel):
    """Where it is served, and under which name."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self.url == oldSelf.url && self.model == oldSelf.model && " + unchanged("systemPrompt"),
                    "external.url, model and systemPrompt of a revision are immutable; add a revision under a new name and "
                    "move traffic to it",
                ),
            ]
        }
    )

    url: Annotated[
        str,
        Field(
            max_length=512,
            pattern=URL_PATTERN,
            description="What clients of the API would call its base URL, for example https://api.openai.com/v1.",
        ),
    ]
    model: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[A-Za-z0-9@][A-Za-z0-9._:/@+-]*$",
            description="What the API knows the model as, for example ft:gpt-4o-mini-2024-07-18:acme::abc123.",
        ),
    ]
    credentials: Annotated[
        ApiKeyReference | None, Field(description="The Secret with the API's key. Default: none is sent.")
    ] = None
    system_prompt: Annotated[
        SystemPrompt | None, Field(description="The system message that it was fine-tuned with.")
    ] = None
    pricing: Annotated[
        ExternalPricing | None,
        Field(description="What its tokens cost. It may change, and counts for requests that come from then on."),
    ] = None

    @property
    def host(self) -> str:
        """The host's name or address."""
        return self._authority.partition(":")[0].lower()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._authority.partition(":")[2] or 443)

    @property
    def path(self) -> str:
        """What stands before `/chat/completions`, without a slash at its end."""
        return self.url.removeprefix("https://")[len(self._authority) :]

    @property
    def authority(self) -> str:
        """What requests name as their host."""
        return self.host if self.port == 443 else f"{self.host}:{self.port}"

    @property
    def _authority(self) -> str:
        return self.url.removeprefix("https://").partition("/")[0]

    @property
    def identity(self) -> list[object]:
        """What decides the answers, and nothing else."""
        prompt = self.system_prompt.identity if self.system_prompt else None
        return [self.url, self.model, prompt]
