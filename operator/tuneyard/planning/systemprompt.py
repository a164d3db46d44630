"""Puts an adapter's system message first in a chat, for the requests that do not pass Envoy's `rewrite`: copies.

The rules are those of systems/envoy/lua/systemprompt.lua, which says why; a contract test holds both against each other
and against a JSON parser. Bodies are bytes, positions are 0-based, and every other byte stays as it was sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tuneyard.api.systemprompt import SystemPrompt

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OPERATORS = frozenset({b"system", b"developer"})
CLIENTS = frozenset({b"user", b"assistant", b"tool", b"function"})

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_MARK = re.compile(rb'["{}\[\]]')
_SCALAR = re.compile(rb"[A-Za-z0-9+.-]+")
_CLOSING = {ord("{"): ord("}"), ord("["): ord("]")}

Member = tuple[bytes, int, int]
"""A key as it is written, and where its value begins and ends (exclusive)."""


class RefusedError(ValueError):
    """The request must not go on: what it says of the body is meant for the client."""


def message_of(prompt: SystemPrompt) -> str:
    """The message as JSON that is ASCII alone."""
    return json.dumps({"role": "system", "content": prompt.text}, separators=(",", ":"))


def with_system_prompt(body: bytes, path: str, prompt: SystemPrompt) -> bytes:
    """The body as the engine gets it; raises RefusedError."""
    if path == COMPLETIONS and prompt.always:
        raise RefusedError("completions have no system prompt")
    if path != CHATS:
        return body
    begin, end = _messages(body, prompt.always)
    kept, some, instructed = _kept(body, begin, end, prompt.always)
    if instructed and not prompt.always:
        return body
    pieces = [body[: begin + 1], message_of(prompt).encode()]
    for first, stop in kept:
        pieces += [b"," if some else b"", body[first:stop]]
    return b"".join([*pieces, body[end - 1 :]])


def _messages(body: bytes, always: bool) -> tuple[int, int]:
    """Where the array begins, and where it has ended."""
    open_ = body.find(b"{")
    found: list[tuple[int, int]] = []
    end = open_ + 1
    for key, first, stop in (reading := _Members(body, open_)):
        if b"\\" in key:
            raise RefusedError("keys may not hold escapes")
        if key == b"messages":
            found.append((first, stop))
        elif always and body[first:stop] != b"null":
            given = body[first:stop]
            if key in (b"chat_template", b"truncate_prompt_tokens"):
                raise RefusedError(f"{key.decode()} gets around the system prompt")
            if key == b"chat_template_kwargs" and (b"chat_template" in given or b"\\" in given):
                raise RefusedError("chat_template_kwargs may hold a template")
    end = reading.end
    if _past_space(body, end) != len(body):
        raise RefusedError("something follows the object")
    if len(found) != 1 or body[found[0][0]] != ord("["):
        raise RefusedError("messages must be there once and be an array")
    return found[0]


def _kept(body: bytes, begin: int, end: int, always: bool) -> tuple[list[tuple[int, int]], bool, bool]:
    """The pieces of the array's contents that stay, whether there are messages among them, and instructions beside."""
    at = _past_space(body, begin + 1)
    if at == end - 1:
        return [(begin + 1, end - 1)], False, False
    kept: list[tuple[int, int]] = []
    instructed, joined, first = False, False, begin + 1
    while True:
        role, at = _role(body, at)
        stop = _past_space(body, at)
        if role in OPERATORS:
            instructed, joined = True, False
        elif always and role not in CLIENTS:
            raise RefusedError("a role may be taken for the system's")
        elif joined:
            kept[-1] = (kept[-1][0], stop)
        else:
            kept.append((first, stop))
            joined = True
        if stop == end - 1:
            return kept, bool(kept), instructed
        if body[stop : stop + 1] != b",":
            raise RefusedError("messages is not valid")
        first, at = stop + 1, _past_space(body, stop + 1)


def _role(body: bytes, at: int) -> tuple[bytes | None, int]:
    """The role of the message that begins here, None where it has none, and where the message has ended."""
    if body[at : at + 1] != b"{":
        raise RefusedError("a message must be an object")
    role: bytes | None = None
    for key, first, stop in (reading := _Members(body, at)):
        if b"\\" in key:
            raise RefusedError("keys of messages may not hold escapes")
        if key != b"role":
            continue
        if role is not None or body[first : first + 1] != b'"' or b"\\" in body[first:stop]:
            raise RefusedError("a message must have one role, without escapes")
        role = body[first + 1 : stop - 1]
    return role, reading.end


class _Members:
    """The members of the object that begins at `open_`; `end` is where it has ended, once all were read."""

    def __init__(self, body: bytes, open_: int) -> None:
        self._body = body
        self._open = open_
        self.end = open_

    def __iter__(self) -> Iterator[Member]:
        body, at = self._body, _past_space(self._body, self._open + 1)
        if body[at : at + 1] == b"}":
            self.end = at + 1
            return
        while True:
            key = _STRING.match(body, at)
            colon = _past_space(body, key.end()) if key else at
            if key is None or body[colon : colon + 1] != b":":
                raise RefusedError("a key is missing")
            first = _past_space(body, colon + 1)
            stop = _value_end(body, first)
            yield key[0][1:-1], first, stop
            at = _past_space(body, stop)
            if body[at : at + 1] == b"}":
                self.end = at + 1
                return
            if body[at : at + 1] != b",":
                raise RefusedError("a comma is missing")
            at = _past_space(body, at + 1)


def _past_space(body: bytes, at: int) -> int:
    found = _SPACE.match(body, at)
    return found.end() if found else at


def _value_end(body: bytes, at: int) -> int:
    """Where the value that begins here has ended."""
    if body[at : at + 1] in (b"{", b"["):
        return _brackets_end(body, at)
    found = (_STRING if body[at : at + 1] == b'"' else _SCALAR).match(body, at)
    if found is None:
        raise RefusedError("a value is missing")
    return found.end()


def _brackets_end(body: bytes, at: int) -> int:
    closing: list[int] = []
    while True:
        mark = _MARK.search(body, at)
        if mark is None:
            raise RefusedError("a bracket does not end")
        char, at = mark[0][0], mark.end()
        if char == ord('"'):
            string = _STRING.match(body, mark.start())
            if string is None:
                raise RefusedError("a string does not end")
            at = string.end()
        elif char in _CLOSING:
            closing.append(_CLOSING[char])
        elif closing.pop() != char:
            raise RefusedError("brackets do not match")
        elif not closing:
            return at
