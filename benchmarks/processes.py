"""Processes beside what is measured, and what one of them has used."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvloop


@contextmanager
def beside(work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> Iterator[int]:
    """Runs `work`, a function of a module, in a process of its own until the block ends; gives the process's id."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(work, *given), daemon=True)
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.terminate()
        process.join()


def _run(work: Callable[..., Coroutine[Any, Any, None]], *given: Any) -> None:
    uvloop.run(work(*given))


def cpu_seconds(pid: int) -> float:
    """What a process has used, as the kernel counts it."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
