"""A fake vLLM: `python -m tests.fakes.engine --port 8000 --api-key k --served-model-name base`, or in a test's process.

HTTP as vLLM 0.32 speaks it, as far as Tuneyard's processes and clients see it. What it answers comes from
tests.fakes.enginemodel, its JSON from tests.fakes.engineanswers. Flags that it does not know are ignored, so that it
can be started with a real engine's.

- the key guards only /v1 (and /v2, /inference, /cohere): loading by POST /adapters is open, as in the real one;
- a stream's headers go out at once, its first chunk with the first token;
- SIGTERM with --shutdown-timeout: running requests end, new ones get 500 and /health stays 200; without it streams
  hang until the process is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvloop
from aiohttp import web

from tests.fakes.engineanswers import Answer, embeddings
from tests.fakes.enginemodel import DeadError, Lora, Model, RefusedError

_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
_STOPPING = "cannot schedule new futures after shutdown"


_QUIET = (
    *("vllm:kv_cache_usage_perc", "vllm:num_preemptions_total"),
    *("vllm:prompt_tokens_total", "vllm:generation_tokens_total"),
    *("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"),
)
_QUIET_HISTOGRAMS = (
    *("vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds"),
    "vllm:request_queue_time_seconds",
)
"""Metrics that the fake has, as vLLM has them, and never counts."""


@dataclass
class Options:
    """How a fake engine behaves."""

    host: str = "127.0.0.1"
    port: int = 0
    api_key: str = ""
    model: str = ""
    """The base's folder; only its config.json is read, for the width."""
    served_model_name: str = "base"
    max_loras: int = 2
    max_cpu_loras: int = 16
    max_lora_rank: int = 16
    max_model_len: int = 4096
    token_delay: float = 0.0
    first_token_delay: float = 0.0
    start_delay: float = 0.0
    shutdown_timeout: float = 0.0
    tool_call_parser: str = ""
    """How the model writes calls of tools; without it `tool_choice: auto` is refused."""
    embedding_width: int = 0
    """Numbers of an embedding; 0: the engine has none."""
    mute: str = ""
    """Adapters whose names begin so are loaded and listed, and every request for them gets 500."""
    forgetful: str = ""
    """Adapters whose names begin so are loaded and listed, and the base answers for them, under its own name."""


class FakeEngine:
    """A fake engine that listens while its context lasts."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.model = Model(
            options.served_model_name,
            options.max_loras,
            options.max_cpu_loras,
            options.max_lora_rank,
            hidden=_size(options, "hidden_size"),
            vocabulary=_size(options, "vocab_size"),
        )
        self.stopping = False
        self.requests: list[tuple[str, str]] = []
        """(method, path) of everything that was asked, without the polling of health, models and metrics."""
        self.ended = asyncio.Event()
        self._ids = itertools.count()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._runner: web.ServerRunner | None = None
        self._routes: dict[tuple[str, str], Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            ("GET", "/health"): self._health,
            ("GET", "/metrics"): self._metrics,
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/load_lora_adapter"): self._load,
            ("POST", "/v1/unload_lora_adapter"): self._unload,
            ("POST", "/adapters"): self._load,
            ("POST", "/v1/chat/completions"): self._generate,
            ("POST", "/v1/completions"): self._generate,
            ("POST", "/invocations"): self._generate,
            ("POST", "/v1/embeddings"): self._embed,
        }

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.options.host}:{self.options.port}"

    async def __aenter__(self) -> Self:
        await asyncio.sleep(self.options.start_delay)
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.options.host, self.options.port, reuse_address=True, backlog=1024)
        await site.start()
        self.options.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def kill(self) -> None:
        """Stop as if by SIGKILL: connections are cut."""
        self.model.die()
        self.ended.set()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def terminate(self) -> None:
        """What SIGTERM does."""
        self.stopping = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.options.shutdown_timeout or None):
                await self._idle.wait()
        await self.kill()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        key = self.options.api_key
        if key and path.startswith(_GUARDED) and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if path not in ("/health", "/metrics", "/v1/models"):
            self.requests.append((request.method, path))
        if request.method == "DELETE" and path.startswith("/adapters/"):
            return self._forget(path.removeprefix("/adapters/"))
        handler = self._routes.get((request.method, path))
        if handler is None:
            return web.json_response({"detail": "Not Found"}, status=404)
        try:
            return await handler(request)
        except RefusedError as error:
            return _refusal(error)
        except DeadError:
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self.kill()))
            raise web.HTTPInternalServerError(text="EngineCore encountered an issue.") from None

    async def _health(self, _: web.BaseRequest) -> web.Response:
        return web.Response(status=503 if self.model.dead else 200)

    async def _models(self, _: web.BaseRequest) -> web.Response:
        name = self.options.served_model_name
        found = [(name, self.options.model, None), *((a.name, a.path, name) for a in self.model.loras.values())]
        cards = [
            {"id": model, "object": "model", "created": 0, "owned_by": "vllm", "root": root, "parent": parent}
            for model, root, parent in found
        ]
        return web.json_response({"object": "list", "data": cards})

    async def _metrics(self, _: web.BaseRequest) -> web.Response:
        model, name = self.model, self.options.served_model_name
        running = ",".join(n for n, count in model.running.items() if n and count)
        lines = [
            f'vllm:num_requests_running{{engine="0",model_name="{name}"}} {float(self._active)}',
            f'vllm:num_requests_waiting{{engine="0",model_name="{name}"}} {float(model.waiting)}',
            f'vllm:lora_requests_info{{max_lora="{model.max_loras}",running_lora_adapters="{running}",'
            f'waiting_lora_adapters=""}} {time.time()}',
            *(f'{series}{{engine="0",model_name="{name}"}} 0.0' for series in _QUIET),
            *(f'{series}_bucket{{engine="0",le="+Inf",model_name="{name}"}} 0.0' for series in _QUIET_HISTOGRAMS),
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _load(self, request: web.BaseRequest) -> web.Response:
        body = await _json(request)
        name, path = body.get("lora_name", body.get("name")), body.get("lora_path", body.get("src"))
        self.model.load(str(name), str(path))
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.BaseRequest) -> web.Response:
        name = str((await _json(request)).get("lora_name"))
        self.model.unload(name)
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    def _forget(self, name: str) -> web.Response:
        try:
            self.model.unload(name)
        except RefusedError as error:
            return _refusal(error)
        return web.Response(text="removed")

    async def _embed(self, request: web.BaseRequest) -> web.Response:
        body = await _json(request)
        if not self.options.embedding_width:
            raise RefusedError(400, "The model does not support Embeddings API")
        return web.json_response(embeddings(body, self.options.embedding_width, f"{next(self._ids):016x}"))

    async def _generate(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await _json(request)
        chat = "messages" in body
        prompt = json.dumps(body["messages"]) if chat else str(body.get("prompt", ""))
        count = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
        if count > self.options.max_model_len:
            raise RefusedError(400, f"max_tokens={count} cannot be greater than max_model_len")
        if self.stopping:
            raise RefusedError(500, _STOPPING, "InternalServerError")
        lora = self.model.lora(str(body.get("model") or self.options.served_model_name))
        if lora and self.options.mute and lora.name.startswith(self.options.mute):
            raise RefusedError(500, "CUDA error: an illegal instruction was encountered", "InternalServerError")
        if lora and self.options.forgetful and lora.name.startswith(self.options.forgetful):
            body, lora = {**body, "model": self.options.served_model_name}, None
        given = request.headers.get("X-Request-Id") or f"{next(self._ids):016x}"
        number = ("chatcmpl-" if chat else "cmpl-") + given
        answer = Answer(body, prompt, count, number, chat, calls_tools=bool(self.options.tool_call_parser))
        generated = answer.count  # refuses what it refuses before a stream has begun
        self._active += 1
        self._idle.clear()
        try:
            if body.get("stream"):
                return await self._stream(request, lora, answer)
            async with self.model.slot(lora) as weights:
                await self._think(self.options.first_token_delay)
                with self.model.counted(lora):
                    await self._think(self.options.token_delay * (generated - 1))
                return web.json_response(answer.whole(weights, self.model.poisoned))
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _stream(self, request: web.BaseRequest, lora: Lora | None, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(b"")
        async with self.model.slot(lora) as weights:
            await self._think(self.options.first_token_delay)
            with self.model.counted(lora):
                for number, event in enumerate(answer.events(weights, self.model.poisoned)):
                    await self._think(self.options.token_delay if number else 0.0)
                    await response.write(event)
        await response.write(answer.end())
        await response.write_eof()
        return response

    async def _think(self, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)
        if self.stopping and self.options.shutdown_timeout == 0:
            await self.ended.wait()  # the core is gone, and nobody tells the client
        if self.model.dead:
            raise DeadError


async def _json(request: web.BaseRequest) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError as error:
        raise RefusedError(400, f"JSON decode error: {error}", "Bad Request") from error
    if not isinstance(body, dict):
        raise RefusedError(400, "the body is not an object", "Bad Request")
    return body


def _refusal(error: RefusedError) -> web.Response:
    body = {"error": {"message": str(error), "type": error.kind, "param": None, "code": error.status}}
    return web.json_response(body, status=error.status)


def _size(options: Options, name: str) -> int | None:
    try:
        return int(json.loads((Path(options.model) / "config.json").read_text())[name])
    except (OSError, KeyError, ValueError):
        return None


def _options(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.engine", description=__doc__)
    for name, default in vars(Options()).items():
        kind = type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    given, _ = parser.parse_known_args(arguments)
    options = Options(**vars(given))
    options.api_key = options.api_key or os.environ.get("VLLM_API_KEY", "")
    return options


async def _run(options: Options) -> int:
    async with FakeEngine(options) as engine:
        print(f"listening on {engine.url}", flush=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, lambda: asyncio.ensure_future(engine.terminate()))
        await engine.ended.wait()
        return 0 if engine.stopping else 1


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.exit(runner.run(_run(_options(sys.argv[1:]))))
