"""Fetching a remote artifact: parallel over files and over ranges of large ones, in bounded memory, hashed on the way.

Rules:
- `target` appears when everything is there and not before. Until then all is in `.<target>.fetching` beside it, where
  each file is named after what it must be (path, version, size): what an earlier process left is used exactly if it is
  part of the same bytes, and removed otherwise. That folder belongs to one process at a time; whoever calls sees to it.
- A part of a file whose SHA-256 is unknown is used only within one boot of the machine: after a power cut its tail may
  be zeros, and nothing would tell.
- Chunks are begun in order and at most WINDOW of them are in memory: a process that is killed fetches no more than
  those again.
- Errors that may pass are tried again, TRIES times in a row without a byte; all others end the transfer, and what has
  come stays for the next. One that comes too slowly (floor.py) is ended too, and the beginning of a chunk kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tuneyard.api.digests import FileDigest
from tuneyard.systems.artifacts.arriving import Arriving, MismatchError, disk_full, free_bytes, unwritable
from tuneyard.systems.artifacts.floor import Floor, files_in_time
from tuneyard.systems.artifacts.folder import ArtifactError, FolderDigest, summed
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Remote, RemoteFile, UnreachableError, changed, listing_key

WORKERS = 8
CHUNK = 6 << 20
WINDOW = 8
"""Chunks in memory: 48 MiB, whatever is fetched."""
ABREAST = 2
"""Files in the making at once, where there is a choice: one file is hashed by one thread at a time."""
TRIES = 6
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 8.0
_LOOK = 0.1
_PATIENCE = 1.0
"""How long threads that wait for the network are given to end; afterwards they are left to their time limits."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Event(Protocol):
    """What a caller sets to end a transfer: a threading.Event is one."""

    def is_set(self) -> bool:
        """Whether the transfer is to end."""


class FetchStopped(Exception):  # noqa: N818 -- it is no error, somebody asked for it
    """The caller's `stopped` was set; what has come stays for the next time."""


def fetch(
    remote: Remote,
    target: Path,
    *,
    files: Sequence[RemoteFile] | None = None,
    names: Collection[str] | None = None,
    workers: int = WORKERS,
    progress: Progress | None = None,
    stopped: Event | None = None,
) -> FolderDigest:
    """Fetch an artifact into `target`, which must not exist; returns the digest of the whole artifact.

    `files` is what the remote has listed, where the caller relies on a listing (default: it is asked for). Only the
    files `names` are kept (default: all); the others are hashed on the way. Raises ArtifactError, or FetchStopped
    within about a second after `stopped` was set.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists: folders appear when they are whole, and are not fetched twice")
    while True:
        try:
            return _fetch(remote, files, target, names, _Run(remote, workers, progress or Progress(), stopped))
        except MismatchError as error:
            if not error.recovered:
                raise
            # What was on the disk was damaged. It is removed, so each file comes here at most once.
        except OSError as error:
            raise unwritable(target.parent, target.name, 0, error) from error


def take_up(remote: Remote, files: Sequence[RemoteFile], target: Path) -> None:
    """Have `fetch` begin with the folder that lies at `target`, of the same listing: what is right of it stays.

    It was whole when it got there. What it is now only its files tell.
    """
    tree = _tree(target, listing_key(remote, files))
    shutil.rmtree(tree, ignore_errors=True)
    tree.parent.mkdir(exist_ok=True)
    target.rename(tree)


def digest_of_remote(
    remote: Remote, *, workers: int = WORKERS, progress: Progress | None = None, stopped: Event | None = None
) -> FolderDigest:
    """The digest of a remote artifact, writing nothing; a SHA-256 that the source knows is believed."""
    run = _Run(remote, workers, progress or Progress(), stopped)
    files = run.listed()
    return _summed(files, run.all([Arriving(file, None) for file in files if file.sha256 is None]))


def _fetch(
    remote: Remote, files: Sequence[RemoteFile] | None, target: Path, names: Collection[str] | None, run: _Run
) -> FolderDigest:
    files = run.listed() if files is None else files
    key = run.patiently(lambda: listing_key(remote, files))
    wanted = {file.path for file in files} if names is None else set(names)
    kept = [file for file in files if file.path in wanted]
    tree = _tree(target, key)
    scratch = tree.parent
    tree.mkdir(parents=True, exist_ok=True)
    wholes = {file.path: scratch / _name(remote, file) for file in kept}
    _remove_strangers(scratch, {tree.name, *(whole.name for whole in wholes.values())})
    for left in [path for path in tree.rglob("*") if not path.is_dir()]:
        if left.relative_to(tree).as_posix() not in wholes:  # kept when other `names` were asked for
            left.unlink()
    arriving = [Arriving(file, wholes[file.path]) for file in kept]
    # An earlier process may have died while it put the files under their names.
    found = {path: next((p for p in (tree / path, whole) if p.is_file()), None) for path, whole in wholes.items()}
    _check_room(scratch, arriving, found)
    hashed = [Arriving(file, None) for file in files if file.path not in wanted and file.sha256 is None]
    digests = run.all([*arriving, *hashed], found)
    for file in kept:
        place = tree / file.path
        if not place.is_file():  # one that was there already, and right, has its name
            place.parent.mkdir(parents=True, exist_ok=True)
            wholes[file.path].rename(place)
        place.chmod(0o444)
    _sync_folders(tree)
    tree.rename(target)
    sync(target.parent)
    shutil.rmtree(scratch, ignore_errors=True)
    return _summed(files, digests)


@dataclass(eq=False)
class _Filling:
    """A chunk that is coming."""

    arriving: Arriving
    begin: int
    chunk: memoryview
    done: int = 0
    """Bytes of it that are there."""


class _Run:
    """The threads of one transfer, and what they share."""

    def __init__(self, remote: Remote, workers: int, progress: Progress, stopped: Event | None) -> None:
        self._remote = remote
        self._workers = workers
        self._progress = progress
        self._stopped = stopped
        self._turn = threading.Condition()
        self._tasks: Iterator[tuple[Arriving, int, int]] = iter(())
        self._buffers: list[bytearray | None] = [None] * WINDOW
        """Those that are free, None for one not needed yet; used again and again, so that memory stays flat."""
        self._running = 0
        self._error: BaseException | None = None
        self._floor = Floor()
        self._filling: set[_Filling] = set()

    def all(self, arriving: Sequence[Arriving], found: dict[str, Path | None] | None = None) -> list[FileDigest]:
        """Let all files arrive; `found` has what is there as a whole already. Raises ArtifactError or FetchStopped."""
        self._progress.begin(sum(a.file.size for a in arriving))
        try:
            with ThreadPoolExecutor(self._workers) as pool:  # only reads what is there
                for count in pool.map(lambda a: a.recover((found or {}).get(a.file.path), self.go_on), arriving):
                    self._progress.found(count)
            self._tasks = _chunks(arriving)
            self._work()
        finally:
            self._keep_beginnings()
            for each in arriving:
                each.shut()
        return [each.digest() for each in arriving]

    def listed(self) -> list[RemoteFile]:
        """What the remote lists; raises ArtifactError or FetchStopped."""
        files: list[RemoteFile] = self.patiently(lambda: files_in_time(self._remote, self.go_on))
        return files

    def patiently(self, ask: Callable[[], Any]) -> Any:
        """What `ask` returns, asking again while the source is out of reach for a while."""
        for tries in range(TRIES + 1):
            try:
                return ask()
            except UnreachableError as error:
                if tries == TRIES:
                    raise
                self._pause(tries, error)

    def go_on(self) -> None:
        """Raises FetchStopped if the transfer is to end, or what ended it."""
        if self._stopped is not None and self._stopped.is_set():
            raise FetchStopped
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Run the threads until all tasks are done or one failed."""
        # Daemons: a thread that waits for a dead server must not keep a process that was told to end.
        threads = [threading.Thread(target=self._worker, daemon=True, name="fetch") for _ in range(self._workers)]
        self._running = len(threads)
        for thread in threads:
            thread.start()
        with self._turn:
            while self._running and self._error is None:
                self._turn.wait(_LOOK)
                try:
                    self.go_on()
                    self._floor.check(self._remote.what)
                except (FetchStopped, UnreachableError) as error:
                    self._fail(error)
            if self._error is not None:
                self._turn.wait_for(lambda: not self._running, _PATIENCE)
        if self._error is not None:
            raise self._error

    def _worker(self) -> None:
        try:
            while (task := self._take()) is not None:
                arriving, begin, end, buffer = task
                filling = _Filling(arriving, begin, memoryview(buffer)[: end - begin])
                self._filling.add(filling)
                with self._floor.asking():
                    self._fill(filling)
                dealt = arriving.put(begin, filling.chunk)
                self._filling.discard(filling)
                with self._turn:
                    self._buffers += [view.obj for view in dealt]  # type: ignore[misc]  # they are views of bytearrays
                    self._turn.notify_all()
        except BaseException as error:  # noqa: BLE001 -- it is raised in the caller's thread
            with self._turn:
                self._fail(error)
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _take(self) -> tuple[Arriving, int, int, bytearray] | None:
        """The next chunk, once a buffer is free; None when there are no more, or all is to end."""
        with self._turn:
            self._turn.wait_for(lambda: self._buffers or self._error is not None)
            task = None if self._error is not None else next(self._tasks, None)
            return None if task is None else (*task, self._buffers.pop() or bytearray(CHUNK))

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._turn.notify_all()

    def _keep_beginnings(self) -> None:
        """Of chunks that are not whole, where a file goes on with them: a source that trickles never gets one whole."""
        for filling in [f for f in list(self._filling) if f.done]:
            # what it is about is told already; a full disk is no other news
            with suppress(ArtifactError):
                filling.arriving.put(filling.begin, filling.chunk[: filling.done])

    def _fill(self, filling: _Filling) -> None:
        """Read the bytes of one chunk, going on where a connection broke."""
        file, begin, chunk = filling.arriving.file, filling.begin, filling.chunk
        tries = 0
        while filling.done < len(chunk):
            before = filling.done
            try:
                for piece in self._pieces(file, begin + filling.done, begin + len(chunk)):
                    chunk[filling.done : filling.done + len(piece)] = piece
                    filling.done += len(piece)
                if filling.done < len(chunk):
                    raise UnreachableError(f"the connection ended in the middle of {file.path}")
            except UnreachableError as error:
                if filling.done < len(chunk):
                    tries = 0 if filling.done > before else tries + 1
                    if tries == TRIES:
                        raise
                    self._pause(tries, error)
        self._floor.answered(len(chunk))

    def _pieces(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        with closing(self._remote.read(file, begin, end)) as pieces:
            for piece in pieces:
                self.go_on()
                begin += len(piece)
                if begin > end:
                    raise changed(file)
                self._progress.came(len(piece))
                self._floor.came(len(piece))
                yield piece

    def _pause(self, tries: int, error: UnreachableError) -> None:
        """Wait before the next try; raises if meanwhile the transfer is to end."""
        until = time.monotonic() + max(min(_FIRST_DELAY * 2**tries, _LONGEST_DELAY), error.after or 0)
        if error.after:
            self._floor.excuse(until)
        while (left := until - time.monotonic()) > 0:
            self.go_on()
            time.sleep(min(left, _LOOK))


def _chunks(arriving: Iterable[Arriving]) -> Iterator[tuple[Arriving, int, int]]:
    """The chunks that are missing, in order within a file; ABREAST files take turns."""
    files = iter(arriving)
    turns: deque[Iterator[tuple[Arriving, int, int]]] = deque(map(_chunks_of, islice(files, ABREAST)))
    while turns:
        chunks = turns.popleft()
        chunk = next(chunks, None)
        if chunk is not None:
            turns.append(chunks)
            yield chunk
        elif (following := next(files, None)) is not None:
            turns.appendleft(_chunks_of(following))


def _chunks_of(each: Arriving) -> Iterator[tuple[Arriving, int, int]]:
    for begin in range(each.at, each.file.size, CHUNK):
        yield each, begin, min(begin + CHUNK, each.file.size)


def _tree(target: Path, key: str) -> Path:
    """Where the files of a listing get their names before the folder gets its own."""
    return target.with_name(f".{target.name}.fetching") / f"tree-{key}"


def _name(remote: Remote, file: RemoteFile) -> str:
    """What a file is called while it is not yet part of a folder: other bytes have another name."""
    boot = "" if file.sha256 or file.git_blob else _BOOT.read_text().strip()
    text = "\0".join((remote.fingerprint(), file.path, file.version, str(file.size), boot))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _remove_strangers(scratch: Path, ours: set[str]) -> None:
    for entry in scratch.iterdir():
        if entry.name.removesuffix(".part") not in ours:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _check_room(scratch: Path, arriving: Sequence[Arriving], found: dict[str, Path | None]) -> None:
    needed = 0
    for each in arriving:
        if found[each.file.path] is None:
            part = each.part
            needed += max(0, each.file.size - (part.stat().st_size if part and part.exists() else 0))
    if needed > free_bytes(scratch):
        raise disk_full(scratch, needed)


def _summed(files: Sequence[RemoteFile], digests: Sequence[FileDigest]) -> FolderDigest:
    known = {digest.path: digest for digest in digests}
    every = [known.get(f.path) or FileDigest(f.path, f.size, f.sha256 or "") for f in files]
    return summed(every)


def _sync_folders(tree: Path) -> None:
    for here, _, _ in os.walk(tree):
        sync(Path(here))


def sync(folder: Path) -> None:
    """What was renamed in a folder outlives a power cut from now on."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
