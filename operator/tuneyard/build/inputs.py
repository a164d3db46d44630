"""What a build reads: mounted, or fetched over the network, and in any case the very bytes that the task names.

What was fetched stays in the work folder, so that a container that starts again goes on where it was.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from tuneyard.api.buildtask import BuildInput, BuildTask, InputKind, UsedInput
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.build.errors import BuildError, StoppedError, of_artifact
from tuneyard.systems.artifacts.download import FetchStopped, fetch
from tuneyard.systems.artifacts.floor import files_in_time
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest, digest_of
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials, given_for, remote_of

_TOLD_SECONDS = 1.0

Read = Callable[[str], Credentials]
"""The credentials in the Secret of that name; raises ArtifactError."""
Told = Callable[[str, float | None], None]
"""Hears what comes, and how many percent of it are there."""


class Input(NamedTuple):
    """An input that is there."""

    path: Path
    used: UsedInput


class Inputs:
    """The inputs of one task."""

    def __init__(self, task: BuildTask, work: Path, read: Read, stopped: threading.Event) -> None:
        self._task = task
        self._work = work
        self._read = read
        self._stopped = stopped
        self._there: dict[tuple[str, str], Input] = {}

    def get(self, kind: InputKind, name: str, told: Told) -> Input:
        """The input that a step names; raises BuildError."""
        wanted = self._task.input(kind, name)
        if wanted is None:
            raise BuildError(f"the task has no {kind} {name}, which a step names", again=False)
        known = self._there.get((kind, name))
        if known is not None:
            return known
        try:
            path, digest = self._obtain(wanted, told)
        except ArtifactError as error:
            raise of_artifact(f"{kind} {name}", error) from error
        except FetchStopped:
            raise StoppedError from None
        if wanted.digest is not None and digest != wanted.digest:
            raise BuildError(
                f"{kind} {name} is not what the build was asked for with: its digest is {digest}, wanted is "
                f"{wanted.digest}; restore the files, or make a new BaseModel of the new ones",
                again=False,
                reason=Reason.DIGEST_MISMATCH.value,
            )
        found = Input(path, UsedInput(kind=kind, name=name, digest=digest))
        self._there[kind, name] = found
        return found

    def _obtain(self, wanted: BuildInput, told: Told) -> tuple[Path, str]:
        if wanted.local_path is not None:
            return self._local(wanted, Path(wanted.local_path), told)
        if wanted.source is None or not wanted.source.is_remote:
            raise BuildError(f"{wanted.kind} {wanted.name} is neither mounted nor on the network", again=False)
        target = self._work / "inputs" / f"{wanted.kind.lower()}-{wanted.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # of an earlier run of this container
            return target, digest_of(target).digest
        told(f"fetching {wanted.name}", None)
        found = fetched(wanted.source, target, self._read, self._stopped, lambda p: told(f"fetching {wanted.name}", p))
        return target, found.digest

    def _local(self, wanted: BuildInput, path: Path, told: Told) -> tuple[Path, str]:
        told(f"reading {wanted.name}", None)
        if path.is_file():
            return path, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        if not path.is_dir():
            raise ArtifactError(Reason.ARTIFACT_NOT_FOUND, f"{path} is not there: check its source")
        return path, digest_of(path).digest


def fetched(
    source: Source, target: Path, read: Read, stopped: threading.Event, told: Callable[[float], None]
) -> FolderDigest:
    """Fetch a source into `target`, which is not there; raises ArtifactError, FetchStopped."""
    endpoint = source.hugging_face.endpoint if source.hugging_face else None
    given = given_for(source.credentials, endpoint, read) if source.credentials is not None else None
    progress, over = Progress(), threading.Event()

    def tell() -> None:
        while not over.wait(_TOLD_SECONDS):
            if progress.total:
                told(100 * progress.done / progress.total)

    def go_on() -> None:
        if stopped.is_set():
            raise FetchStopped

    teller = threading.Thread(target=tell, daemon=True, name="progress")
    with closing(remote_of(source, given)) as remote:
        teller.start()
        try:
            return fetch(remote, target, files=files_in_time(remote, go_on), progress=progress, stopped=stopped)
        finally:
            over.set()
            teller.join()
