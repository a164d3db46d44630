"""The queue of keys: once waiting, once at work, never missed, never starved."""

from __future__ import annotations

import threading

import pytest

from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key
from tuneyard.runtime.queue import ERROR_DELAYS, WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def key(name: str) -> Key:
    return Key(MODEL_DEPLOYMENT, "ns", name)


A, B, C = key("a"), key("b"), key("c")


def test_a_key_waits_at_most_once() -> None:
    queue = WorkQueue()
    queue.add(A)
    queue.add(A)
    queue.add_all([A, B, B])
    assert [queue.get(), queue.get(), len(queue)] == [A, B, 0]


def test_a_change_during_a_pass_runs_the_key_once_more_and_never_twice_at_a_time() -> None:
    queue = WorkQueue()
    queue.add(A)
    assert queue.get() == A
    queue.add(A)
    queue.add(A)
    queue.add(B)
    assert queue.get() == B
    queue.done(A)
    assert queue.get() == A
    queue.done(A)
    queue.done(B)
    assert queue.idle()


def test_what_was_changed_goes_before_what_is_only_affected() -> None:
    queue = WorkQueue()
    queue.add_all([A, B])
    queue.add(C)
    queue.add(B)
    assert [queue.get(), queue.get(), queue.get()] == [C, B, A]


def test_what_is_affected_is_not_starved_by_changes() -> None:
    queue = WorkQueue()
    queue.add_all([A])
    taken = []
    for number in range(5):
        queue.add(key(f"edit-{number}"))
        taken.append(queue.get())
    assert A in taken


def test_the_earlier_of_two_times_wins_and_a_run_clears_it() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add_after(A, 10)
    queue.add_after(A, 5)
    queue.add_after(A, 20)
    assert queue.idle()
    clock.now += 6
    assert queue.get() == A
    queue.done(A)
    clock.now += 60
    assert queue.idle()


def test_a_pass_that_asks_for_a_later_one_gets_it() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add(A)
    queue.done(queue.get() or A, again_after=30)
    clock.now += 29
    assert queue.idle()
    clock.now += 2
    assert queue.get() == A


def test_failures_in_a_row_wait_longer_and_a_success_ends_the_row() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    delays = []
    for _ in range(6):
        queue.add(A)
        assert queue.get() == A
        delays.append(queue.failed(A))
    for delay, base in zip(delays, [*ERROR_DELAYS, ERROR_DELAYS[-1], ERROR_DELAYS[-1]], strict=True):
        assert 0.75 * base <= delay <= 1.25 * base
    queue.add(A)
    queue.done(queue.get() or A)
    queue.add(A)
    assert queue.get() == A
    assert queue.failed(A) <= 1.25 * ERROR_DELAYS[0]


def test_changes_during_a_failing_pass_do_not_cut_its_delay_short() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add(A)
    assert queue.get() == A
    queue.add(A)
    delay = queue.failed(A)
    assert queue.idle()
    clock.now += delay + 0.01
    assert queue.get() == A


def test_what_has_failed_is_told_apart_until_it_succeeds() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add(A)
    assert queue.get() == A
    assert queue.not_failing([A, B]) == [A, B], "at work is not failed"
    delay = queue.failed(A)
    queue.add_all(queue.not_failing([A, B]))
    assert (queue.get(), queue.idle()) == (B, False)
    queue.done(B)
    assert queue.idle(), "A waits for its time"
    clock.now += delay
    assert queue.get() == A
    assert queue.not_failing([A]) == [], "nobody knows yet"
    queue.done(A)
    assert queue.not_failing([A]) == [A]
    queue.add(B)
    assert queue.get() == B
    queue.failed(B)
    queue.add(B)
    assert queue.get() == B, "a change of it does not wait"


def test_a_waiting_reader_gets_what_is_added_and_none_when_closed() -> None:
    queue = WorkQueue()
    got: list[Key | None] = []
    ready = threading.Event()

    def read() -> None:
        ready.set()
        got.append(queue.get())
        got.append(queue.get())

    reader = threading.Thread(target=read)
    reader.start()
    ready.wait(5)
    queue.add_after(A, 0.05)
    while not got:
        threading.Event().wait(0.005)
    queue.close()
    reader.join(5)
    assert got == [A, None]


@pytest.mark.parametrize("workers", [4])
def test_many_threads_never_run_one_key_at_the_same_time_and_see_the_last_change(workers: int) -> None:
    queue = WorkQueue()
    keys = [key(str(n)) for n in range(10)]
    wanted = dict.fromkeys(keys, 0)
    seen = dict.fromkeys(keys, -1)
    running: set[Key] = set()
    overlaps: list[Key] = []

    def work() -> None:
        while (found := queue.get()) is not None:
            if found in running:
                overlaps.append(found)
            running.add(found)
            seen[found] = wanted[found]
            running.discard(found)
            queue.done(found)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for round_ in range(1, 300):
        for each in keys:
            wanted[each] = round_
            queue.add(each)
    while not queue.idle():
        threading.Event().wait(0.005)
    queue.close()
    for thread in threads:
        thread.join(5)
    assert overlaps == []
    assert seen == wanted
