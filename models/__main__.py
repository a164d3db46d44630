"""Build the models: `python -m models smollm2|tiny|bad|train`. The last line printed is the path."""

import argparse
import sys
from collections.abc import Sequence

from models.artifact import digest
from models.smollm2 import build_smollm2


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("smollm2", help="SmolLM2-135M-Instruct, the demo's base")
    parser.parse_args(arguments)
    path = build_smollm2()
    print(digest(path))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
