"""What a fine-tune was trained to be told first: part of what answers, so immutable with the rest of the adapter."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tuneyard.api.base import ApiModel

SystemPromptText = Annotated[str, Field(min_length=1, max_length=8192)]


class SystemPrompt(ApiModel):
    """A system message that gateways put before chats."""

    text: Annotated[SystemPromptText, Field(description="What the message says.")]
    apply: Annotated[
        Literal["IfAbsent", "Always"] | None,
        Field(
            description="IfAbsent: before chats without a message of role system or developer; completions go on without it. "
            "Always: before every chat, whose own system and developer messages are taken out; completions, and chats that "
            "could get around it, are refused. Default IfAbsent."
        ),
    ] = None

    @property
    def always(self) -> bool:
        """Whether no text is generated without it."""
        return self.apply == "Always"

    @property
    def identity(self) -> list[str]:
        """What makes two of them the same."""
        return [self.text, "Always" if self.always else "IfAbsent"]


SystemPromptField = Annotated[
    SystemPrompt | None, Field(description="What chats with this adapter begin with; other bytes of requests stay.")
]
