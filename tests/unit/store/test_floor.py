"""What counts as too slow, and what is not the source's fault."""

from __future__ import annotations

import threading

import pytest

from tuneyard.systems.artifacts import floor
from tuneyard.systems.artifacts.floor import ANSWER_BYTES, LEAST_RATE, WINDOW_SECONDS, Floor, files_in_time
from tuneyard.systems.artifacts.remote import RemoteFile, UnreachableError

NEEDED = int(LEAST_RATE * WINDOW_SECONDS)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("came", "refused"), [(0, True), (NEEDED - 1, True), (NEEDED, False)])
def test_a_source_is_judged_over_a_whole_window(came: int, refused: bool) -> None:
    clock = Clock()
    counted = Floor(clock)
    with counted.asking():
        counted.came(came)
        clock.now += WINDOW_SECONDS - 0.1
        counted.check("hub")
        clock.now += 0.1
        if refused:
            with pytest.raises(UnreachableError, match=r"hub delivers .* KiB/s \(over 60 s\), at least 64 KiB/s"):
                counted.check("hub")
        counted.check("hub")


def test_an_hour_ago_does_not_count() -> None:
    clock = Clock()
    counted = Floor(clock)
    with counted.asking():
        counted.came(100 * NEEDED)
        clock.now += WINDOW_SECONDS
        counted.check("hub")
        clock.now += WINDOW_SECONDS
        with pytest.raises(UnreachableError, match=r"0\.0 KiB/s"):
            counted.check("hub")


def test_time_in_which_nobody_asked_is_not_the_source_s() -> None:
    clock = Clock()
    counted = Floor(clock)
    clock.now += 1000
    counted.check("hub")
    with counted.asking():
        clock.now += WINDOW_SECONDS - 1
        counted.check("hub")
    counted.check("hub")
    with counted.asking():
        clock.now += WINDOW_SECONDS - 1
        counted.check("hub")


def test_a_time_to_come_back_that_the_source_named_is_kept() -> None:
    clock = Clock()
    counted = Floor(clock)
    with counted.asking():
        counted.excuse(clock.now + 300)
        clock.now += 300 + WINDOW_SECONDS - 1
        counted.check("hub")
        clock.now += 1
        with pytest.raises(UnreachableError):
            counted.check("hub")


def test_small_answers_count_by_their_number() -> None:
    clock = Clock()
    counted = Floor(clock)
    with counted.asking():
        for _ in range(int(NEEDED / ANSWER_BYTES)):
            counted.came(10)
            counted.answered(10)
        clock.now += WINDOW_SECONDS
        counted.check("hub")


class Listing:
    """A remote that lists when it is let."""

    what = "acme/support at main"

    def __init__(self) -> None:
        self.let = threading.Event()
        self.error: Exception | None = None

    def files(self) -> list[RemoteFile]:
        self.let.wait(10)
        if self.error is not None:
            raise self.error
        return [RemoteFile("a", 1, None, "v")]


def test_a_listing_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "LISTING_SECONDS", 0.05)
    remote = Listing()
    with pytest.raises(UnreachableError, match="acme/support at main was not listed within"):
        files_in_time(remote, lambda: None)  # type: ignore[arg-type]
    remote.let.set()
    assert [f.path for f in files_in_time(remote, lambda: None)] == ["a"]  # type: ignore[arg-type]
    remote.error = UnreachableError("it is away")
    with pytest.raises(UnreachableError, match="it is away"):
        files_in_time(remote, lambda: None)  # type: ignore[arg-type]


def test_who_is_told_to_end_does_not_wait_for_a_listing() -> None:
    remote = Listing()

    def ended() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files_in_time(remote, ended)  # type: ignore[arg-type]
    remote.let.set()
