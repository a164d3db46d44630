"""What every benchmark leaves: build/bench/<name>.json, the same figures as a table on the terminal, and its exit code.

A benchmark that misses a target fails, whatever moved the figure: here alone it is decided what is missed. A target is
a bound (`<= 0.5`, `>= 0.9`), an exact number (`0`), or REPORTED, which nothing misses.
"""

from __future__ import annotations

import json
import operator
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"

REPORTED = "reported"
_BOUNDS = {"<=": operator.le, ">=": operator.ge, "": operator.eq}


def missed(figures: Mapping[str, float], targets: Mapping[str, str]) -> dict[str, str]:
    """The figures that miss their target, and how; ValueError for a target that is none, or of no figure."""
    found = {}
    for name, target in targets.items():
        if name not in figures:
            raise ValueError(f"a target of {name}, which is not measured")
        if target != REPORTED and not _holds(figures[name], target):
            found[name] = f"{_shown(figures[name])}, target {target}"
    return found


def _holds(value: float, target: str) -> bool:
    bound, _, number = target.rpartition(" ")
    if bound not in _BOUNDS:
        raise ValueError(f"{target!r} is no target")
    return bool(_BOUNDS[bound](value, float(number)))


def _shown(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie; nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def write(
    name: str,
    figures: dict[str, float],
    unit: dict[str, str],
    *,
    targets: dict[str, str] | None = None,
    spread: dict[str, str] | None = None,
    note: str = "",
) -> int:
    """Write the figures and print them; `targets` and `spread` are texts per figure.

    Returns the benchmark's exit code: 1 where a target is missed, which is said.
    """
    failed = missed(figures, targets or {})
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = {
        "figures": figures,
        "unit": unit,
        "spread": spread or {},
        "targets": targets or {},
        "missed": sorted(failed),
        "command": f"make bench NAME={name}",
        "cores": os.cpu_count(),
        "note": note,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    table = Table(title=name)
    for column in ("figure", "measured", "unit", "spread", "target"):
        table.add_column(column)
    for key, value in figures.items():
        target = (targets or {}).get(key, "") + (" MISSED" if key in failed else "")
        table.add_row(key, _shown(value), unit.get(key, ""), (spread or {}).get(key, ""), target)
    Console(file=sys.stdout, width=110).print(table)
    if note:
        print(note)
    for key, how in failed.items():
        print(f"missed: {name} {key}: {how}")
    return 1 if failed else 0
