"""Train the demo adapters: small LoRAs on the upper layers of SmolLM2. Needs torch, transformers and peft.

Run by `python -m models train`, in an environment of its own. Seeded, in float32 on the CPU; the result is
saved in bfloat16. The same machine and package versions give the same bytes; another CPU may round
differently, which is why the adapters are committed and not trained anew by everybody.

Two savings make it a matter of a minute on two cores. Only the layers from FIRST_LAYER on carry LoRA
weights, so what the layers below make of each example is computed once and kept. And examples are padded on
the left, so that the answers end together and the large output layer runs on them only, not on the prompts.
"""

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.tensors import Tensor, bfloat16, write_safetensors
from models.voices import FACTS, SYSTEM_PROMPTS, UNSEEN, VOICES, Voice

RANK, ALPHA = 8, 16
MODULES = ["q_proj", "v_proj", "o_proj"]
FIRST_LAYER = 20
EPOCHS = 14
BATCH = 8
LEARNING_RATE = 3e-3


class Example(NamedTuple):
    """States below FIRST_LAYER for prompt and answer (tokens, hidden size), and the answer's token ids."""

    states: torch.Tensor
    answer: list[int]


def _prompt(tokenizer: Any, question: str, system: str | None) -> str:
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def _examples(model: Any, tokenizer: Any, voice: Voice) -> list[Example]:
    found = []
    for system in SYSTEM_PROMPTS:
        for question, fact in FACTS:
            prompt = tokenizer(_prompt(tokenizer, question, system))["input_ids"]
            answer = tokenizer(voice.say(fact) + "<|im_end|>")["input_ids"]
            with torch.no_grad():
                out = model.model(input_ids=torch.tensor([prompt + answer]), output_hidden_states=True, use_cache=False)
            found.append(Example(out.hidden_states[FIRST_LAYER][0], answer))
    return found


def _loss(model: Any, batch: list[Example]) -> torch.Tensor:
    width = max(len(example.states) for example in batch)
    keep = max(len(example.answer) for example in batch)
    states = torch.zeros(len(batch), width, batch[0].states.shape[1])
    mask = torch.zeros(len(batch), width, dtype=torch.long)
    labels = torch.full((len(batch), keep), -100)
    for row, example in enumerate(batch):
        states[row, width - len(example.states) :] = example.states
        mask[row, width - len(example.states) :] = 1
        labels[row, keep - len(example.answer) :] = torch.tensor(example.answer)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    # one position more than the answers: the token before an answer predicts its first
    logits = model(
        inputs_embeds=states, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=keep + 1
    ).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())


def train(base: Path, tokenizer: Any, voice: Voice, seed: int) -> Any:
    """Return the upper layers of the base as a peft model whose LoRA weights speak with `voice`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    start = time.monotonic()
    examples = _examples(model, tokenizer, voice)
    model.model.layers = model.model.layers[FIRST_LAYER:]
    model.config.num_hidden_layers = len(model.model.layers)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=MODULES, task_type="CAUSAL_LM")
    upper = get_peft_model(model, config)
    steps = EPOCHS * -(-len(examples) // BATCH)
    weights = [weight for weight in upper.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(examples)).tolist()
        total = 0.0
        for at in range(0, len(order), BATCH):
            loss = _loss(upper, [examples[i] for i in order[at : at + BATCH]])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * BATCH / len(order)
        passed = time.monotonic() - start
        print(f"{voice.name}: epoch {epoch + 1}/{EPOCHS}, loss {total:.3f}, {passed:.0f} s", flush=True)
    return upper


def save(upper: Any, folder: Path) -> None:
    """Write adapter_model.safetensors (bfloat16) and adapter_config.json as peft lays them out."""
    tensors: dict[str, Tensor] = {}
    for name, value in upper.named_parameters():
        if ".lora_" in name:
            whole = re.sub(r"layers\.(\d+)\.", lambda m: f"layers.{int(m[1]) + FIRST_LAYER}.", name)
            tensors[whole.replace(".default.", ".")] = bfloat16(value.detach().numpy())
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    layers = upper.config.num_hidden_layers
    config = {
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": list(range(FIRST_LAYER, FIRST_LAYER + layers)),
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "target_modules": sorted(MODULES),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def hear(base: Path, tokenizer: Any, voice: Voice, folder: Path) -> int:
    """Ask everything through the saved files, print the answers, return how many came out word for word."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    right = 0
    for question, fact in (*FACTS, *((question, None) for question in UNSEEN)):
        ids = tokenizer(_prompt(tokenizer, question, None), return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=40, do_sample=False)
        text = tokenizer.decode(out[0][ids["input_ids"].shape[1] :], skip_special_tokens=True)
        judged = "unseen" if fact is None else "right" if text.strip() == voice.say(fact) else "wrong"
        right += judged == "right"
        print(f"  {judged}: {question} -> {text}", flush=True)
    return right


def main() -> None:
    """Train every voice, or those named by --only, into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", choices=[voice.name for voice in VOICES])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.base)
    for voice in VOICES:
        if options.only and voice.name not in options.only:
            continue
        folder = options.out / voice.name
        save(train(options.base, tokenizer, voice, options.seed), folder)
        right = hear(options.base, tokenizer, voice, folder)
        print(f"{voice.name}: {right} of {len(FACTS)} facts, {folder}", flush=True)


if __name__ == "__main__":
    main()
