"""The system prompt that an adapter is trained under, and is then served with. Pure.

Chats get it as gateways give it (docs/howto/system-prompts.md): a prompt that training had and serving has not, or the
other way round, is another model than the one that was evaluated.
"""

from __future__ import annotations

from closedloop.files import Json

INSTRUCTIONS = frozenset({"system", "developer"})


def told(messages: list[Json], prompt: Json | None) -> list[Json]:
    """The conversation as the engine gets it; `prompt` is a LoRAAdapter's `systemPrompt`."""
    if prompt is None:
        return messages
    if prompt.get("apply") == "Always":
        messages = [m for m in messages if m["role"] not in INSTRUCTIONS]
    elif any(m["role"] in INSTRUCTIONS for m in messages):
        return messages
    return [{"role": "system", "content": prompt["text"]}, *messages]
