"""Model folders: which of their files are weights, and carrying over those that are not.

Tokenizer, chat template and generation settings of a result are its base's, byte for byte: what a library would write
in their place may split texts in another way.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tuneyard.api.digests import matters_for_serving
from tuneyard.build.tools.reporting import ToolError

_DTYPES = ("float32", "bfloat16", "float16")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf")
_OF_ANOTHER = frozenset({"adapter_config.json", "tuneyard-build.json", "config.json", "recipe.yaml"})


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises ToolError."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        raise ToolError(f"{folder.name} has no config.json: a base in this format cannot be built from") from None
    except ValueError as error:
        raise ToolError(f"config.json is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ToolError("config.json holds no object")
    return config


def carry_over(source: Path, target: Path, keep: Iterable[str] = ()) -> None:
    """Copy all that is neither weights nor configuration, over what is there but for the names in `keep`."""
    kept = set(keep)
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if not path.is_file() or not matters_for_serving(name) or name in _OF_ANOTHER or name in kept:
            continue
        if name.endswith(_WEIGHTS) or "/" in name:
            continue
        shutil.copyfile(path, target / name)


def refuse_quantized(folder: Path, what: str) -> None:
    """Raise ToolError where the weights are in few bits already: adding to these, or rounding again, loses more."""
    config = read_config(folder)
    if "quantization_config" in config or "compression_config" in config:
        raise ToolError(f"{folder.name} is quantised already: {what} its unquantised original")


def refuse_code(folder: Path) -> None:
    """Raise ToolError where reading the model would run code: of its repository, or of a pickle."""
    if not any(folder.glob("*.safetensors")):
        raise ToolError(f"{folder.name} has no weights in safetensors, and others may run code: save it in that format")
    if "auto_map" in read_config(folder):
        raise ToolError(
            f"{folder.name} needs Python code of its repository (auto_map in config.json), which is not run here: use "
            "a release of the model in a format that transformers knows"
        )


def base_dtype(base: Path) -> str:
    """What a base's weights are in, by its config.json; float32 where it does not say."""
    config = read_config(base)
    found = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return found if found in _DTYPES else "float32"
