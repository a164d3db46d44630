"""What a person sees while things take time: one line when work starts, one when it is done, a heartbeat between."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_HEARTBEAT_SECONDS = 15.0
_lock = threading.Lock()


def say(text: str = "") -> None:
    """Print one line at once, whole even when several threads speak."""
    with _lock:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextmanager
def working(what: str) -> Iterator[None]:
    """Announce the work, say that it goes on every 15 s, and tell how long it took."""
    started = time.monotonic()
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(_HEARTBEAT_SECONDS):
            say(f"    … {what}: {time.monotonic() - started:.0f} s")

    say(f"==> {what}")
    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    elapsed = time.monotonic() - started
    if elapsed >= 1:
        say(f"    done in {elapsed:.0f} s: {what}")
