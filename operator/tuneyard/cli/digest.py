"""`tuneyard digest DIR`: the digest of an artifact's folder, for `spec.digest`. It is what agents compute in the pods.

The digest goes to stdout, and nothing else; progress goes to stderr, and only to a terminal.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tuneyard.cli.errors import UserError
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of

_QUIET_SECONDS = 2.0
_GIB = 1 << 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard digest`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder with the model's or the adapter's files")
    parser.add_argument("--files", action="store_true", help="print the lines that are hashed, too: sha256, size, path")


def run(args: argparse.Namespace) -> int:
    """Print the digest; raises UserError with the reason where there is none."""
    folder: Path = args.folder
    if not folder.is_dir():
        what = "is a file: name the folder it lies in" if folder.exists() else "does not exist"
        raise UserError(f"{folder} {what}")
    try:
        found = digest_of(folder, on_bytes=_progress() if sys.stderr.isatty() else None)
    except ArtifactError as error:
        raise UserError(f"{folder} is no artifact ({error.reason.value}): {error}") from error
    if args.files:
        for file in found.files:
            sys.stdout.write(f"{file.sha256}  {file.size}  {file.path}\n")
    sys.stdout.write(found.digest + "\n")
    return 0


def _progress() -> Callable[[int], None]:
    """Tells on one line of stderr how much was read, once it takes long. Calls from several threads are harmless."""
    started = last = time.monotonic()
    done = 0

    def heard(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - started > _QUIET_SECONDS and now - last > 1:
            last = now
            sys.stderr.write(f"\rread {done / _GIB:.1f} GiB in {now - started:.0f} s \r")

    return heard
