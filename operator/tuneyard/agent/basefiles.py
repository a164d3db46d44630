"""Which file of a base's folder is the GGUF one, where the base is that."""

from __future__ import annotations

from pathlib import Path

from tuneyard.api.reasons import Reason
from tuneyard.planning.gguf import GgufBase
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.gguf import gguf_base


def gguf_name_of(folder: Path) -> str | None:
    """Name of the one GGUF file; None for a folder of safetensors, or of neither.

    Of a model that is split it is the first part, which llama.cpp wants to be told. Raises ArtifactError where there
    are several models: one in several quantisations is several bases.
    """
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if any(name.endswith(".safetensors") for name in files):
        return None
    found = [name for name in files if name.endswith(".gguf")]
    if len(found) > 1 and all("-of-" in name for name in found):
        return found[0]
    if len(found) > 1:
        raise ArtifactError(
            Reason.FILES_MISSING, f"there are {len(found)} GGUF files, {found[0]} first: give each a folder of its own"
        )
    return found[0] if found else None


def gguf_base_of(folder: Path) -> GgufBase | None:
    """What the GGUF file of a base says of it; None where there is none. Raises ArtifactError."""
    name = gguf_name_of(folder)
    return None if name is None else gguf_base(folder, name)
