"""Which file of a base's folder is the GGUF one, where the base is that."""

from __future__ import annotations

from pathlib import Path

from tuneyard.planning.gguf import GgufBase
from tuneyard.systems.artifacts.basefiles import gguf_in
from tuneyard.systems.artifacts.gguf import gguf_base


def gguf_name_of(folder: Path) -> str | None:
    """Name of the one GGUF file; None for a folder of safetensors, or of neither.

    Of a model that is split it is the first part, which llama.cpp wants to be told. Raises ArtifactError where there
    are several models.
    """
    found = gguf_in(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return found[0] if found else None


def gguf_base_of(folder: Path) -> GgufBase | None:
    """What the GGUF file of a base says of it; None where there is none. Raises ArtifactError."""
    name = gguf_name_of(folder)
    return None if name is None else gguf_base(folder, name)
