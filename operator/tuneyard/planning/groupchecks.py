"""Whether the parts that tensor parallelism cuts layers into are whole groups of a quantised base's weights.

Source: vLLM 0.32, compressed_tensors (WNA16): a layer whose input is cut, and whose parts are no whole groups, ends the
engine when it reads the weights. Only what is certain is refused: dense models with one group of layers, of which none
is left out but the last; what else there is (experts, latent attention, other formats) the engine says itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneyard.api.reasons import Reason
from tuneyard.planning.basefacts import text_config
from tuneyard.planning.buildpresets import UnfitError, fitting_group_size, layer_inputs
from tuneyard.planning.enginepresets import Engine
from tuneyard.planning.observations import Problem

_CUT = ("attention output", "intermediate_size")
_OTHER_SHAPES = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "kv_lora_rank")


def uneven_groups(engine: Engine, config: Mapping[str, Any], tensor_parallel: int) -> Problem | None:
    """That vLLM cannot cut a base's layers so often, by its config.json."""
    size = _group_size(config.get("quantization_config")) if engine.name == "vllm" else None
    text = text_config(config)
    if size is None or tensor_parallel < 2 or any(text.get(name) for name in _OTHER_SHAPES):
        return None
    whole, parts = layer_inputs(config), layer_inputs(config, tensor_parallel)
    uneven = [name for name in _CUT if name in whole and whole[name] % size == 0 and parts[name] % size]
    if not uneven:
        return None
    try:
        fitting_group_size(config, tensor_parallel=tensor_parallel)
        instead = f"build it anew with quantize.tensorParallelSize: {tensor_parallel}"
    except UnfitError:
        instead = "build it anew as INT8 or FP8, which have no groups"
    shown = ", ".join(f"{name} {whole[name]} in parts of {parts[name]}" for name in uneven)
    return Problem(
        Reason.UNSUPPORTED_SETTING,
        f"the base is quantised in groups of {size}, of which tensorParallelSize {tensor_parallel} makes no whole ones "
        f"({shown}): choose a smaller one, or {instead}",
    )


def _group_size(quantization: object) -> int | None:
    """The size of the groups of all layers but the last; None: there are none, or that is not sure."""
    if not isinstance(quantization, Mapping) or quantization.get("format") != "pack-quantized":
        return None
    groups, ignored = quantization.get("config_groups"), quantization.get("ignore") or []
    if not isinstance(groups, Mapping) or len(groups) != 1 or set(ignored) - {"lm_head"}:
        return None
    (group,) = groups.values()
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or group.get("targets") != ["Linear"] or weights.get("strategy") != "group":
        return None
    size = weights.get("group_size")
    return size if isinstance(size, int) and size > 0 else None
