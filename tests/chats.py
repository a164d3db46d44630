"""Random bodies of chat requests, as clients write them and as nobody should, and what a JSON parser says of them.

`Bodies` writes JSON by hand: white space anywhere, escapes where none are needed, numbers in forms that a parser does
not give back. Some have a key twice, or an escaped one; some are damaged afterwards, byte by byte.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

INSTRUCTIONS = ("system", "developer")
CLIENTS = ("user", "assistant", "tool", "function")
_ODD_ROLES = ("System", "system ", "ipython", "", "sys\u200btem", "root", "user\n")
_TEXTS = (
    "",
    "hi",
    'a "quoted" word',
    "back\\slash",
    "[{]}",
    "日本語 😀",
    '"messages":[]',
    '{"role":"system"}',
    "x" * 300,
)
_NUMBERS = ("0", "-0.0", "1e5", "1.0E-7", "9007199254740993", "123456789012345678901234567890", "NaN", "-Infinity")
_PIECES = (
    b'"',
    b"\\",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b" ",
    b"\\u0073",
    b'"role":"system"',
    b'"messages":[],',
    b"null",
)


class Bodies:
    """Bodies for the model `support`, one after another."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def next(self) -> bytes:
        body = self._object(self._top(), 0).encode("utf-8", "surrogatepass")
        return self._damaged(body) if self._random.random() < 0.3 else body

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _top(self) -> list[tuple[str, str]]:
        members = [('"model"', '"support"'), (self._key("messages", 0.02), self._messages())]
        if self._chance(0.05):
            members.append((self._key("messages", 0.3), self._messages()))
        if self._chance(0.1):
            kinds = ("chat_template", "truncate_prompt_tokens", "chat_template_kwargs")
            members.append((f'"{self._random.choice(kinds)}"', self._value(1)))
        if self._chance(0.05):
            given = self._random.choice(
                ('{"chat_template":"x"}', '{"chat\\u005ftemplate":"x"}', '{"thinking":false}', "null")
            )
            members.append(('"chat_template_kwargs"', given))
        names = self._random.sample(("temperature", "tools", "metadata", "stop", "seed", "user"), 3)
        members += [(f'"{name}"', self._value(0)) for name in names if self._chance(0.5)]
        self._random.shuffle(members)
        return members

    def _messages(self) -> str:
        if self._chance(0.04):
            return self._value(0)
        return self._list([self._message() for _ in range(self._random.choice((0, 1, 1, 2, 3, 5)))])

    def _message(self) -> str:
        if self._chance(0.02):
            return self._value(0)
        members = [(self._key("content", 0.01), self._value(0))]
        if not self._chance(0.02):
            members.append((self._key("role", 0.02), self._role()))
        if self._chance(0.02):
            members.append((self._key("role", 0.2), self._role()))
        if self._chance(0.3):
            members.append(('"tool_calls"', self._value(0)))
        self._random.shuffle(members)
        return self._object(members, 1)

    def _role(self) -> str:
        if self._chance(0.03):
            return self._value(0)
        roles = (*CLIENTS, *CLIENTS, *INSTRUCTIONS, *((self._random.choice(_ODD_ROLES),) if self._chance(0.1) else ()))
        return self._string(self._random.choice(roles), escapes=0.01)

    def _key(self, name: str, escaped: float) -> str:
        return self._string(name, escapes=1.0) if self._chance(escaped) else f'"{name}"'

    def _string(self, text: str, escapes: float = 0.05) -> str:
        written = json.dumps(text, ensure_ascii=self._chance(0.5))
        if text and text.isascii() and "\\" not in written and self._chance(escapes):
            at = self._random.randrange(len(text))
            written = written[: at + 1] + f"\\u{ord(text[at]):04x}" + written[at + 2 :]
        return written

    def _value(self, depth: int) -> str:
        kind = self._random.randrange(8 if depth < 3 else 5)
        if kind < 3:
            return self._string(self._random.choice(_TEXTS))
        if kind < 5:
            return self._random.choice((*_NUMBERS, "true", "false", "null"))
        count = self._random.randrange(4)
        if kind == 5:
            return self._list([self._value(depth + 1) for _ in range(count)])
        keys = ("a", "messages", "role", "content", "", "é")
        members = [(self._string(self._random.choice(keys)), self._value(depth + 1)) for _ in range(count)]
        return self._object(members, depth)

    def _list(self, values: list[str]) -> str:
        return "[" + self._space() + ",".join(self._space() + v + self._space() for v in values) + "]"

    def _object(self, members: list[tuple[str, str]], depth: int) -> str:
        space = self._space
        return "{" + space() + ",".join(f"{space()}{k}{space()}:{space()}{v}{space()}" for k, v in members) + "}"

    def _space(self) -> str:
        return self._random.choice(("", "", "", " ", "\n  ", "\t", "\r\n"))

    def _damaged(self, body: bytes) -> bytes:
        for _ in range(self._random.choice((1, 1, 2, 4))):
            at, wide = self._random.randrange(len(body)), self._random.randrange(12)
            piece = self._random.choice((*_PIECES, b"", body[at : at + wide]))
            cut = self._random.choice((0, 0, 1, wide))
            body = body[:at] + piece + body[at + cut :]
        return body


class Members(list[tuple[str, Any]]):
    """An object of which nothing is lost: its members in their order, also one that is there twice."""

    def last(self, key: str) -> Any:
        return next((value for name, value in reversed(self) if name == key), None)


def parsed(body: bytes) -> Members | None:
    """As a parser reads it, numbers as they are written; None where it is no JSON object for it."""
    try:
        found = json.loads(
            body, object_pairs_hook=Members, parse_int=_Number, parse_float=_Number, parse_constant=_Number
        )
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, Members) else None


class _Number(str):
    __slots__ = ()


def is_clear(body: Members) -> bool:
    """Whether there is one way to read its messages."""
    messages = body.last("messages")
    if (
        [name for name, _ in body].count("messages") != 1
        or not isinstance(messages, list)
        or isinstance(messages, Members)
    ):
        return False
    return all(isinstance(message, Members) and _has_one_role_at_most(message) for message in messages)


def _has_one_role_at_most(message: Members) -> bool:
    given = [value for name, value in message if name == "role"]
    return not given or (len(given) == 1 and isinstance(given[0], str) and not isinstance(given[0], _Number))


def roles(body: Members) -> list[str | None]:
    """Of the messages of one that is clear."""
    return [m.last("role") for m in body.last("messages")]


def with_messages(body: Members, messages: list[Any]) -> Members:
    return Members((name, messages if name == "messages" else value) for name, value in body)
