"""`argocd admin settings`, as Argo CD's users try their scripts: no cluster, a third of a second a call.

What it prints is read, never its exit code: a script that fails ends with 0 as well as with 1.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

from cluster import gobuild
from cluster.progress import Progress
from gitops.configmap import OUTPUT

Object = dict[str, Any]
_MARK = "Following fields have been changed:\n\n"


def program() -> Path:
    """Argo CD in one program; builds it when it was never built (ten minutes, once)."""
    return gobuild.ensure(["argocd"], Progress())["argocd"]


def _overrides(*words: str) -> str:
    command = [str(program()), "admin", "settings", "resource-overrides", *words, f"--argocd-cm-path={OUTPUT}"]
    # in place of a difference: the object as the action leaves it
    environment = {"KUBECTL_EXTERNAL_DIFF": """sh -c 'cat "$1"'""", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return found.stdout + found.stderr


def health(path: Path) -> Object:
    """Status and message of the object in that file."""
    text = _overrides("health", str(path))
    assert text.startswith("STATUS: "), text
    status, _, message = text.removeprefix("STATUS: ").partition("\nMESSAGE: ")
    return {"status": status, "message": message.removesuffix("\n")}


def actions(path: Path) -> dict[str, bool]:
    """Action -> whether it is disabled."""
    head, *rows = _overrides("list-actions", str(path)).splitlines()
    assert head.split() == ["NAME", "DISABLED"], head
    return {name: disabled == "true" for name, disabled in (row.split() for row in rows)}


def after(path: Path, action: str) -> Object:
    """The object as the action leaves it."""
    text = _overrides("run-action", str(path), action)
    _, mark, changed = text.partition(_MARK)
    assert mark, text
    found: Object = yaml.safe_load(changed)
    return found
