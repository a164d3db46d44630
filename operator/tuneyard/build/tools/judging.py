"""How a model answers and predicts: for the checks of what tools have made, and for what a merge compares.

Everything is greedy and on the CPU, so that the same files give the same figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneyard.build.tools.reporting import ToolError
from tuneyard.build.tools.texts import NEW_TOKENS, PLAIN, READ


@dataclass(frozen=True)
class Figures:
    """What was heard of one model."""

    texts: tuple[str, ...]
    loss: float
    """Mean negative log-likelihood of a token of READ, in nats; its exponential is the perplexity."""


def load_model(folder: Path, dtype: Any, gguf: str | None = None) -> Any:
    """The model of a folder (or of a GGUF file in it) on the CPU; raises ToolError where files do not fit."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 -- slow, and not every tool loads a model

    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {"output_loading_info": True, "use_safetensors": True}
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ToolError(f"the model does not load: {first_line(error)}") from error
    if gguf:
        return loaded.eval()
    model, info = loaded
    wrong = [
        f"{len(names)} {what} ({', '.join(sorted(map(str, names))[:3])})"
        for what, names in (
            ("weights are missing", info.get("missing_keys")),
            ("weights are of another shape", info.get("mismatched_keys")),
        )
        if names
    ]
    if wrong:
        raise ToolError(f"config.json and weights do not fit: {'; '.join(wrong)}")
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder; raises ToolError."""
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ToolError(f"the tokenizer does not load: {first_line(error)}") from error


def encoded(tokenizer: Any, prompt: str) -> torch.Tensor:
    """A prompt as clients' messages become tokens: one row."""
    template = None if tokenizer.chat_template else PLAIN
    given = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        chat_template=template,
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids: torch.Tensor = given["input_ids"]
    return ids


def answers(model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int = NEW_TOKENS) -> tuple[str, ...]:
    """The greedy answers."""
    found = []
    for prompt in prompts:
        ids = encoded(tokenizer, prompt)
        with torch.no_grad():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                do_sample=False,
                num_beams=1,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            )
        found.append(tokenizer.decode(out[0][ids.shape[1] :], skip_special_tokens=True))
    return tuple(found)


def logits(model: Any, tokenizer: Any, prompts: Sequence[str]) -> list[torch.Tensor]:
    """The scores of the token after each prompt, in float32."""
    found = []
    for prompt in prompts:
        with torch.no_grad():
            found.append(model(input_ids=encoded(tokenizer, prompt)).logits[0, -1].float())
    return found


def loss(model: Any, tokenizer: Any, texts: Sequence[str] = READ) -> float:
    """The mean negative log-likelihood of a token of these texts; raises ToolError where it is no number."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(scores, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    mean = total / max(count, 1)
    if not math.isfinite(mean):
        raise ToolError("the model computes no numbers (NaN or infinite): its weights are damaged")
    return mean


def figures(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Figures:
    """Answers and loss."""
    return Figures(answers(model, tokenizer, prompts), loss(model, tokenizer))


def identical(ones: Iterable[str], others: Iterable[str]) -> int:
    """How many texts are the same."""
    return sum(one == other for one, other in zip(ones, others, strict=True))


def first_line(error: BaseException) -> str:
    """An error of a library in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
