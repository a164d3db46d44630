"""What an engine has to do, from its page of metrics.

vLLM names its series `vllm:…`, one for each of its engine cores (data parallel): counts add up, and of the cache the
fullest core counts. A page without the queue's series is no engine's that is known here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_SERIES = re.compile(
    r"^(vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc|generation_tokens_total))"
    r"(?:\{[^}]*\})?\s+(\S+)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class EngineCounts:
    """What a page says."""

    running: float
    waiting: float
    kv_cache: float
    """Share of the cache in use, 0 to 1."""
    tokens: float
    """Generated since the engine began."""


def counts_in(metrics: str) -> EngineCounts | None:
    """What the page says; None where it does not say it."""
    found: dict[str, list[float]] = {}
    for name, text in _SERIES.findall(metrics):
        value = _number(text)
        if value is not None:
            found.setdefault(name, []).append(value)
    if "vllm:num_requests_waiting" not in found or "vllm:num_requests_running" not in found:
        return None
    return EngineCounts(
        running=sum(found["vllm:num_requests_running"]),
        waiting=sum(found["vllm:num_requests_waiting"]),
        kv_cache=min(1.0, max(found.get("vllm:kv_cache_usage_perc", [0.0]))),
        tokens=sum(found.get("vllm:generation_tokens_total", [0.0])),
    )


def _number(text: str) -> float | None:
    """A count; a page is a pod's own word, and infinities or negative ones would scale a pool without end."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
