"""What runs in the cluster from the start: cluster DNS and the fake GPUs, with images made of our own programs.

Manifests are templates with `${NAME}`; an image's tag is the key of the program in it, so a changed program is another
image and an unchanged one is not loaded again.
"""

from __future__ import annotations

import os
import string
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import ClusterError
from cluster.paths import SOURCE

DEFAULT_GPUS = 8


def image_name(program: Path) -> str:
    """The image that holds a program of the cache, whose folder is `<name>-<key>`."""
    name, _, key = program.parent.name.rpartition("-")
    return f"localhost/tuneyard-cluster-{name}:{key}"


def fake_gpus() -> int:
    """How many GPUs a node pretends to have, from `$TUNEYARD_FAKE_GPUS`."""
    text = os.environ.get("TUNEYARD_FAKE_GPUS") or str(DEFAULT_GPUS)
    if not text.isdecimal():
        raise ClusterError(f"TUNEYARD_FAKE_GPUS={text!r} is no number of GPUs")
    return int(text)


def render(names: tuple[str, ...], values: Mapping[str, str]) -> str:
    """The manifests `names`, filled in, as one YAML stream."""
    texts = [(SOURCE / "manifests" / f"{name}.yaml").read_text() for name in names]
    return string.Template("---\n".join(texts)).substitute(values)
