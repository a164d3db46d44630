"""Agents that are killed before any of their system calls: what they fetch, verify, copy and name, from end to end.

A program of its own for the same reason as store_processes.py, and with its arguments. The transfer, the cache and the
shelf are the agent's own; only the source is made up, so that what it hands out can be counted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from models.tiny import build_tiny
from tests.contract.store_processes import ended, forked, killed_at, remove
from tests.unit.store.sources import CHUNK, Source, SourceRemote, contents, listing, read_all
from tuneyard.agent import obtaining
from tuneyard.agent.basefetch import from_network, hold_base
from tuneyard.agent.fetching import Shelf, read_base
from tuneyard.agent.obtaining import Obtainer
from tuneyard.agent.verify import BaseWanted, verify
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.names import engine_adapter_name
from tuneyard.api.sources import S3Source
from tuneyard.api.sources import Source as ApiSource
from tuneyard.systems.artifacts import download
from tuneyard.systems.artifacts.store import Held, Store

WHEREVER = ApiSource(s3=S3Source(uri="s3://models/acme"))
STRIDE = 3
"""Every so many calls one is killed at: the stories have hundreds, and each costs two processes."""


class Pod:
    """A folder for each call to be killed at: a node's cache, and what a pod has beside it."""

    def __init__(self, folder: Path, name: str, files: dict[str, bytes]) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self.cache = self.folder / "cache"
        self.source = Source(files, folder / f"{name}.log")
        vars(obtaining)["remote_of"] = lambda *_: SourceRemote(self.source)

    def obtainer(self) -> Obtainer:
        return Obtainer(Store(self.cache), _no_credentials)

    def obtain(self) -> Held:
        return self.obtainer().obtain(WHEREVER, None, lambda _: None)

    def shelf(self) -> Shelf:
        base = read_base(build_tiny() / "base")
        return Shelf(self.folder / "artifacts", self.folder / "adapters", base, 16, self.obtainer())


def _no_credentials(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not asked for")


def kills(
    folder: Path,
    files: dict[str, bytes],
    work: Callable[[Pod], None],
    prepare: Callable[[Pod], object] = lambda _: None,
) -> int:
    """Kill an agent before one of its calls, and have the next do its work, for calls all over it; how many kills."""
    call = killed = 0
    while True:
        call += STRIDE
        pod = Pod(folder, f"{call}", files)
        kept = prepare(pod)
        before = pod.source.handed_out()
        alive = not killed_at(call, lambda: work(pod))  # noqa: B023 - it ends here
        assert ended(forked(lambda: work(pod))) == 0, f"after a kill at call {call}"  # noqa: B023
        fetched = pod.source.handed_out() - before
        again = (download.WINDOW + 1) * CHUNK
        assert pod.source.size <= fetched <= pod.source.size + again, f"call {call}: {fetched} of {pod.source.size}"
        assert Store(pod.cache).verify(pod.source.digest) is None, f"call {call}"
        assert listing(pod.cache / "blobs") == [pod.source.digest.removeprefix("sha256:")]
        if isinstance(kept, Held):
            assert read_all(kept.path) == pod.source.files
            kept.release()
        remove(pod.folder)
        if alive:
            return killed
        killed += 1


def obtain(pod: Pod) -> None:
    with pod.obtain() as held:
        assert held.digest == pod.source.digest
        assert read_all(held.path) == pod.source.files


def held_and_damaged(pod: Pod) -> Held:
    held = pod.obtain()
    path = held.path / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    return held


def put_on_the_shelf(pod: Pod) -> None:
    shelf = pod.shelf()
    there = shelf.clean()
    digest = pod.source.digest
    name = engine_adapter_name("support", digest)
    assert there <= {name}, "what has the name of an adapter is one"
    for _ in there:
        assert read_all(Path(shelf.path(name))) == pod.source.files
    prepared = shelf.fetch(PlannedAdapter(name="support", source=WHEREVER))
    assert (prepared.digest, prepared.engine_name) == (digest, name)
    assert read_all(Path(shelf.path(name))) == pod.source.files
    assert listing(shelf.adapters) == [name]


def begin_with_the_base(pod: Pod) -> None:
    """The init container, and then the agent."""
    link, log = pod.folder / "model", pod.folder / "log"
    find = from_network(WHEREVER, pod.obtainer(), lambda _: None)
    assert verify(BaseWanted("tiny", link, 1, None), pod.folder / "front.yaml", log, find) == 0, log.read_text()
    assert json.loads(log.read_text())["digest"] == pod.source.digest
    held = hold_base(pod.obtainer(), WHEREVER, link)
    assert held is not None
    assert read_all(link.resolve()) == pod.source.files
    held.release()


def tiny(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (build_tiny() / name).iterdir() if path.name != "README.md"}


def scenario_obtain(folder: Path, _: int) -> None:
    """Of the transfer into the cache."""
    assert kills(folder, contents("one"), obtain) > 20


def scenario_heal_what_another_holds(folder: Path, _: int) -> None:
    """Of finding what another pod holds corrupt, fetching it again, and putting its files in their place."""
    assert kills(folder, contents("one"), obtain, held_and_damaged) > 20


def scenario_shelf(folder: Path, _: int) -> None:
    """Of everything from a plan's entry to files under an engine's name."""
    assert kills(folder, tiny("adapter-a"), put_on_the_shelf) > 20


def scenario_base(folder: Path, _: int) -> None:
    """Of the init container and the agent that takes over from it."""
    assert kills(folder, tiny("base"), begin_with_the_base) > 20


SCENARIOS = {
    name.removeprefix("scenario_"): call for name, call in list(globals().items()) if name.startswith("scenario_")
}

if __name__ == "__main__":
    download.CHUNK, download.WINDOW = CHUNK, 1
    os.chdir(sys.argv[2])
    SCENARIOS[sys.argv[1]](Path.cwd(), int(sys.argv[3]))
