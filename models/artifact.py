r"""Where built models lie, and the digest that names what is in a folder.

- A cache entry is `$TUNEYARD_CACHE/models/<name>-<key>`; the key covers every input, code included. An
  entry is built beside its place and renamed into it, so a folder that exists is complete.
- The digest of an artifact is SHA-256 over the lines `<sha256>  <size>  <relative path>\n`, sorted by path,
  as `tuneyard digest` prints it: it depends on contents and names only, never on times or owners.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tuneyard.systems.artifacts.folder import digest_of


def cache_root() -> Path:
    """Return the folder of built models; it need not exist yet."""
    root = os.environ.get("TUNEYARD_CACHE") or str(Path.home() / ".cache" / "tuneyard")
    return Path(root) / "models"


def key_of(parts: Iterable[bytes]) -> str:
    """Return 12 hex digits over `parts`, each with its length so that no two lists look alike."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.hexdigest()[:12]


def sources(*names: str) -> list[bytes]:
    """Return the text of modules of this package: what they say is part of what they build."""
    here = Path(__file__).parent
    return [(here / name).read_bytes() for name in names]


def cached(name: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the entry `<name>-<key>`, built by `build(folder)` if it is not there.

    Two processes may ask at once: the second waits and finds the first one's entry. What a killed build
    left behind is removed by the next.
    """
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}-{key}"
    if target.is_dir():
        return target
    with (root / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        for leftover in root.glob(f".{name}-*.tmp"):
            shutil.rmtree(leftover)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", suffix=".tmp", dir=root))
        scratch.chmod(0o755)  # engines run as another user
        build(scratch)
        scratch.rename(target)
    return target


def digest(folder: Path) -> str:
    """Return `sha256:<hex>` of all files below `folder` that matter for serving."""
    return digest_of(folder).digest
