"""A step of the API as work for a tool: its inputs are there, its defaults are filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneyard.api.build import DEFAULT_GGUF, DEFAULT_MAX_LENGTH, DEFAULT_SAMPLES, CalibrationData, StepKind
from tuneyard.api.buildtask import TaskStep, UsedInput
from tuneyard.build.errors import BuildError
from tuneyard.build.inputs import Input, Inputs, Told
from tuneyard.planning.buildinputs import calibration_of


@dataclass(frozen=True)
class Work:
    """What a tool is to do."""

    tool: StepKind
    settings: dict[str, Any]
    used: list[UsedInput] = field(default_factory=list)
    reference: Path | None = None
    """What the result has to speak like; None: it is another model."""

    def checking(self, folder: Path) -> dict[str, Any]:
        """The settings of the check of what was made."""
        reference = None if self.reference is None else str(self.reference)
        return {"folder": str(folder), "reference": reference, "faithful": reference is not None}


def work_of(step: TaskStep, inputs: Inputs, before: Path | None, told: Told) -> Work:
    """The work of a step, `before`: what the step before has made; raises BuildError."""
    match step.step.kind:
        case "merge":
            return _merge(step, inputs, told)
        case "mergekit":
            return _mergekit(step, inputs, told)
        case "quantize":
            return _quantize(step, inputs, before, told)
        case "gguf":
            return _gguf(step, inputs, before, told)
    raise BuildError("a step is of a kind that this image does not know: update it", again=False)


def _merge(step: TaskStep, inputs: Inputs, told: Told) -> Work:
    given = step.step.merge
    assert given is not None  # noqa: S101 -- the kind says so
    base = inputs.get("BaseModel", given.base_model, told)
    adapter = inputs.get("LoRAAdapter", given.adapter, told)
    settings = {"base": str(base.path), "adapter": str(adapter.path), "dtype": given.dtype}
    return Work("merge", settings, [base.used, adapter.used])


def _mergekit(step: TaskStep, inputs: Inputs, told: Told) -> Work:
    given = step.step.mergekit
    assert given is not None  # noqa: S101
    models, used = {}, []
    for model in given.models:
        base = inputs.get("BaseModel", model.base_model, told)
        used.append(base.used)
        models[model.name] = {"base": str(base.path)}
        if model.adapter is not None:
            adapter = inputs.get("LoRAAdapter", model.adapter, told)
            used.append(adapter.used)
            models[model.name]["adapter"] = str(adapter.path)
    settings = {"config": given.config, "models": models, "seed": given.seed or 0}
    return Work("mergekit", settings, list(dict.fromkeys(used)))


def _quantize(step: TaskStep, inputs: Inputs, before: Path | None, told: Told) -> Work:
    given = step.step.quantize
    assert given is not None  # noqa: S101
    model, used = _source(given.base_model, inputs, before, told)
    settings: dict[str, Any] = {"model": str(model), "scheme": given.scheme}
    settings |= {"groupSize": given.group_size, "tensorParallelSize": given.tensor_parallel_size or 1}
    calibration = calibration_of(step.step)
    if calibration is not None:
        texts = _calibration(calibration, inputs, told)
        used.append(texts.used)
        settings |= {
            "calibration": str(texts.path),
            "samples": calibration.samples or DEFAULT_SAMPLES,
            "maxLength": calibration.max_length or DEFAULT_MAX_LENGTH,
        }
    return Work("quantize", settings, used, model)


def _calibration(given: CalibrationData, inputs: Inputs, told: Told) -> Input:
    return inputs.get("Calibration", given.config_map or "s3", told)


def _gguf(step: TaskStep, inputs: Inputs, before: Path | None, told: Told) -> Work:
    given = step.step.gguf
    assert given is not None  # noqa: S101
    model, used = _source(given.base_model, inputs, before, told)
    name = given.base_model or step.key
    settings = {"model": str(model), "type": given.type or DEFAULT_GGUF, "name": name}
    return Work("gguf", settings, used, model)


def _source(name: str | None, inputs: Inputs, before: Path | None, told: Told) -> tuple[Path, list[UsedInput]]:
    """What a step works on: the result of the step before, or the base that it names."""
    if name is None:
        if before is None:
            raise BuildError("the first step names no baseModel", again=False)
        return before, []
    base = inputs.get("BaseModel", name, told)
    return base.path, [base.used]
