"""Looking at what a tool has made, before anybody is given it.

Rules:
- the weights are all there, all numbers, and of the shapes that the configuration says;
- the model loads and says something;
- a step that must not change what a model says (quantize, gguf) is held against the model that it was made of: how much
  worse it predicts a fixed text. That is coarse: it finds a broken result, not a somewhat worse one, for which there
  are gates;
- a GGUF file is read by transformers, in float32. One that transformers does not know, or that does not fit into memory
  like that, is no error, because llama.cpp may serve it: its weights are looked at, and the record says that it is all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tuneyard.build.tools.files import read_config
from tuneyard.build.tools.judging import figures as figures_of
from tuneyard.build.tools.judging import first_line, identical, load_model, load_tokenizer
from tuneyard.build.tools.memory import available, too_large
from tuneyard.build.tools.reporting import Report, ToolError
from tuneyard.build.tools.texts import CHECKED, PROMPTS, READ

MOST_LOSS = 1.0
"""Nats per token that a result may predict worse: a sound one of 4 bits stays below 0.2, a broken one loses several."""
_INDEX = "model.safetensors.index.json"


def run(settings: Mapping[str, Any], output: Path, report: Report) -> dict[str, Any]:
    """`settings`: folder, reference (a folder or None), faithful (whether it has to say what the reference says)."""
    del output  # nothing is written
    folder = Path(settings["folder"])
    files = sorted(path.name for path in folder.glob("*.gguf"))
    checks = _gguf_tensors(folder / files[0], report) if files else _tensors(folder, report)
    unheard = _unheard(folder, files[0]) if files else None
    if unheard:
        return {"checks": checks | {"answers": f"not compared: {unheard}"}}
    prompts = PROMPTS[:CHECKED]
    report.doing("listening to the result")
    heard, tokens = _heard(folder, files[0] if files else None, prompts)
    if not any(text.strip() for text in heard.texts):
        raise ToolError(
            f"the model says nothing to any of {len(prompts)} prompts: its weights or tokenizer are damaged"
        )
    checks |= {"answers": f"{sum(bool(t.strip()) for t in heard.texts)} of {len(prompts)}", "loss": f"{heard.loss:.4f}"}
    if settings.get("reference"):
        report.doing("listening to what it was made of")
        before, before_tokens = _heard(Path(settings["reference"]), None, prompts)
        checks |= {
            "lossBefore": f"{before.loss:.4f}",
            "textsAsBefore": f"{identical(heard.texts, before.texts)} of {len(prompts)}",
            "tokensAsBefore": "yes" if tokens == before_tokens else "no",
        }
        if settings.get("faithful") and heard.loss > before.loss + MOST_LOSS:
            raise ToolError(
                f"the result predicts text much worse than what it was made of (loss {heard.loss:.2f}, before "
                f"{before.loss:.2f}): use more bits, a smaller group, or calibration data like the model's own"
            )
    return {"checks": checks}


def _heard(folder: Path, gguf: str | None, prompts: tuple[str, ...]) -> tuple[Any, list[list[int]]]:
    """What a model says, and the tokens of READ."""
    tokenizer = _gguf_tokenizer(folder, gguf) if gguf else load_tokenizer(folder)
    model = load_model(folder, torch.float32 if gguf else "auto", gguf)
    return figures_of(model, tokenizer, prompts), [tokenizer(text)["input_ids"] for text in READ]


def _unheard(folder: Path, gguf: str) -> str | None:
    """Why nobody can listen to a GGUF file here, sound as it may be; None: one can."""
    from gguf import GGUFReader  # noqa: PLC0415
    from transformers import AutoConfig  # noqa: PLC0415
    from transformers.integrations.ggml import GGUF_TO_FAST_CONVERTERS  # noqa: PLC0415
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415

    try:
        kind = AutoConfig.from_pretrained(folder, gguf_file=gguf, local_files_only=True).model_type
    except (ValueError, KeyError, NotImplementedError) as error:
        return f"transformers does not read it ({first_line(error)})"
    if kind not in GGUF_TO_FAST_CONVERTERS or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return f"transformers does not read {kind} from GGUF with its vocabulary"
    return too_large(sum(int(tensor.n_elements) for tensor in GGUFReader(folder / gguf).tensors), available())


def _gguf_tokenizer(folder: Path, gguf: str) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    try:
        return AutoTokenizer.from_pretrained(folder, gguf_file=gguf, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ToolError(f"the file's vocabulary does not load: {first_line(error)}") from error


def _tensors(folder: Path, report: Report) -> dict[str, str]:
    """Every tensor of a folder of safetensors; raises ToolError."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    read_config(folder)
    files = _weight_files(folder)
    count, kinds = 0, set[str]()
    for number, file in enumerate(files):
        report.doing("looking at weights", number, len(files))
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 -- it is no mapping
                    tensor = opened.get_tensor(name)
                    _must_be_numbers(name, tensor)
                    count, kinds = count + 1, kinds | {str(tensor.dtype).removeprefix("torch.")}
        except SafetensorError as error:
            raise ToolError(f"{file.name} cannot be read: {first_line(error)}") from error
    return {"tensors": str(count), "dtypes": ", ".join(sorted(kinds))}


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, all that the index names; raises ToolError."""
    files = sorted(folder.glob("*.safetensors"))
    index = folder / _INDEX
    if index.exists():
        named = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(named - {file.name for file in files})
        if missing:
            raise ToolError(f"{_INDEX} names {', '.join(missing[:3])}, which is not there")
    if not files:
        raise ToolError("no weights were written")
    return files


def _must_be_numbers(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_floating_point():
        return
    looked_at = tensor if tensor.element_size() > 1 else tensor.float()
    if not bool(torch.isfinite(looked_at).all()):
        raise ToolError(f"{name} holds values that are no numbers (NaN or infinite)")


def _gguf_tensors(file: Path, report: Report) -> dict[str, str]:
    """Every tensor of a GGUF file, as it is when it is computed with; raises ToolError."""
    import numpy as np  # noqa: PLC0415
    from gguf import GGUFReader, dequantize  # noqa: PLC0415

    try:
        reader = GGUFReader(file)
    except (ValueError, OSError, KeyError) as error:
        raise ToolError(f"{file.name} cannot be read: {first_line(error)}") from error
    kinds: dict[str, int] = {}
    for number, tensor in enumerate(reader.tensors):
        report.doing("looking at weights", number, len(reader.tensors))
        kind = tensor.tensor_type
        kinds[kind.name] = kinds.get(kind.name, 0) + 1
        if not bool(np.isfinite(dequantize(tensor.data, kind)).all()):
            raise ToolError(f"{tensor.name} holds values that are no numbers (NaN or infinite)")
    if not kinds:
        raise ToolError("no weights were written")
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return {"tensors": str(len(reader.tensors)), "types": shown}
