"""What a quantisation scheme means, and the group size that fits a model. Pure.

Rules:
- a scheme is a name of the API; what it becomes in a tool is written here once, for the tool and for whoever judges it;
- which engines read a result stands in engines.py; a scheme that vLLM serves nowhere is none;
- weights in groups have one scale for so many neighbouring inputs, so that a group size has to divide the inputs of
  every layer, also of each part where tensor parallelism cuts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneyard.planning.basefacts import attention_heads, text_config

GROUP_SIZES = (128, 64, 32)
"""Those that engines have kernels for, the best compression first."""
BITS_AND_BYTES = "bitsandbytes"


@dataclass(frozen=True)
class Preset:
    """A scheme in a quantiser's words."""

    algorithm: str
    """awq, gptq, or rtn: rounding to nearest."""
    weight_bits: int
    kind: str
    """Of the numbers: int or float."""
    activations: str | None = None
    """How activations are rounded: dynamic, which is for each token while it serves; None: not. A fixed scale, found
    here once (static FP8), is no scheme: vLLM's CPU build does not start with it, and it gains little elsewhere."""
    grouped: bool = False
    """Weights have a scale per group, else one per output."""

    @property
    def calibrated(self) -> bool:
        """Whether it looks at activations of sample texts."""
        return self.algorithm != "rtn"


PRESETS: Mapping[str, Preset] = {
    "AWQ": Preset("awq", 4, "int", grouped=True),
    "GPTQ": Preset("gptq", 4, "int", grouped=True),
    "INT8": Preset("rtn", 8, "int", activations="dynamic"),
    "FP8": Preset("rtn", 8, "float", activations="dynamic"),
}

_NO_BITS_AND_BYTES = (
    "bitsandbytes rounds weights while an engine loads them, so that there is nothing to build, and vLLM 0.32 has no "
    "loader for it: use AWQ or GPTQ (4 bits), INT8 or FP8"
)


class UnfitError(ValueError):
    """A build that cannot be made or served as it is asked for; the text says what can."""


def preset(scheme: str) -> Preset:
    """The preset of a scheme; raises UnfitError, which names those there are."""
    if scheme == BITS_AND_BYTES:
        raise UnfitError(_NO_BITS_AND_BYTES)
    found = PRESETS.get(scheme)
    if found is None:
        raise UnfitError(f"there is no scheme {scheme}: use {', '.join(PRESETS)}")
    return found


def fitting_group_size(config: Mapping[str, Any], wanted: int | None = None, *, tensor_parallel: int = 1) -> int:
    """The group size for a model by its config.json: the wanted one, or the largest that fits; raises UnfitError."""
    inputs = layer_inputs(config, tensor_parallel)
    if not inputs:
        raise UnfitError("config.json has no hidden_size and intermediate_size: give groupSize, or use INT8 or FP8")
    fitting = [size for size in GROUP_SIZES if all(count % size == 0 for count in inputs.values())]
    if wanted is None and fitting:
        return fitting[0]
    if wanted is not None and all(count % wanted == 0 for count in inputs.values()):
        return wanted
    shown = ", ".join(f"{name} {count}" for name, count in inputs.items())
    instead = f"groupSize {' or '.join(map(str, fitting))}" if fitting else "INT8 or FP8, which have no groups"
    asked = f"a group of {wanted}" if wanted is not None else f"none of the groups {', '.join(map(str, GROUP_SIZES))}"
    verb = "does not divide" if wanted is not None else "divides"
    raise UnfitError(f"{asked} {verb} the inputs of every layer ({shown}): use {instead}")


def layer_inputs(config: Mapping[str, Any], tensor_parallel: int = 1) -> dict[str, int]:
    """Inputs of the layers that are quantised, by what they are; those that are cut, as one part of them."""
    text = text_config(config)
    hidden, heads = _number(text, "hidden_size"), attention_heads(config)
    found: dict[str, int] = {}
    if hidden is None:
        return found
    found["hidden_size"] = hidden
    width = _number(text, "head_dim") or (hidden // heads if heads else None)
    if heads and width:
        found["attention output"] = heads * width // tensor_parallel
    for name in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"):
        size = _number(text, name)
        if size is not None:
            found[name] = size // tensor_parallel
    return found if any(name.endswith("intermediate_size") for name in found) else {}


def _number(config: Mapping[str, Any], name: str) -> int | None:
    value = config.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
