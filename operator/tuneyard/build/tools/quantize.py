"""Weights in fewer bits, by llmcompressor, written in the format compressed-tensors.

Rules:
- what a scheme means stands in planning/buildpresets.py; a scheme's group has to divide the inputs of every layer;
- the output layer and routers of experts stay as they are: they are small, and rounding them costs most;
- calibration lines are drawn by a fixed seed, so that the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuneyard.build.tools.calibration import as_text, chosen, read_lines
from tuneyard.build.tools.files import base_dtype, carry_over, read_config, refuse_code, refuse_quantized
from tuneyard.build.tools.judging import first_line, load_model, load_tokenizer
from tuneyard.build.tools.merge import DTYPES
from tuneyard.build.tools.reporting import Report, ToolError
from tuneyard.build.tools.versions import versions_of
from tuneyard.planning.buildpresets import Preset, UnfitError, fitting_group_size, preset

_IGNORED = ["lm_head", "re:.*mlp[.]gate$", "re:.*router.*"]
SEED = 0


def run(settings: Mapping[str, Any], output: Path, report: Report) -> dict[str, Any]:
    """`settings`: model (folder), scheme, groupSize, tensorParallelSize, calibration (file or folder), samples,
    maxLength.
    """
    from llmcompressor import oneshot  # noqa: PLC0415

    source = Path(settings["model"])
    refuse_code(source)
    refuse_quantized(source, "quantise")
    try:
        wanted = preset(settings["scheme"])
        group = _group(source, settings) if wanted.grouped else None
    except UnfitError as error:
        raise ToolError(str(error)) from error
    torch.manual_seed(SEED)
    report.doing("loading the model")
    dtype = base_dtype(source)
    # float32 has no kernels of few bits anywhere: what is not rounded is served in bfloat16
    model = load_model(source, DTYPES["bfloat16" if dtype == "float32" else dtype])
    checks = {"scheme": settings["scheme"]} | ({"groupSize": str(group)} if group else {})
    given: dict[str, Any] = {}
    if wanted.calibrated:
        given, count = _calibrating(settings, load_tokenizer(source))
        checks["calibratedOn"] = f"{count} texts"
    report.doing(f"quantising by {settings['scheme']}")
    _pin_nothing()
    try:
        oneshot(model=model, recipe=_recipe(wanted, group), **given)
    except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError) as error:
        raise ToolError(f"llmcompressor cannot quantise this model by {settings['scheme']}: {first_line(error)}") from (
            error
        )
    report.doing("writing")
    model.save_pretrained(output, save_compressed=True)
    carry_over(source, output)
    (output / "recipe.yaml").unlink(missing_ok=True)  # it holds what this process was told, which the record says too
    tools = versions_of("llmcompressor", "compressed-tensors", "torch", "transformers")
    return {"tools": tools, "seed": SEED if wanted.calibrated else None, "checks": checks}


def _group(source: Path, settings: Mapping[str, Any]) -> int:
    parts = settings["tensorParallelSize"]
    return fitting_group_size(read_config(source), settings.get("groupSize"), tensor_parallel=parts)


def _calibrating(settings: Mapping[str, Any], tokenizer: Any) -> tuple[dict[str, Any], int]:
    """The arguments of a run that looks at texts, and how many these are."""
    from datasets import Dataset  # noqa: PLC0415

    if not settings.get("calibration"):
        raise ToolError(f"{settings['scheme']} needs calibration data: name texts like those that the model is asked")
    longest = int(settings["maxLength"])
    lines = chosen(read_lines(Path(settings["calibration"])), int(settings["samples"]), SEED)
    texts = [as_text(line, tokenizer) for line in lines]
    rows = [tokenizer(text, truncation=True, max_length=longest, add_special_tokens=False) for text in texts]
    rows = [
        {"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in rows if row["input_ids"]
    ]
    if not rows:
        raise ToolError("the calibration data holds no text that the tokenizer makes tokens of")
    options = {"dataset": Dataset.from_list(rows), "max_seq_length": longest, "num_calibration_samples": len(rows)}
    return {**options, "shuffle_calibration_samples": False}, len(rows)


def _recipe(wanted: Preset, group: int | None) -> list[Any]:
    """The preset as llmcompressor's modifiers."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: PLC0415
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier  # noqa: PLC0415
    from llmcompressor.modifiers.transform.awq import AWQModifier  # noqa: PLC0415

    grouping = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    weights = QuantizationArgs(num_bits=wanted.weight_bits, type=wanted.kind, symmetric=True, dynamic=False, **grouping)
    activations = None
    if wanted.activations is not None:
        activations = QuantizationArgs(
            num_bits=wanted.weight_bits, type=wanted.kind, symmetric=True, dynamic=True, strategy="token"
        )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)
    groups = {"config_groups": {"all": scheme}, "ignore": _IGNORED}
    if wanted.algorithm == "gptq":
        return [GPTQModifier(**groups)]
    if wanted.algorithm == "awq":
        return [AWQModifier(), QuantizationModifier(**groups)]
    return [QuantizationModifier(**groups)]


def _pin_nothing() -> None:
    """Have AWQ leave memory as it is: pinning speeds up copies to a GPU, and without one torch refuses it."""
    from llmcompressor.pipelines.cache import IntermediatesCache  # noqa: PLC0415

    if not torch.cuda.is_available():
        IntermediatesCache.pin_memory = lambda *_args, **_options: None
