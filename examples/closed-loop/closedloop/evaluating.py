"""evaluate: what base, current adapter and candidate answer to the same questions. Needs what train needs.

Rules:
- all three answer from the same loaded base, greedily, so a difference is the adapters';
- the adapters are read from their files, as engines read them;
- a question of the regression set that users have corrected is left out: its old answer is no longer the right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from closedloop.files import Json
from closedloop.judging import score, verdict
from closedloop.prompting import told
from closedloop.selecting import question_key
from closedloop.training import prompt_of

MODELS = ("base", "current", "candidate")
_BATCH = 8


def still_right(regression: Iterable[Json], corrected: Iterable[Json]) -> list[Json]:
    """The questions of the regression set that nobody has corrected."""
    changed = {question_key(e["messages"]) for e in corrected}
    return [e for e in regression if question_key(e["messages"]) not in changed]


def evaluate(
    base: Path,
    adapters: tuple[Path, Path],
    heldout: list[Json],
    regression: list[Json],
    *,
    longest: int,
    prompt: Json | None = None,
) -> Json:
    """Scores, every answer, and the verdict. `adapters` are the current one and the candidate; answers are cut after
    `longest` tokens; `prompt` is the system prompt that all three are asked under.
    """
    import torch  # noqa: PLC0415 -- other steps run without
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(whole, adapters[0], adapter_name="current")
    model.load_adapter(adapters[1], adapter_name="candidate")
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    questions = [*heldout, *regression]
    conversations = [told(q["messages"], prompt) for q in questions]
    answers = {name: _answers(model, tokenizer, name, conversations, longest) for name in MODELS}
    scores = {
        name: [score(q["answer"], a) for q, a in zip(questions, given, strict=True)] for name, given in answers.items()
    }
    cut = len(heldout)
    rows = [
        {
            "set": "heldout" if n < cut else "regression",
            "question": question["messages"][-1]["content"],
            "wanted": question["answer"],
            **{name: {"answer": answers[name][n], "score": round(scores[name][n], 3)} for name in MODELS},
        }
        for n, question in enumerate(questions)
    ]
    judged = verdict({n: s[:cut] for n, s in scores.items()}, {n: s[cut:] for n, s in scores.items()})
    return {**judged, "answers": rows}


def _answers(model: Any, tokenizer: Any, name: str, conversations: list[list[Json]], longest: int) -> list[str]:
    import torch  # noqa: PLC0415

    if name != "base":
        model.set_adapter(name)
    found: list[str] = []
    for at in range(0, len(conversations), _BATCH):
        prompts = [prompt_of(tokenizer, messages) for messages in conversations[at : at + _BATCH]]
        ids = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        with torch.no_grad(), model.disable_adapter() if name == "base" else nullcontext():
            out = model.generate(**ids, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        found += [
            t.strip() for t in tokenizer.batch_decode(out[:, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        ]
        print(f"evaluate: {name} {len(found)}/{len(conversations)}", flush=True)
    return found
