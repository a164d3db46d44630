"""What a system prompt does to a body, and to what a revision is."""

from __future__ import annotations

import json

import pytest

from tests.builders import base_model, pinned, revision
from tests.systemprompts import ALWAYS, IF_ABSENT, TABLE, TEXT
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.contents import hash_of
from tuneyard.planning.served import served_contents
from tuneyard.planning.systemprompt import CHATS, RefusedError, message_of, with_system_prompt


@pytest.mark.parametrize("case", TABLE)
@pytest.mark.parametrize("prompt", [IF_ABSENT, ALWAYS], ids=["IfAbsent", "Always"])
def test_what_becomes_of_a_body(case: str, prompt: SystemPrompt) -> None:
    body, if_absent, always = TABLE[case]
    wanted = always if prompt.always else if_absent
    if wanted is None:
        with pytest.raises(RefusedError):
            with_system_prompt(body, CHATS, prompt)
    else:
        assert with_system_prompt(body, CHATS, prompt) == wanted.replace(b"%M", message_of(prompt).encode())


def test_the_message_is_ascii_and_says_the_text() -> None:
    assert json.loads(message_of(ALWAYS)) == {"role": "system", "content": TEXT}
    assert message_of(ALWAYS).isascii()
    assert "\n" not in message_of(ALWAYS)


def test_only_chats_have_roles() -> None:
    body = b'{"model":"m","prompt":"hi"}'
    assert with_system_prompt(body, "/v1/completions", IF_ABSENT) == body
    assert with_system_prompt(body, "/v1/embeddings", ALWAYS) == body
    with pytest.raises(RefusedError):
        with_system_prompt(body, "/v1/completions", ALWAYS)


def prompted(prompt: SystemPrompt | None) -> LoRAAdapterResource:
    adapter = pinned("v1")
    return adapter.model_copy(update={"spec": adapter.spec.model_copy(update={"system_prompt": prompt})})


def test_another_prompt_is_other_contents_and_none_is_what_it_was() -> None:
    one = revision("v1", "v1")
    prompts = [None, IF_ABSENT, ALWAYS, SystemPrompt(text="another")]
    assert len({hash_of(one, base_model(), prompted(p), None) for p in prompts}) == len(prompts)
    assert len({served_contents("pool", "v1-aaaa", None, None, p) for p in prompts}) == len(prompts)
    said = SystemPrompt(text=TEXT, apply="IfAbsent")
    assert hash_of(one, base_model(), prompted(said), None) == hash_of(one, base_model(), prompted(IF_ABSENT), None)
    # as an earlier release has written them down
    assert hash_of(one, base_model(), prompted(None), None) == "dc7c37db9f14ad6d"
    assert served_contents("pool", "v1-aaaa", "sha256:00", None) == "644aadc6"
