"""`python -m demo.session -- COMMAND`: run a command against a cluster of its own, and remove that cluster afterwards.

The stories run this way, so that they never touch the cluster that a person's `make demo` left running.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.provider import open_provider
from demo.system import System, bring_up

CLUSTER = "tuneyard-test"


@contextmanager
def session() -> Iterator[System]:
    """Tuneyard on a cluster of its own, which goes at the end; KEEP_CLUSTER=1 keeps it."""
    os.environ.setdefault("TUNEYARD_CLUSTER", CLUSTER)
    try:
        yield bring_up()
    finally:
        if "KEEP_CLUSTER" not in os.environ:
            open_provider().down()


def main(arguments: list[str]) -> int:
    """Bring up, run, tear down; the command's exit code."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    with session():
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
