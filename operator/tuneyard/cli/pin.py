"""`tuneyard pin FILE...`: write into manifests which bytes are meant, so that Git's cannot come to mean others.

A branch or tag of a hub becomes its commit, and a document without `digest` gets one. Everything else stays as it is,
byte for byte. A digest that is there is never changed: other bytes are another object.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from pydantic import ValidationError

from tuneyard.api.reasons import Reason
from tuneyard.api.sources import COMMIT_PATTERN, Source
from tuneyard.cli.errors import UserError
from tuneyard.cli.manifests import Artifact, Pins, artifacts, pinned
from tuneyard.cli.sources import remote_from_environment
from tuneyard.systems.artifacts.folder import ArtifactError

Resolve = Callable[[Source, str], tuple[str | None, str]]
"""Asks a source, under a name to show: the commit of a hub's revision (else None), and the artifact's digest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard pin`."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="manifests, of one or more documents each")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something is not pinned")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; print what would change")
    parser.add_argument("--anonymous", action="store_true", help="send no token")


def run(args: argparse.Namespace) -> int:
    """Pin the files, all or none of each; raises UserError."""

    def resolve(source: Source, what: str) -> tuple[str | None, str]:
        return ask(source, what, args.anonymous)

    unpinned = False
    for path in args.files:
        told: list[str] = []
        try:
            # newline="" keeps \r\n: everything that is not pinned must stay
            with path.open(encoding="utf-8", newline="") as file:
                text = file.read()
            changed = pin(text, resolve, told.append, args.check)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        unpinned |= changed is None
        if changed is not None and changed != text and not args.dry_run:
            _write(path, changed)
        # only now is true what they say
        sys.stderr.writelines(f"{path}: {words}\n" for words in told)
        if changed is not None and args.dry_run:
            lines = difflib.unified_diff(
                text.splitlines(keepends=True), changed.splitlines(keepends=True), str(path), f"{path} (pinned)"
            )
            sys.stdout.writelines(line if line.endswith("\n") else f"{line}\n" for line in lines)
    return 1 if unpinned else 0


def pin(text: str, resolve: Resolve, tell: Callable[[str], object], check: bool = False) -> str | None:
    """The manifest with everything pinned. With `check` nothing is asked: None if something is not pinned."""
    pins: list[Pins] = []
    unpinned = False
    for artifact in artifacts(text):
        what = f"{artifact.kind} {artifact.name}"
        if _is_built(artifact):
            continue  # what it is made of is pinned where that stands
        source = _source(artifact, what)
        given = artifact.spec.get("digest")
        if not source.is_remote:
            if given is None and not _names_digest(source):
                tell(f"{what} {_by_hand(source, check)}")
                unpinned = True
            continue
        hub = source.hugging_face
        moves = hub is not None and not re.match(COMMIT_PATTERN, hub.revision)
        if not moves and given is not None:
            continue
        if check:
            tell(f"{what} is not pinned: run `tuneyard pin`")
            unpinned = True
            continue
        commit, digest = resolve(source, what)
        if given is not None and given != digest:
            raise UserError(
                f"{what} has digest {given}, its source has {digest}: other bytes are another object; create a new "
                f"{artifact.kind}, or name the commit that has the old ones"
            )
        pins.append(Pins(artifact.position, commit if moves else None, digest if given is None else None))
        tell(f"{what} is pinned to {f'{commit[:12]}, ' if commit and moves else ''}{digest}")
    if check:
        return None if unpinned else text
    return pinned(text, pins) if pins else text


def _is_built(artifact: Artifact) -> bool:
    source = artifact.spec.get("source")
    return isinstance(source, dict) and source.get("build") is not None


def _names_digest(source: Source) -> bool:
    return source.image is not None and "@sha256:" in source.image.reference


def _by_hand(source: Source, check: bool) -> str:
    """What is to be done about a source that only its owner can ask for its digest."""
    if source.image is not None:
        image = re.sub(r"(@.*|:[^/:]*)$", "", source.image.reference)
        if check:
            return f"is not pinned: a tag names its image, and tags move: write {image}@sha256:…, or spec.digest"
        return f"comes as an image and is skipped: write {image}@sha256:… yourself, with the image's digest"
    if check:
        where = ", `tuneyard digest DIR` of its folder prints it" if source.volume is not None else ""
        return f"is not pinned: write spec.digest{where}"
    if source.volume is not None:
        return "is on a volume and skipped: write spec.digest yourself, `tuneyard digest DIR` of its folder prints it"
    return "has a source of a kind that this version does not know, and is skipped: write spec.digest yourself"


def ask(source: Source, what: str, anonymous: bool = False) -> tuple[str | None, str]:
    """Commit and digest of a remote source, by the environment's credentials; raises UserError."""
    from tuneyard.cli.bars import shown  # noqa: PLC0415 -- help does not wait for rich, or for boto3
    from tuneyard.systems.artifacts.download import digest_of_remote  # noqa: PLC0415

    try:
        with closing(remote_from_environment(source, anonymous, of_a_file=True)) as remote, shown(what) as progress:
            found = digest_of_remote(remote, progress=progress)
            return remote.commit, found.digest
    except ArtifactError as error:
        hub = source.hugging_face
        hint = ""
        if error.reason is Reason.ACCESS_DENIED and hub is not None and hub.endpoint is not None and not anonymous:
            hint = f"; HF_TOKEN goes to {hub.endpoint} only if HF_ENDPOINT names it"
        raise UserError(f"{what} ({error.reason.value}): {error}{hint}") from error


def _source(artifact: Artifact, what: str) -> Source:
    try:
        return Source.model_validate(artifact.spec["source"])
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{what} has a source that the API would refuse ({problems})") from error


def _write(path: Path, text: str) -> None:
    """Replace the file at once, so that an interrupted run leaves the old one; raises UserError."""
    real = path.resolve()
    new = real.with_name(f".{real.name}.pinned")
    try:
        new.write_bytes(text.encode())
        new.chmod(real.stat().st_mode & 0o777)
        new.rename(real)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise UserError(f"{path} cannot be written, and stays as it was: {error.strerror}") from error
