"""Adding an adapter to its base's weights, by PEFT.

Rules:
- the sum is made in float32 with safe_merge, which refuses weights that are no numbers, and only then written in the
  dtype that was asked for: in bfloat16 the small part would be lost in rounding;
- it is compared with base and adapter side by side before anything is written: the scores of the next token have to be
  the same but for rounding. What rounding to the written dtype does is measured and recorded, not judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuneyard.build.tools.files import base_dtype, carry_over, refuse_code, refuse_quantized
from tuneyard.build.tools.judging import answers, first_line, identical, load_model, load_tokenizer, logits
from tuneyard.build.tools.reporting import Report, ToolError
from tuneyard.build.tools.texts import CHECKED, PROMPTS
from tuneyard.build.tools.versions import versions_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DIFFERENCE = 1e-3
"""Of scores, relative to the largest of them. Rounding in float32 was 1e-5 at most; a layer without its part of the
adapter differs by far more."""


def run(settings: Mapping[str, Any], output: Path, report: Report) -> dict[str, Any]:
    """`settings`: base and adapter (folders), dtype (None: the base's), compared (prompts; default CHECKED)."""
    base, adapter = Path(settings["base"]), Path(settings["adapter"])
    checks = merge(base, adapter, output, settings.get("dtype"), report, int(settings.get("compared", CHECKED)))
    return {"tools": versions_of("peft", "torch", "transformers", "safetensors"), "checks": checks}


def merge(  # noqa: PLR0917 -- what a merge is made of
    base: Path, adapter: Path, output: Path, dtype: str | None, report: Report, compared: int = CHECKED
) -> dict[str, str]:
    """Write the merged model; returns what was compared. Raises ToolError."""
    from peft import PeftModel  # noqa: PLC0415

    refuse_code(base)
    refuse_quantized(base, "merge into")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise ToolError("the adapter has no adapter_model.safetensors, and other formats may run code: save it so")
    written = dtype or base_dtype(base)
    prompts = PROMPTS[:compared]
    report.doing("loading base and adapter")
    tokenizer = load_tokenizer(base)
    model = load_model(base, torch.float32)
    try:
        both = PeftModel.from_pretrained(model, adapter, torch_device="cpu").eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ToolError(f"the adapter does not fit the base: {first_line(error)}") from error
    refuse_unfit(both)
    report.doing("listening to base and adapter")
    texts, scores = answers(both, tokenizer, prompts), logits(both, tokenizer, prompts)
    report.doing("merging")
    try:
        merged = both.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ToolError(f"the adapter cannot be merged: {first_line(error)}") from error
    report.doing("comparing")
    difference = largest_difference(scores, logits(merged, tokenizer, prompts))
    same = identical(texts, answers(merged, tokenizer, prompts))
    checks = {
        "computedIn": "float32",
        "writtenIn": written,
        "textsAsBaseAndAdapter": f"{same} of {len(prompts)}",
        "largestDifferenceOfScores": f"{difference:.1e} of the largest",
    }
    if not difference <= _DIFFERENCE:
        raise ToolError(
            f"the merged model scores tokens differently from base and adapter (by {difference:.1e} of the largest "
            "score): PEFT does not merge this kind of adapter exactly; serve it as an adapter"
        )
    if written != "float32":
        merged = merged.to(DTYPES[written])
        rounded = identical(texts, answers(merged, tokenizer, prompts))
        checks[f"textsIn{written.capitalize()}"] = f"{rounded} of {len(prompts)}"
    report.doing("writing")
    merged.save_pretrained(output)
    carry_over(base, output)
    return checks


def refuse_unfit(both: Any) -> None:
    """Raise ToolError where a merge would lose a part of the adapter, or damage the model."""
    for name, value in both.named_parameters():
        if ".lora_" in name and not bool(torch.isfinite(value).all()):
            raise ToolError(f"the adapter's {name} holds values that are no numbers: train it again")


def largest_difference(ones: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    """Of two models' scores, relative to the largest score."""
    largest = max(float(one.abs().max()) for one in ones)
    return max(float((one - other).abs().max()) for one, other in zip(ones, others, strict=True)) / max(largest, 1e-30)
