"""vLLM as its neighbours see it: health, models, adapters in and out, and a token on request.

Rule: reply texts change between releases; only statuses and `/v1/models` are relied on.

Measured on vLLM 0.32 (docs: engines): load 5 to 54 ms, unload 2 ms, a running stream outlives the unloading.
"""

from __future__ import annotations

import re

from tuneyard.systems.engines.base import Answer, EngineRefusedError
from tuneyard.systems.engines.http import HttpEngine

_LORA_INFO = re.compile(r"^vllm:lora_requests_info\{(?P<labels>.*)\}\s+(?P<value>\S+)", re.MULTILINE)
_WAITING = re.compile(r"^vllm:num_requests_waiting(?:\{[^}]*\})?\s+(?P<value>\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class Vllm(HttpEngine):
    """A client of one engine; use it as an asynchronous context manager."""

    async def models(self, seconds: float = 5.0) -> frozenset[str]:
        """Every name that requests may be sent under: the base's and the loaded adapters'."""
        answer = await self._json("GET", "/v1/models", seconds=seconds)
        return frozenset(str(model["id"]) for model in answer.get("data", []))

    async def busy_adapters(self, seconds: float = 5.0) -> frozenset[str] | None:
        """Names of adapters with requests in the engine; None where it does not tell."""
        status, text = await self._request("GET", "/metrics", seconds=seconds)
        return busy_in(text) if status == 200 else None

    async def load(self, name: str, path: str, seconds: float = 120.0) -> None:
        """Load the adapter at `path` (a folder that the engine sees) under `name`; fine if it is loaded already."""
        try:
            await self._json("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, seconds)
        except EngineRefusedError as error:
            if error.status != 400 or name not in await self.models():
                raise

    async def unload(self, name: str, seconds: float = 30.0) -> None:
        """Take a name out; running requests end with their adapter. It is fine if it is not there."""
        try:
            await self._json("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds)
        except EngineRefusedError as error:
            if error.status != 404:
                raise

    async def ask(self, model: str, tokens: int = 1, seconds: float = 120.0) -> Answer:
        """Generate `tokens` tokens from a fixed prompt, greedily, with the log-probabilities of the likeliest ones."""
        return await self.completed(model, tokens, seconds)


def busy_in(metrics: str) -> frozenset[str] | None:
    """Adapters with requests in the engine, from vLLM's metrics page; None while that cannot be told.

    The gauge has the names in its labels and the time of the observation as value: the latest one counts. It names a
    request's adapter only from its first token on, so that while requests wait anybody may be among them.
    """
    if any(_number(match["value"]) for match in _WAITING.finditer(metrics)):
        return None
    found = [(_number(match["value"]), match["labels"]) for match in _LORA_INFO.finditer(metrics)]
    if not found:
        return None
    labels = dict(_LABEL.findall(max(found)[1]))
    names = f"{labels.get('running_lora_adapters', '')},{labels.get('waiting_lora_adapters', '')}"
    return frozenset(name.strip() for name in names.split(",") if name.strip())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
