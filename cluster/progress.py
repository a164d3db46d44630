"""Progress for people: what is being done, for how long, and what was reused.

Everything goes to standard error, so that standard output stays for answers that programs read. On a terminal a step is
a spinner; elsewhere it is a line after one second, one every 15 s while it lasts, and one at its end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

_EVERY = 15.0
# Steps shorter than this print only their end.
_QUIET = 1.0


class Progress:
    """Prints steps and notes. One step at a time."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """One line that is no step."""
        self._console.print(f"  {text}", markup=False)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show `text` while the body runs, then how long it took. A failure says so and goes on up."""
        started = time.monotonic()
        waiting = self._spinner(text) if self._console.is_terminal else self._lines(text, started)
        try:
            with waiting:
                yield
        except BaseException:
            self._console.print(f"  failed: {text} ({_seconds(started)})", markup=False)
            raise
        self._console.print(f"  {text}: {_seconds(started)}", markup=False)

    @contextmanager
    def _spinner(self, text: str) -> Iterator[None]:
        with self._console.status(text):
            yield

    @contextmanager
    def _lines(self, text: str, started: float) -> Iterator[None]:
        done = threading.Event()

        def tell() -> None:
            pause = _QUIET
            while not done.wait(pause):
                self._console.print(f"  {text} ... {_seconds(started)}", markup=False)
                pause = _EVERY

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()


def _seconds(started: float) -> str:
    took = time.monotonic() - started
    return f"{took:.1f} s" if took < 60 else f"{int(took) // 60} min {int(took) % 60} s"
