"""A system prompt before random chats, against a JSON parser: never got around, and nothing else changed."""

from __future__ import annotations

import json
import os

import pytest

from tests.chats import CLIENTS, INSTRUCTIONS, Bodies, Members, is_clear, parsed, roles, with_messages
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.systemprompt import CHATS, RefusedError, message_of, with_system_prompt

TEXT = 'You are "Acme".\n日本語 \\ \x7f 😀'
ROUNDS = 20 * int(os.environ.get("TUNEYARD_EXAMPLES", "20"))
OURS = Members([("role", "system"), ("content", TEXT)])


def applied(body: bytes, prompt: SystemPrompt) -> bytes | None:
    try:
        return with_system_prompt(body, CHATS, prompt)
    except RefusedError:
        return None


def has_no_way_around(body: Members) -> bool:
    """Of those ways that bodies of these tests know."""
    given = [
        value for name, value in body if name in ("chat_template", "truncate_prompt_tokens", "chat_template_kwargs")
    ]
    return all(value is None for value in given)


def writes_plainly(body: bytes, read: Members) -> bool:
    """No escapes where they could matter."""
    messages = read.last("messages")
    words = [*roles(read), *(key for part in (read, *messages) for key, _ in part)]
    return (
        b"\\u" not in body
        and b"\\/" not in body
        and all(json.dumps(w, ensure_ascii=False) == f'"{w}"' for w in words if w)
    )


@pytest.mark.parametrize("seed", range(10))
def test_if_absent(seed: int) -> None:
    prompt, bodies = SystemPrompt(text=TEXT), Bodies(seed)
    message, outcomes = message_of(prompt).encode(), set()
    for _ in range(ROUNDS):
        body = bodies.next()
        came, read = applied(body, prompt), parsed(body)
        if came is None:
            outcomes.add("refused")
            assert read is None or not is_clear(read) or not writes_plainly(body, read), body
            continue
        if came == body:
            outcomes.add("as it was")
            assert read is None or not is_clear(read) or set(roles(read)) & set(INSTRUCTIONS), body
            continue
        outcomes.add("put")
        assert body in (came.replace(message + b",", b"", 1), came.replace(message, b"", 1)), body
        if read is not None:
            assert is_clear(read)
            assert not set(roles(read)) & set(INSTRUCTIONS), body
            assert parsed(came) == with_messages(read, [OURS, *read.last("messages")]), body
    assert outcomes == {"refused", "as it was", "put"}


@pytest.mark.parametrize("seed", range(10))
def test_always(seed: int) -> None:
    prompt, bodies = SystemPrompt(text=TEXT, apply="Always"), Bodies(seed)
    outcomes = set()
    for _ in range(ROUNDS):
        body = bodies.next()
        came, read = applied(body, prompt), parsed(body)
        if came is None:
            outcomes.add("refused")
            may_pass = read is not None and is_clear(read) and writes_plainly(body, read) and has_no_way_around(read)
            assert not may_pass or not set(roles(read or Members())) <= {*CLIENTS, *INSTRUCTIONS}, body
            continue
        outcomes.add("put")
        reads = parsed(came)
        if reads is None:
            assert read is None, body  # what was valid stays valid
            continue
        # the promise: whatever came, the engine reads this message first and no other of its kind
        assert is_clear(reads), body
        assert reads.last("messages")[0] == OURS, body
        assert set(roles(reads)[1:]) <= set(CLIENTS), body
        if read is not None:
            own = [m for m in read.last("messages") if m.last("role") not in INSTRUCTIONS]
            assert reads == with_messages(read, [OURS, *own]), body
    assert outcomes == {"refused", "put"}
