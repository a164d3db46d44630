"""`python -m benchmarks [NAME]`: run all benchmarks or one, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NOT_BENCHMARKS = {
    "__init__",
    "__main__",
    "report",
    "load",
    "bare",
    "counting",
    "processes",
    "hotadapter",
    "ways",
    "slopes",
    "batching",
    "batchengines",
    "memoryprobe",
    "scalingworld",
}


def names() -> list[str]:
    """Every benchmark there is."""
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in NOT_BENCHMARKS)


def main(wanted: list[str]) -> int:
    """Run them; the exit code is the number that failed."""
    unknown = [n for n in wanted if n not in names()]
    if unknown:
        sys.stderr.write(f"no benchmark {', '.join(unknown)}; there are {', '.join(names())}\n")
        return 2
    failed = []
    for name in wanted or names():
        print(f"==> {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent, check=False).returncode:
            failed.append(name)
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
