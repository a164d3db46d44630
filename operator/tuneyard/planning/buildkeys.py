"""The keys of a build's results: the same steps of the same inputs by the same tools have the same key. Pure.

Names of objects do not count, what they hold does; nor does anything that decides only how a Job runs. A step's key
holds that of the step before, so that chains which begin alike share what they begin with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.build import DEFAULT_GGUF, DEFAULT_MAX_LENGTH, DEFAULT_SAMPLES, Build, BuildStep
from tuneyard.api.buildtask import TaskStep
from tuneyard.planning.buildinputs import FoundInput, calibration_of
from tuneyard.planning.buildpresets import PRESETS

TOOLSET = "1"
"""Raised with a release whose tools make other files of the same inputs: then nothing older is taken for the same."""
_LENGTH = 32


def served_steps(base: BaseModelResource, build: Build) -> list[BuildStep]:
    """The build's steps for how the result will be served: groups have to fit the parts of tensor parallelism."""
    serving = base.spec.serving
    # experts are not cut where each GPU has whole ones
    parts = serving.tensor_parallel_size if serving and not serving.expert_parallel else None
    return [_in_parts(step, parts or 1) for step in build.steps]


def _in_parts(step: BuildStep, parts: int) -> BuildStep:
    given = step.quantize
    # what nothing is asked of keeps its key
    if given is None or not PRESETS[given.scheme].grouped or given.tensor_parallel_size is not None or parts == 1:
        return step
    return step.model_copy(update={"quantize": given.model_copy(update={"tensor_parallel_size": parts})})


def task_steps(steps: Iterable[BuildStep], inputs: Sequence[FoundInput]) -> list[TaskStep]:
    """The steps with their keys."""
    known = {(i.told.kind, i.told.name): i.identity for i in inputs}
    result: list[TaskStep] = []
    key = names.short_hash("tuneyard-build", TOOLSET, length=_LENGTH)
    for step in steps:
        text = json.dumps(_contents(step, known), sort_keys=True)
        key = names.short_hash(key, text, length=_LENGTH)
        result.append(TaskStep(key=key, step=step))
    return result


def _contents(step: BuildStep, known: dict[tuple[Any, str], str]) -> dict[str, Any]:
    """What a step does, with contents in the place of names."""
    told = step.to_dict()
    if step.merge is not None:
        return {"merge": _by_contents(told["merge"], known)}
    if step.mergekit is not None:
        models = [_by_contents(model, known) for model in told["mergekit"]["models"]]
        return {"mergekit": {"seed": 0, **told["mergekit"], "models": models}}
    if step.gguf is not None:
        return {"gguf": {"type": DEFAULT_GGUF, **_by_contents(told["gguf"], known)}}
    quantize = _by_contents(told.get("quantize") or {}, known)
    quantize.pop("calibration", None)
    # a default that is said keeps the key of those who leave it unsaid
    if quantize.get("tensorParallelSize") == 1:
        del quantize["tensorParallelSize"]
    calibration = calibration_of(step)
    if calibration is not None:
        name = calibration.config_map or "s3"
        quantize["calibration"] = {
            "data": known.get(("Calibration", name)),
            "samples": calibration.samples or DEFAULT_SAMPLES,
            "maxLength": None if calibration.max_length == DEFAULT_MAX_LENGTH else calibration.max_length,
        }
    return {"quantize": quantize}


def _by_contents(told: dict[str, Any], known: dict[tuple[Any, str], str]) -> dict[str, Any]:
    kinds = {"baseModel": "BaseModel", "adapter": "LoRAAdapter"}
    return {field: known.get((kinds[field], given)) if field in kinds else given for field, given in told.items()}
