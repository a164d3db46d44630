"""The digest of an artifact: one SHA-256 over the sorted list of its files.

A digest is `sha256:` and 64 hex digits, over the lines `<sha256 of file>  <size>  <relative path>` (each ended by a
newline), sorted by path, of all files that matter for serving.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"

_IGNORED_NAMES = frozenset(
    {"README.md", "LICENSE", "LICENSE.txt", ".gitattributes", ".gitignore", "tuneyard-build.json"}
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_IGNORED_ENDINGS = (*PICKLES, ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".mlmodel")
_IGNORED_PARTS = frozenset({".git", ".cache", "__pycache__", "lost+found"})


class FileDigest(NamedTuple):
    """One file of an artifact: path relative to its root (with /), size in bytes, SHA-256 as hex."""

    path: str
    size: int
    sha256: str


def matters_for_serving(path: str) -> bool:
    """Whether a file is part of the artifact.

    Documents about it and version control are not, nor are weights in formats that no engine is given: hubs keep the
    same model in several, which would double what pods fetch.
    """
    parts = path.split("/")
    ignored = parts[-1] in _IGNORED_NAMES or parts[-1].endswith(_IGNORED_ENDINGS)
    return not ignored and not any(map(is_ignored_folder, parts))


def is_ignored_folder(name: str) -> bool:
    """Whether nothing below folders of this name is part of an artifact; what files are called says nothing of these."""
    return name in _IGNORED_PARTS


def artifact_digest(files: Iterable[FileDigest]) -> str:
    """The digest of an artifact of these files; files that do not matter for serving are left out."""
    lines = hashlib.sha256()
    for file in sorted(files):
        if matters_for_serving(file.path):
            lines.update(f"{file.sha256}  {file.size}  {file.path}\n".encode())
    return f"sha256:{lines.hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether the text is a digest in canonical form."""
    return re.match(DIGEST_PATTERN, text) is not None
