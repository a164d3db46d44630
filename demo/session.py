"""`python -m demo.session -- COMMAND`: run a command against a cluster of its own, and remove that cluster afterwards.

The stories run this way, so that they never touch the cluster that a person's `make demo` left running.
"""

from __future__ import annotations

import os
import subprocess
import sys

from cluster.provider import open_provider
from demo.system import bring_up

CLUSTER = "tuneyard-test"


def main(arguments: list[str]) -> int:
    """Bring up, run, tear down; the command's exit code."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    os.environ.setdefault("TUNEYARD_CLUSTER", CLUSTER)
    try:
        bring_up()
        return subprocess.run(command, check=False).returncode
    finally:
        if "KEEP_CLUSTER" not in os.environ:
            open_provider().down()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
