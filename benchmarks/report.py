"""What every benchmark leaves: build/bench/<name>.json, and the same figures as a table on the terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).resolve().parent.parent / "build" / "bench"


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
) -> Path:
    """Write the figures and print them; `targets` and `spread` are texts per figure. Returns the file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    document = {
        "figures": figures,
        "unit": unit,
        "spread": spread or {},
        "command": f"make bench NAME={name}",
        "cores": os.cpu_count(),
        "note": note,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    table = Table(title=name)
    for column in ("figure", "measured", "unit", "spread", "target"):
        table.add_column(column)
    for key, value in figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(key, shown, unit.get(key, ""), (spread or {}).get(key, ""), (targets or {}).get(key, ""))
    Console(file=sys.stdout, width=110).print(table)
    if note:
        print(note)
    return path
