"""What a Dockerfile's last stage says about how its image runs, so that both ways of building agree.

Only settings are read (ENV, USER, WORKDIR, ENTRYPOINT, CMD, LABEL, EXPOSE), in the forms used in images/: `NAME=value`
pairs and JSON lists. What a stage copies and runs is the registry-free builder's own business (cluster/recipes.py).
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from cluster.errors import ClusterError


def settings(path: Path) -> dict[str, Any]:
    """The OCI `config` object of the last stage; raises ClusterError for a form that is not understood."""
    found: dict[str, Any] = {}
    for instruction, rest in _instructions(path.read_text()):
        if instruction == "FROM":
            found = {}
        elif instruction == "ENV":
            found.setdefault("Env", []).extend(_pairs(path, rest))
        elif instruction == "LABEL":
            found.setdefault("Labels", {}).update(pair.split("=", 1) for pair in _pairs(path, rest))
        elif instruction == "EXPOSE":
            found.setdefault("ExposedPorts", {}).update({f"{port}/tcp": {} for port in rest.split()})
        elif instruction in ("ENTRYPOINT", "CMD"):
            found[instruction.capitalize()] = _list(path, rest)
        elif instruction in ("USER", "WORKDIR"):
            found[{"USER": "User", "WORKDIR": "WorkingDir"}[instruction]] = rest
    return found


def _instructions(text: str) -> list[tuple[str, str]]:
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for line in "\n".join(kept).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        found.append((instruction.upper(), rest.strip()))
    return found


def _pairs(path: Path, rest: str) -> list[str]:
    pairs = shlex.split(rest)
    if not all("=" in pair for pair in pairs):
        raise ClusterError(f"{path}: write NAME=value instead of {rest!r}")
    return pairs


def _list(path: Path, rest: str) -> list[str]:
    try:
        parsed = json.loads(rest)
    except ValueError as error:
        raise ClusterError(f"{path}: write a JSON list instead of {rest!r}") from error
    return [str(word) for word in parsed]
