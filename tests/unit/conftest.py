"""What makes the fast tests faster."""

from __future__ import annotations

import gc

_GC_AFTER = 200_000
"""Objects more than before after which the collector looks: what tests make is short-lived, and a look at all modules
each 700 objects is a seventh of the fast tests' time."""


def pytest_collection_finish() -> None:
    gc.set_threshold(_GC_AFTER, 20, 20)
    gc.freeze()
