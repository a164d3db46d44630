"""The JSON of the fake engine's answers, in the shapes of vLLM 0.32: text, tools, JSON schemas, log probabilities.

- a tool is called where `tool_choice` says so; `auto` needs the flag that tells the engine how its model writes calls,
  and then the first tool is called. What is called by its name ends with `stop`, as in the real one, not `tool_calls`;
- what has to be JSON is the smallest value that fits the schema, and ends by itself; all other text ends by its length;
- embeddings are there for engines that are started for them, as lists or in base64.
"""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.fakes.enginemodel import BASE, RefusedError, Weights, logprobs, tokens

Json = dict[str, Any]
_NOT_JSON = "Out of range float values are not JSON compliant"
_NO_AUTO = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
_PIECE = 6
"""Characters of a token where the text is JSON."""


def fitting(schema: Mapping[str, Any]) -> Any:
    """The smallest value that fits a JSON schema, of those that tests write."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        return {name: fitting(of) for name, of in schema.get("properties", {}).items()}
    if kind == "array":
        return [fitting(schema["items"])]
    return {"string": "amber", "integer": 7, "number": 0.5, "boolean": True}.get(kind)


@dataclass
class Answer:
    """One answer."""

    body: Json
    prompt: str
    most: int
    """Tokens."""
    id: str
    chat: bool
    calls_tools: bool = False
    """Whether the engine was told how its model writes calls."""

    @cached_property
    def called(self) -> Json | None:
        """The function that is called, as the request describes it; raises RefusedError."""
        tools = [tool["function"] for tool in self.body.get("tools") or ()]
        choice = self.body.get("tool_choice") or ("auto" if tools else "none")
        if not tools or choice == "none":
            return None
        if isinstance(choice, dict):
            named = choice["function"]["name"]
            return next((tool for tool in tools if tool["name"] == named), None)
        if choice == "auto" and not self.calls_tools:
            raise RefusedError(400, _NO_AUTO)
        found: Json = tools[0]
        return found

    @cached_property
    def json_text(self) -> str | None:
        """What is answered where it has to be JSON: a tool's arguments, or by a schema."""
        if self.called is not None:
            return json.dumps(fitting(self.called.get("parameters") or {}))
        wanted = self.body.get("response_format") or {}
        if wanted.get("type") == "json_schema":
            return json.dumps(fitting(wanted["json_schema"]["schema"]))
        return "{}" if wanted.get("type") == "json_object" else None

    @property
    def count(self) -> int:
        """Tokens of the answer."""
        return self.most if self.json_text is None else len(self._pieces(BASE))

    def _pieces(self, weights: Weights) -> list[str]:
        if self.json_text is None:
            return tokens(weights, self.prompt, self.most)
        return [self.json_text[at : at + _PIECE] for at in range(0, len(self.json_text), _PIECE)][: self.most]

    @property
    def _ended(self) -> str:
        if self.json_text is None or len(self.json_text) > self.most * _PIECE:
            return "length"
        return "tool_calls" if self.called and not isinstance(self.body.get("tool_choice"), dict) else "stop"

    def _call(self, arguments: str) -> Json:
        name = (self.called or {})["name"]
        function = {"name": name, "arguments": arguments}
        return {"id": f"chatcmpl-tool-{self.id[-16:]}", "type": "function", "function": function}

    def whole(self, weights: Weights, poisoned: bool) -> Json:
        """The answer to a request that does not stream."""
        words = [""] if poisoned else self._pieces(weights)
        choice: Json = {"index": 0, "logprobs": None, "finish_reason": self._ended}
        text = "".join(words)
        if self.called:
            choice["message"] = {"role": "assistant", "content": None, "tool_calls": [self._call(text)]}
        else:
            choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        if self.body.get("logprobs"):
            if poisoned:
                raise RefusedError(400, _NOT_JSON)
            choice["logprobs"] = self._logprobs(weights)
        return {**self._head(""), "choices": [choice], "usage": self._usage()}

    def _logprobs(self, weights: Weights) -> Json:
        top = logprobs(weights, self.prompt, self.most)
        if self.chat:
            return {
                "content": [
                    _chat_logprob(word, at, self.body.get("top_logprobs") or 0) for t in top for word, at in t.items()
                ]
            }
        words = [next(iter(t)) for t in top]
        return {
            "text_offset": [sum(map(len, words[:number])) for number in range(len(words))],
            "tokens": words,
            "token_logprobs": [next(iter(t.values())) for t in top],
            "top_logprobs": top,
        }

    def events(self, weights: Weights, poisoned: bool) -> list[bytes]:
        """One server-sent event for each token."""
        words = [""] * self.most if poisoned else self._pieces(weights)
        told = self._logprobs(weights)["content"] if self.chat and self.body.get("logprobs") else None
        events = []
        for number, word in enumerate(words):
            delta: Json = {"delta": self._delta(word, number)} if self.chat else {"text": word}
            if self.chat and number == 0:
                delta["delta"]["role"] = "assistant"
            last = self._ended if number == len(words) - 1 else None
            sure = {"content": [told[number]]} if told else None
            events.append(self._event([{"index": 0, **delta, "logprobs": sure, "finish_reason": last}]))
        return events

    def _delta(self, word: str, number: int) -> Json:
        if not self.called:
            return {"content": word}
        call: Json = self._call(word) if number == 0 else {"function": {"arguments": word}}
        return {"tool_calls": [{"index": 0, **call}]}

    def end(self) -> bytes:
        """What follows the last token."""
        options = self.body.get("stream_options") or {}
        usage = self._event([], usage=self._usage()) if options.get("include_usage") else b""
        return usage + b"data: [DONE]\n\n"

    def _event(self, choices: list[Json], **more: Any) -> bytes:
        document = {**self._head(".chunk"), "choices": choices, **more}
        return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"

    def _head(self, chunk: str) -> Json:
        kind = "chat.completion" + chunk if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.body.get("model")}

    def _usage(self) -> dict[str, int]:
        prompt = len(self.prompt) // 4 + 1
        return {"prompt_tokens": prompt, "completion_tokens": self.count, "total_tokens": prompt + self.count}


def _chat_logprob(word: str, logprob: float, most: int) -> Json:
    one = {"token": word, "logprob": logprob, "bytes": list(word.encode())}
    return {**one, "top_logprobs": [one][:most]}


def embeddings(body: Json, width: int, number: str) -> Json:
    """The answer of an engine that embeds: each text's own numbers."""
    texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
    read = sum(len(str(text)) // 4 + 1 for text in texts)
    return {
        "id": f"embd-{number}",
        "object": "list",
        "created": int(time.time()),
        "model": body.get("model"),
        "data": [
            {"index": at, "object": "embedding", "embedding": _embedding(str(text), width, body.get("encoding_format"))}
            for at, text in enumerate(texts)
        ],
        "usage": {"prompt_tokens": read, "completion_tokens": 0, "total_tokens": read},
    }


def _embedding(text: str, width: int, encoding: str | None) -> list[float] | str:
    numbers = [round(sum(text.encode()[at::width]) / 4096, 6) for at in range(width)]
    return base64.b64encode(struct.pack(f"<{width}f", *numbers)).decode() if encoding == "base64" else numbers
