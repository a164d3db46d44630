"""A fake llama-server: `python -m tests.fakes.llamaserver --port 8000 --model m.gguf --lora-scaled a/adapter.gguf:0`.

HTTP as llama.cpp's server speaks it, as far as an agent and a front see it, with its silent fall-backs: any `model` and
any number of an adapter are answered with 200, and every answer calls itself the alias. What it says depends on the
adapter's name, so that who answers can be heard; with one that is called `broken…` it does not come up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from aiohttp import web


class LlamaServer:
    """One server's state."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._adapters = [(path, float(scale)) for path, scale in (item.rsplit(":", 1) for item in given.lora_scaled)]
        for path, _ in self._adapters:
            if Path(path).read_bytes()[:4] != b"GGUF" or Path(path).parent.name.startswith("broken"):
                sys.exit(f"failed to load lora adapter {path}")
        if not Path(given.model).exists():
            sys.exit("failed to load the model")

    def application(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/lora-adapters", self._list)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text="llamacpp:requests_processing 0\n")

    async def _list(self, _: web.Request) -> web.Response:
        found = [{"id": n, "path": path, "scale": scale} for n, (path, scale) in enumerate(self._adapters)]
        return web.json_response(found)

    def _speaker(self, body: Any) -> str:
        scales = {item["id"]: item["scale"] for item in body.get("lora", [])}
        for number, (path, scale) in enumerate(self._adapters):
            if (scales.get(number, 0.0) if scales else scale) > 0:
                return Path(path).parent.name
        return "base"

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        speaker, tokens = self._speaker(body), int(body.get("max_tokens", 4))
        words = [f" {speaker}"] * tokens
        if body.get("stream"):
            return await self._stream(request, words, body)
        number = -1.0 - zlib.crc32(speaker.encode()) % 100 / 10
        logprobs = {"content": [{"token": w, "top_logprobs": [{"token": w, "logprob": number}]} for w in words]}
        text = "".join(words)
        choice: dict[str, Any] = {"index": 0, "text": text, "finish_reason": "length"}
        if body.get("logprobs"):
            choice["logprobs"] = logprobs
        if "messages" in body:
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        usage = {"prompt_tokens": 1, "completion_tokens": tokens, "total_tokens": tokens + 1}
        return web.json_response({"model": self._given.alias, "choices": [choice], "usage": usage})

    async def _stream(self, request: web.Request, words: list[str], body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for word in words:
            await self._event(response, {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            await asyncio.sleep(self._given.token_delay)
        await self._event(response, {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 1, "completion_tokens": len(words), "total_tokens": len(words) + 1}
            await self._event(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _event(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        event = {"object": "chat.completion.chunk", "model": self._given.alias, **event}
        await response.write(f"data: {json.dumps(event, separators=(',', ':'))}\n\n".encode())


def fake_gguf(heads: int = 2, layers: int = 2, width: int = 64) -> bytes:
    """The header of a base of the tiny size, without weights: what an agent reads of it."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    numbers = {"block_count": layers, "embedding_length": width, "attention.head_count": heads}
    keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    for key, number in numbers.items():
        keys += text(f"llama.{key}") + struct.pack("<II", 4, number)
    shapes = {
        "attn_q": (width, width),
        "attn_k": (width, width),
        "attn_v": (width, width),
        "attn_output": (width, width),
    }
    shapes |= {"ffn_gate": (width, 2 * width), "ffn_up": (width, 2 * width), "ffn_down": (2 * width, width)}
    tensors = [(f"blk.{layer}.{name}.weight", shape) for layer in range(layers) for name, shape in shapes.items()]
    infos = b"".join(text(name) + struct.pack("<IQQIQ", 2, *shape, 1, 0) for name, shape in tensors)
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(numbers) + 1) + keys + infos


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser()
    for flag in ("--host", "--alias", "--model", "--ctx-size", "--parallel"):
        parser.add_argument(flag, default="127.0.0.1" if flag == "--host" else "")
    parser.add_argument("--port", type=int)
    parser.add_argument("--lora-scaled", action="append", default=[])
    parser.add_argument("--token-delay", type=float, default=0.01)
    for flag in ("--metrics", "--no-slots", "--no-webui"):
        parser.add_argument(flag, action="store_true")
    given = parser.parse_args()
    web.run_app(
        LlamaServer(given).application(),
        host=given.host,
        port=given.port,
        print=None,
        shutdown_timeout=0.0,
        access_log=None,
    )


if __name__ == "__main__":
    main()
