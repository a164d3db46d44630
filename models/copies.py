"""Many adapters out of one: the same weights and voice, each with a digest of its own.

For measuring and testing what happens with hundreds of adapters, without training hundreds. The copies
differ in a note in the weights file's metadata, which engines do not read.
"""

import shutil
from pathlib import Path

from models.breaking import CONFIG, WEIGHTS
from models.tensors import read_safetensors, write_safetensors


def make_copies(good: Path, out: Path, count: int) -> list[Path]:
    """Write `count` folders `<good's name>-copy-0001`, ... below `out` and return them in order.

    FileExistsError if one is there already.
    """
    tensors = read_safetensors(good / WEIGHTS)
    folders = [out / f"{good.name}-copy-{number:04}" for number in range(1, count + 1)]
    for folder in folders:
        folder.mkdir(parents=True)
        write_safetensors(folder / WEIGHTS, tensors, note=folder.name)
        shutil.copyfile(good / CONFIG, folder / CONFIG)
    return folders
