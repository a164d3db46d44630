"""Where results are kept: found again by their key, and stored so that nobody ever sees half of one.

Rules (api/buildtask.py says where a result is):
- RECORD is what makes a result: it is written last, or comes with the rename that makes the folder appear;
- a result is believed only after every byte of its files was looked at: what is damaged counts as not there, so that it
  is made again;
- what is whole is never written over: another build of the same key was first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO, TypeVar

from tuneyard.api.base import parsed
from tuneyard.api.buildoutput import BuildOutput
from tuneyard.api.buildtask import RECORD, BuildResult, BuildTask
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source, Source
from tuneyard.build.errors import BuildError, StoppedError
from tuneyard.build.inputs import Read, fetched
from tuneyard.systems.artifacts.arriving import unwritable
from tuneyard.systems.artifacts.download import digest_of_remote, sync
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of, list_files
from tuneyard.systems.artifacts.remote import Credentials, UnreachableError, remote_of
from tuneyard.systems.artifacts.s3writing import S3Writer

_PIECE = 4 << 20
_WAIT = 0.5
_TRIES = 5
_FIRST_PAUSE = 1.0

_Found = TypeVar("_Found")

Told = Callable[[str, float | None], None]
"""Hears what is stored, and how many percent of it are."""


class Output(Protocol):
    """One kind of place. Errors are ArtifactError, StoppedError and BuildError."""

    keeps_steps: bool
    """Whether what a step before the last has made is kept there too, for the next attempt."""

    def find(self, key: str) -> BuildResult | None:
        """The record of a result that is there and whole."""

    def try_writing(self, key: str) -> None:
        """Fail as `keep` would where nothing can be written, before hours of work; leaves nothing."""

    def bring(self, key: str, target: Path, told: Told) -> tuple[Path, BuildResult] | None:
        """The files of a result, at `target` or where they are, and its record; None as for `find`."""

    def keep(self, folder: Path, result: BuildResult, told: Told) -> BuildResult:
        """Store a folder, whose record is `result`; returns the record, with what the place adds to it."""


def output_of(task: BuildTask, read: Read, stopped: threading.Event) -> Output:
    """The output of a task; raises BuildError where this version knows no such kind."""
    given = task.output
    if given.volume is not None:
        if task.output_path is None:
            raise BuildError("the task names an output volume and not where it is mounted", again=False)
        return VolumeOutput(Path(task.output_path) / (given.volume.path or ""), stopped)
    if given.s3 is not None:
        return BucketOutput(given, read, stopped)
    if given.hugging_face is not None:
        from tuneyard.build.huboutput import HubOutput  # noqa: PLC0415 -- it needs what is here

        return HubOutput(given.hugging_face, read, stopped)
    raise BuildError("build.output is of a kind that this image does not know: update it", again=False)


class VolumeOutput:
    """A folder of a volume; each result is a folder named by its key."""

    keeps_steps = True

    def __init__(self, root: Path, stopped: threading.Event) -> None:
        self._root = root
        self._stopped = stopped

    def find(self, key: str) -> BuildResult | None:
        """A folder whose bytes are those of its record; one that is damaged is put aside."""
        folder = self._root / key
        if not folder.is_dir():
            return None
        record = parsed(BuildResult, _text(folder / RECORD))
        if record is not None and record.digest == digest_of(folder).digest:
            return record
        aside = self._root / f".{key}.damaged"
        with self._locked(key):
            shutil.rmtree(aside, ignore_errors=True)
            if folder.is_dir():
                folder.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)
        return None

    def try_writing(self, key: str) -> None:
        """Make the folder, and a file in it for a moment."""
        probe = self._root / f".{key}.{socket.gethostname()}.try"
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            try:
                probe.write_bytes(b"\n")  # a byte: a volume that is full takes an empty file
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(key, error) from error

    def bring(self, key: str, target: Path, told: Told) -> tuple[Path, BuildResult] | None:
        """Where it is."""
        del target, told
        found = self.find(key)
        return None if found is None else (self._root / key, found)

    def keep(self, folder: Path, result: BuildResult, told: Told) -> BuildResult:
        """Copy the folder, look at the copy, and let it appear by one rename."""
        target = self._root / result.key
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            with self._locked(result.key):
                if target.is_dir():
                    found = self._equal(target)
                    if found is not None:
                        return found  # another build of the same key was first
                    shutil.rmtree(target)
                for left in self._root.glob(f".{result.key}.*.new"):
                    shutil.rmtree(left, ignore_errors=True)  # of processes that died: the lock is ours
                scratch = self._root / f".{result.key}.{socket.gethostname()}.new"
                try:
                    self._copy(folder, scratch, told)
                    if digest_of(scratch).digest != result.digest:
                        text = "the volume returns other bytes than were written: check its storage"
                        raise ArtifactError(Reason.ARTIFACT_UNREADABLE, text)
                    scratch.rename(target)
                finally:
                    shutil.rmtree(scratch, ignore_errors=True)
                sync(self._root)
        except OSError as error:
            raise self._unwritable(result.key, error) from error
        return result

    def _unwritable(self, key: str, error: OSError) -> ArtifactError:
        return unwritable(self._root, key, 0, error, disk="build.output's volume", remedy="make it larger")

    def _equal(self, target: Path) -> BuildResult | None:
        record = parsed(BuildResult, _text(target / RECORD))
        return record if record is not None and record.digest == digest_of(target).digest else None

    def _copy(self, folder: Path, scratch: Path, told: Told) -> None:
        names = [*list_files(folder), RECORD]
        total, done = sum((folder / name).stat().st_size for name in names), 0
        for name in names:
            place = scratch / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("rb") as source, place.open("wb") as copy:
                while piece := source.read(_PIECE):
                    if self._stopped.is_set():
                        raise StoppedError
                    copy.write(piece)
                    done += len(piece)
                    told("copying to the volume", 100 * done / max(total, 1))
                copy.flush()
                os.fsync(copy.fileno())
            place.chmod(0o444)
        for here, _, _ in os.walk(scratch):
            Path(here).chmod(0o755)
            sync(Path(here))

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """One process at a time, which waits until the other has ended; raises StoppedError."""
        path = self._root / f".{key}.lock"
        file = self._lock_file(path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()

    def _lock_file(self, path: Path) -> TextIO:
        """The file, opened, locked, and still the one of that name: who had it before has removed it."""
        while True:
            file = path.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                    return file
                file.close()
            except BlockingIOError:
                file.close()
                if self._stopped.wait(_WAIT):
                    raise StoppedError from None


class BucketOutput:
    """A prefix of a bucket; each result has a prefix of its key below it."""

    keeps_steps = True

    def __init__(self, output: BuildOutput, read: Read, stopped: threading.Event) -> None:
        self._output = output
        self._read = read
        self._stopped = stopped

    def find(self, key: str) -> BuildResult | None:
        """A record, beside objects whose bytes are those of it."""
        record = self._told(key)
        if record is None:
            return None
        with closing(remote_of(Source(s3=self._source(key)), self._given())) as remote:
            digest = digest_of_remote(remote, stopped=self._stopped).digest
        return record if digest == record.digest else None

    def try_writing(self, key: str) -> None:
        """Begin an upload of the record, and give it up.

        Strangers are told by `keep` only: an attempt that ended while it stored has left files of the result too.
        """
        with closing(S3Writer(self._source(key), self._given())) as bucket:
            patiently(lambda: bucket.try_writing(RECORD), self._stopped)

    def bring(self, key: str, target: Path, told: Told) -> tuple[Path, BuildResult] | None:
        """Fetched, and looked at as it comes."""
        record, source = self._told(key), Source(s3=self._source(key))
        if record is None:
            return None
        words = "fetching the result of an earlier step"
        found = fetched(source, target, self._read, self._stopped, lambda p: told(words, p))
        if found.digest == record.digest:
            return target, record
        shutil.rmtree(target)
        return None

    def keep(self, folder: Path, result: BuildResult, told: Told) -> BuildResult:
        """Write every file, then the record; what another build has put there meanwhile stays, if it is whole."""
        while True:
            found = self.find(result.key)
            if found is not None:
                return found
            if self._write(folder, result.key, told):
                self._refuse_strangers(result.key, set(list_files(folder)))
                return result

    def _refuse_strangers(self, key: str, ours: set[str]) -> None:
        """Other objects under the prefix would be fetched with the result; nothing here removes any."""
        with closing(remote_of(Source(s3=self._source(key)), self._given())) as remote:
            strangers = sorted({file.path for file in patiently(remote.files, self._stopped)} - ours)
        if strangers:
            shown = ", ".join(strangers[:3]) + (" and more" if len(strangers) > 3 else "")
            words = f"{self._source(key).uri} holds objects that are not the result's: remove {shown}"
            raise BuildError(words, again=True)

    def _told(self, key: str) -> BuildResult | None:
        """A record, beside objects of just as many bytes."""
        source = self._source(key)
        with closing(S3Writer(source, self._given())) as bucket:
            text = patiently(lambda: bucket.get(RECORD), self._stopped)
        record = parsed(BuildResult, None if text is None else text.decode(errors="replace"))
        if record is None:
            return None
        with closing(remote_of(Source(s3=source), self._given())) as remote:
            try:
                size = sum(file.size for file in patiently(remote.files, self._stopped))
            except ArtifactError as error:
                if error.reason is Reason.ARTIFACT_NOT_FOUND:
                    return None  # somebody has removed the files and left the record
                raise
        return record if size == record.size_bytes else None

    def _write(self, folder: Path, key: str, told: Told) -> bool:
        """Whether the record is ours: not where there was none, and another build has put one there meanwhile."""
        names = list_files(folder)
        total, done = sum((folder / name).stat().st_size for name in names), 0

        def came(count: int) -> None:
            nonlocal done
            if self._stopped.is_set():
                raise StoppedError
            done += count
            told("uploading", min(100.0, 100 * done / max(total, 1)))

        record, kind = (folder / RECORD).read_bytes(), "application/json"
        with closing(S3Writer(self._source(key), self._given())) as bucket:
            first = patiently(lambda: bucket.get(RECORD), self._stopped) is None
            for name in names:
                patiently(partial(bucket.put_file, name, folder / name, came), self._stopped)
            if first:
                return patiently(lambda: bucket.put_new(RECORD, record, kind), self._stopped)
            patiently(lambda: bucket.put(RECORD, record, kind), self._stopped)
        return True

    def _source(self, key: str) -> S3Source:
        found = self._output.source(key)
        assert found is not None and found.s3 is not None  # noqa: S101 -- it is a bucket's output
        return found.s3

    def _given(self) -> Credentials | None:
        name = self._output.credentials
        return None if name is None else self._read(name)


def patiently(ask: Callable[[], _Found], stopped: threading.Event) -> _Found:
    """What `ask` returns, asking again while the place is out of reach for a while; raises its ArtifactError."""
    for tries in range(_TRIES):
        try:
            return ask()
        except ArtifactError as error:
            passing = isinstance(error, UnreachableError) or error.reason is Reason.SOURCE_UNREACHABLE
            if not passing or tries == _TRIES - 1:
                raise
            if stopped.wait(_FIRST_PAUSE * 2**tries):
                raise StoppedError from None
    raise AssertionError("the last try returns or raises")


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None
