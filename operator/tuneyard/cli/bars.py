"""Progress bars: on stderr, only on a terminal, and gone when what they show is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tuneyard.systems.artifacts.progress import Progress as TransferProgress

_REFRESH = 4


@contextmanager
def shown(what: str) -> Iterator[TransferProgress]:
    """A progress bar on stderr while bytes come, if stderr is a terminal."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, refresh_per_second=_REFRESH
    ) as bar:
        yield _Shown(bar, what)


class _Shown(TransferProgress):
    def __init__(self, bar: Progress, what: str) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task(what, total=None)

    def begin(self, total: int) -> None:
        super().begin(total)
        self._bar.update(self._task, total=total, completed=0)

    def found(self, count: int) -> None:
        super().found(count)
        self._bar.update(self._task, completed=self.done)

    def came(self, count: int) -> None:
        super().came(count)
        self._bar.update(self._task, completed=self.done)
