"""Processes that share a node cache: forked from one small process, so that hundreds of them cost seconds.

A program of its own, because a process with threads must not fork. Its arguments: a scenario, a folder, a seed, and
a user to become (0 to stay who one is). It ends with 0, or with what was wrong on its standard error.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.unit.store.sources import CHUNK, Source, contents, listing, read_all
from tuneyard.systems.artifacts.store import Store

_CALLS = frozenset(
    {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.utime", "os.listdir", "fcntl.flock"}
) | {"os.scandir", "os.link", "os.symlink", "tuneyard.tests.write"}


def forked(work: Callable[[], None]) -> int:
    """Run something in a process of its own; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - the parent must hear of it by the exit code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """The exit code of a process, below 0 for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(call: int, work: Callable[[], None]) -> bool:
    """Whether a process was killed before the system call of that number; else it was done before."""

    def run() -> None:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event in _CALLS:
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    code = ended(forked(run))
    assert code in (0, -signal.SIGKILL), f"call {call} ended with {code}"
    return code != 0


def is_tidy(root: Path, *digests: str) -> None:
    """Nothing is left over, and everything that is there is right."""
    assert listing(root / "partials") == [], "no partial is left"
    assert listing(root / "trash") == [], "no trash is left"
    assert listing(root / "blobs") == sorted(d.removeprefix("sha256:") for d in digests)
    store = Store(root)
    for digest in digests:
        assert store.verify(digest) is None
    assert not any(entry.in_use for entry in store.entries())


def remove(root: Path) -> None:
    """Delete a cache, whose artifacts are read-only."""
    for here, _, _ in os.walk(root):
        Path(here).chmod(0o755)
    shutil.rmtree(root)


class Story:
    """A folder for each call to be killed at: a cache, and two sources."""

    def __init__(self, folder: Path, call: int, limited: bool = False) -> None:
        self.root = folder / f"{call}"
        self.one = Source(contents("one"), folder / f"{call}.one")
        self.two = Source(contents("two"), folder / f"{call}.two")
        self.limit = int(self.one.size * 1.9) if limited else None

    def obtain(self, source: Source, name: str) -> None:
        with Store(self.root, self.limit, reserve=0).obtain(name, None, source.fetch, size=source.size) as held:
            assert read_all(held.path) == source.files


def kills(folder: Path, prepare: Callable[[Story], None], source: str, limited: bool = False) -> int:
    """Kill a process before every one of its calls, and have another one do its work; how many there were."""
    call = 0
    while True:
        call += 1
        story = Story(folder, call, limited)
        prepare(story)
        wanted: Source = getattr(story, source)
        before = wanted.handed_out()
        killed = killed_at(call, lambda: story.obtain(wanted, source))  # noqa: B023 - it ends here
        assert ended(forked(lambda: story.obtain(wanted, source))) == 0, f"after a kill at call {call}"  # noqa: B023
        fetched = wanted.handed_out() - before
        assert wanted.size <= fetched <= wanted.size + CHUNK, f"call {call}: {fetched} of {wanted.size} were fetched"
        kept = [wanted.digest] if limited or source == "one" else [story.one.digest, wanted.digest]
        is_tidy(story.root, *kept)
        remove(story.root)
        if not killed:
            return call


def corrupted(story: Story) -> None:
    story.obtain(story.one, "one")
    path = story.root / "blobs" / story.one.digest.removeprefix("sha256:") / "files" / "adapter_model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)


def with_another(story: Story) -> None:
    story.obtain(story.one, "one")


def scenario_kill(folder: Path, _: int) -> None:
    """At every call of a first download."""
    assert kills(folder, lambda story: None, "one") > 100


def scenario_kill_healing(folder: Path, _: int) -> None:
    """At every call of finding an artifact corrupt and fetching it again."""
    assert kills(folder, corrupted, "one") > 100


def scenario_kill_evicting(folder: Path, _: int) -> None:
    """At every call of a download that another artifact has to go for."""
    assert kills(folder, with_another, "two", limited=True) > 100


def scenario_together(folder: Path, _: int) -> None:
    """Two to eight processes that start together: exactly one downloads."""
    for count in range(2, 9):
        story = Story(folder, count)
        reading, writing = os.pipe()

        def work(story: Story = story, reading: int = reading, writing: int = writing) -> None:
            os.close(writing)
            os.read(reading, 1)  # ends for all of them when the last writer closes
            story.obtain(story.one, "one")

        pids = [forked(work) for _ in range(count)]
        os.close(reading)
        os.close(writing)
        assert [ended(pid) for pid in pids] == [0] * count
        assert len(story.one.fetchers()) == 1 and story.one.handed_out() == story.one.size
        is_tidy(story.root, story.one.digest)


def scenario_storm(folder: Path, seed: int) -> None:
    """Processes that are killed at any moment while others do the same; in the end the work is done."""
    dice = random.Random(seed)
    for round_ in range(25):
        story = Story(folder, round_)
        pids = [forked(lambda story=story: story.obtain(story.one, "one")) for _ in range(4)]  # type: ignore[misc]
        for pid in pids[:3]:
            timer = threading.Event()
            timer.wait(dice.random() * 0.05)  # the moment of a kill, not a wait for anything
            os.kill(pid, signal.SIGKILL)
        codes = [ended(pid) for pid in pids]
        assert codes[3] == 0 and set(codes) <= {0, -signal.SIGKILL}, codes
        assert story.one.size <= story.one.handed_out() <= story.one.size + 3 * CHUNK
        Store(story.root)
        is_tidy(story.root, story.one.digest)


def scenario_race(folder: Path, seed: int) -> None:
    """Eight processes use sixteen artifacts in a cache for twelve: what is held is never touched."""
    root = folder / "cache"
    sources = [Source(contents(f"{n}"), folder / f"log{n}") for n in range(16)]
    limit = 12 * 9 * CHUNK  # with a manifest, and what a file system rounds up

    def work(own: int) -> None:
        dice = random.Random(f"{seed}.{own}")
        store = Store(root, limit, reserve=0, on_corrupt=_never_corrupt)
        for _ in range(40):
            source = dice.choice(sources)
            with store.obtain(source.digest, source.digest, source.fetch, size=source.size) as held:
                assert read_all(held.path) == source.files
                dice.choice([store.entries, lambda: None])()
                assert read_all(held.path) == source.files
                assert any(e.in_use for e in store.entries() if e.digest == held.digest)

    pids = [forked(lambda own=own: work(own)) for own in range(8)]  # type: ignore[misc]
    assert [ended(pid) for pid in pids] == [0] * 8
    assert sum(s.handed_out() for s in sources) > 2 * sum(s.size for s in sources), "much was evicted"
    store = Store(root, limit)
    assert sum(e.size_bytes for e in store.entries()) <= limit
    is_tidy(root, *(e.digest for e in store.entries()))


def _never_corrupt(digest: str, wrong: str) -> None:
    raise AssertionError(f"{digest}: {wrong}")


SCENARIOS = {
    name.removeprefix("scenario_"): call for name, call in list(globals().items()) if name.startswith("scenario_")
}

if __name__ == "__main__":
    os.chdir(sys.argv[2])  # its parents may be closed to the user
    if user := int(sys.argv[4]):
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    SCENARIOS[sys.argv[1]](Path(), int(sys.argv[3]))
