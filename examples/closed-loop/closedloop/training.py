"""train: a LoRA adapter from the base. Needs torch, transformers and peft; CPU or GPU.

Rules:
- always from the base, never from a fine-tune: errors of one round would be the next one's starting point, and nobody
  could say what the adapter was made from. What the current adapter knows comes back by its examples;
- the loss is that of answers only, not of questions;
- only the layers from `first_layer` on carry weights, so what those below make of each example is computed once;
- seeded, in float32, saved in bfloat16 under names that say nothing of this machine.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from closedloop.files import Json, StepError
from closedloop.prompting import told
from tuneyard.systems.artifacts.folder import digest_of


@dataclass(frozen=True)
class Hyperparameters:
    """What decides, with base and examples, which adapter comes out."""

    epochs: int = 14
    batch: int = 4
    learning_rate: float = 2e-3
    rank: int = 8
    alpha: int = 16
    modules: str = "q_proj,v_proj,o_proj"
    first_layer: int = 0
    """Layers below it get no weights: much cheaper, and enough for small changes."""
    seed: int = 0


def train(
    base: Path, base_name: str, examples: list[Json], out: Path, given: Hyperparameters, *, prompt: Json | None = None
) -> Json:
    """Write the adapter into `out` and return its record; raises StepError. `prompt` is what it is served with."""
    if (base / "adapter_config.json").exists():
        raise StepError(f"{base} is an adapter: name the base that it was trained from")
    if not examples:
        raise StepError("there is nothing to train on: select has kept no example")
    import torch  # noqa: PLC0415 -- other steps run without
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    torch.manual_seed(given.seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    whole.to("cuda" if torch.cuda.is_available() else "cpu")
    prepared = [
        _prepared(whole, tokenizer, told(e["messages"], prompt), e["answer"], given.first_layer) for e in examples
    ]
    model = get_peft_model(
        whole,
        LoraConfig(
            r=given.rank,
            lora_alpha=given.alpha,
            target_modules=given.modules.split(","),
            layers_to_transform=list(range(given.first_layer, whole.config.num_hidden_layers)),
            task_type="CAUSAL_LM",
        ),
    )
    for layer in range(given.first_layer):
        whole.model.layers[layer] = _passing(whole.model.layers[layer])
    loss = _fit(model, prepared, given)
    model.peft_config["default"].base_model_name_or_path = base_name
    model.to(torch.bfloat16)
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # a card that names a folder of this machine
    return {
        "base": base_name,
        "baseDigest": digest_of(base).digest,
        "digest": digest_of(out).digest,
        "examples": len(examples),
        "loss": round(loss, 4),
        "hyperparameters": asdict(given),
        "systemPrompt": prompt,
        "trainedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def prompt_of(tokenizer: Any, messages: list[Json]) -> str:
    """The conversation as engines give it to the model."""
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


class Prepared(NamedTuple):
    """What the layers below make of question and answer (tokens, hidden size), and the answer's tokens with its end."""

    states: Any
    answer: list[int]


def _prepared(model: Any, tokenizer: Any, messages: list[Json], answer_text: str, first_layer: int) -> Prepared:
    import torch  # noqa: PLC0415

    question = tokenizer(prompt_of(tokenizer, messages), add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(answer_text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    tokens = torch.tensor([question + answer], device=model.device)
    with torch.no_grad():
        out = model.model(input_ids=tokens, output_hidden_states=True, use_cache=False)
    return Prepared(out.hidden_states[first_layer][0], answer)


def _passing(layer: Any) -> Any:
    """In place of a layer whose work is done already."""
    import torch  # noqa: PLC0415

    class Passing(torch.nn.Module):  # type: ignore[misc]
        """Gives what it gets."""

        attention_type = getattr(layer, "attention_type", None)

        def forward(self, states: Any, *_: Any, **__: Any) -> Any:
            return states

    return Passing()


def _fit(model: Any, examples: list[Prepared], given: Hyperparameters) -> float:
    """Train in place; returns the last epoch's mean loss."""
    import torch  # noqa: PLC0415

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=given.learning_rate, weight_decay=0.0)
    batches = -(-len(examples) // given.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, given.learning_rate, total_steps=given.epochs * batches, pct_start=0.1
    )
    start, mean = time.monotonic(), 0.0
    model.train()
    for epoch in range(given.epochs):
        order = torch.randperm(len(examples)).tolist()
        mean = 0.0
        for at in range(0, len(order), given.batch):
            chosen = [examples[i] for i in order[at : at + given.batch]]
            loss = _loss(model, chosen)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            mean += loss.item() * len(chosen) / len(examples)
        passed = time.monotonic() - start
        print(f"train: epoch {epoch + 1}/{given.epochs}, loss {mean:.3f}, {passed:.0f} s", flush=True)
    return mean


def _loss(model: Any, examples: list[Prepared]) -> Any:
    """Padded on the left, so that answers end together and the large output layer runs on little more than them."""
    import torch  # noqa: PLC0415

    width = max(len(example.states) for example in examples)
    keep = max(len(example.answer) for example in examples)
    states = torch.zeros(len(examples), width, examples[0].states.shape[1])
    mask = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), keep), -100)
    for row, example in enumerate(examples):
        states[row, width - len(example.states) :] = example.states
        mask[row, width - len(example.states) :] = 1
        labels[row, keep - len(example.answer) :] = torch.tensor(example.answer)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    states, mask, labels, places = (t.to(model.device) for t in (states, mask, labels, places))
    # one position more than the answers: the token before an answer predicts its first
    logits = model(
        inputs_embeds=states, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=keep + 1
    ).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
