"""What a tenant over a limit is told, in OpenAI's words and headers; and the question of Envoy's script."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from tuneyard.planning.limits import Kind, Limits, month_text, period_of, seconds_left
from tuneyard.systems.envoy.bootstrap import ASKING_TENANT_HEADER
from tuneyard.systems.envoy.quotas import (
    CHOICES_HEADER,
    MARK_HEADER,
    MOST_HEADER,
    QUOTA_PATH,
    SIZE_HEADER,
)

_SAYS = {Kind.REQUESTS: "requests per min (RPM)", Kind.TOKENS: "tokens per min (TPM)"}
_HEADERS = {Kind.REQUESTS: "requests", Kind.TOKENS: "tokens"}


@dataclass(frozen=True)
class Refusal:
    """An answer with status 429."""

    message: str
    type: str
    code: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> str:
        """In OpenAI's shape."""
        return json.dumps({"error": {"message": self.message, "type": self.type, "param": None, "code": self.code}})


def refusal(tenant: str, kind: Kind, limits: Limits, left: Mapping[Kind, int], now: float) -> Refusal:
    """A limit has not enough left for a request at this time; `left` of each limit."""
    wait, headers = seconds_left(kind, now), dict[str, str]()
    for one, word in _HEADERS.items():
        if one in limits:
            headers[f"x-ratelimit-limit-{word}"] = str(limits[one])
            headers[f"x-ratelimit-remaining-{word}"] = str(left.get(one, 0))
            headers[f"x-ratelimit-reset-{word}"] = f"{seconds_left(one, now)}s"
    headers["retry-after"] = str(wait)
    if kind is Kind.MONTH:
        month = month_text(period_of(kind, now))
        message = (
            f"The tenant {tenant} has used up its {limits[kind]} tokens of {month} (UTC): {left.get(kind, 0)} left."
        )
        return Refusal(message, "insufficient_quota", "insufficient_quota", {**headers, "x-should-retry": "false"})
    if kind is Kind.CONCURRENT:
        message = f"The tenant {tenant} has {limits[kind]} requests under way, its limit: try again when one has ended."
        return Refusal(message, "requests", "rate_limit_exceeded", headers)
    message = f"Rate limit reached for the tenant {tenant} on {_SAYS[kind]}: Limit {limits[kind]}, "
    message += f"{left.get(kind, 0)} left. Please try again in {wait}s."
    return Refusal(message, _HEADERS[kind], "rate_limit_exceeded", headers)


def too_large(tenant: str, kind: Kind, need: int, limit: int) -> Refusal:
    """A request that its limit can never take."""
    unit = "a month" if kind is Kind.MONTH else "a minute"
    message = f"Request too large for the tenant {tenant}: it may take {need} tokens, and the limit is {limit} {unit}. "
    message += "Shorten the prompt or lower max_tokens: trying again does not help."
    return Refusal(message, "tokens", "rate_limit_exceeded", {"x-should-retry": "false"})


Admit = Callable[[str, str, int, int | None, int], Awaitable[Refusal | None]]


def join(admit: Admit, app: web.Application) -> None:
    """Answer Envoy's script: 200 when the request may go on, else 429 and what the client is told."""

    async def quota(request: web.Request) -> web.Response:
        said = request.headers
        try:
            size, most, choices = (int(said[name]) for name in (SIZE_HEADER, MOST_HEADER, CHOICES_HEADER))
            tenant, mark = said[ASKING_TENANT_HEADER], said[MARK_HEADER]
        except (KeyError, ValueError):
            return web.Response(status=400)
        refused = await admit(tenant, mark, size, most if most >= 0 else None, choices)
        if refused is None:
            return web.Response()
        return web.Response(
            status=429, text=refused.body(), headers=dict(refused.headers), content_type="application/json"
        )

    app.router.add_post(QUOTA_PATH, quota)
