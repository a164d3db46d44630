"""Conversations are trained and evaluated as gateways give them to engines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from closedloop.prompting import told
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.systemprompt import CHATS, with_system_prompt

USER = {"role": "user", "content": "Where is the invoice?"}
OWN = {"role": "system", "content": "Talk like a pirate."}
DEVELOPER = {"role": "developer", "content": "Be brief."}


@pytest.mark.parametrize("messages", [[USER], [OWN, USER], [DEVELOPER, USER], [USER, OWN, USER]])
@pytest.mark.parametrize("apply", [None, "IfAbsent", "Always"])
def test_the_same_as_at_the_gateway(messages: list[dict[str, Any]], apply: str | None) -> None:
    prompt = SystemPrompt.from_dict({"text": "You are Acme's agent.", "apply": apply})
    body = json.dumps({"model": "m", "messages": messages}).encode()
    at_the_gateway = json.loads(with_system_prompt(body, CHATS, prompt))["messages"]
    assert told(messages, prompt.to_dict()) == at_the_gateway


def test_without_one_nothing_changes() -> None:
    assert told([USER], None) == [USER]
