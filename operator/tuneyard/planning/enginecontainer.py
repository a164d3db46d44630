"""What runs in a pool's engine container, whichever its engine is."""

from __future__ import annotations

from typing import Any

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.planning import llamacppcontainer, presetcontainers, ranks, vllmcontainer
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings

HOME = vllmcontainer.HOME


def started(pool: Pool, base: BaseModelResource, settings: Settings) -> dict[str, Any]:
    """Image, command, arguments and environment of a pool that passed servingchecks.violation."""
    serving = pool.serving
    if serving.engine == "vllm":
        return {
            "image": serving.image or settings.images.vllm,
            "command": vllmcontainer.COMMAND,
            "args": [*vllmcontainer.arguments(pool, base, settings), *ranks.arguments(pool)],
            "env": [*vllmcontainer.environment(pool, settings), *ranks.environment(pool)],
        }
    if serving.engine == "llamaCpp":
        return {
            "image": serving.image or settings.images.llama_cpp,
            "command": llamacppcontainer.command(),
            "args": llamacppcontainer.arguments(pool),
            "env": llamacppcontainer.environment(pool, settings),
        }
    command = presetcontainers.command(pool)
    return {
        "image": serving.image or "",
        **({"command": command} if command else {}),
        "args": presetcontainers.arguments(pool, base),
        "env": presetcontainers.environment(pool, base, settings),
    }
