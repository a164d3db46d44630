"""Argo CD's own program on its scripts for Tuneyard's kinds and on what the operator writes, phase by phase.

health_test.yaml and action_test.yaml are read as Argo CD's repository reads them.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gitops.configmap import FOLDER, OUTPUT
from tests.contract import argocdsettings
from tuneyard.api import names

Object = dict[str, Any]
KINDS = FOLDER / "resource_customizations" / names.GROUP
ACTIONS = KINDS / "ModelDeployment" / "actions"

pytestmark = pytest.mark.slow


def stated(path: Path, part: str) -> list[Object]:
    found: list[Object] = yaml.safe_load(path.read_text())[part]
    assert found
    return found


HEALTH = [(kind, t) for kind in sorted(KINDS.iterdir()) for t in stated(kind / "health_test.yaml", "tests")]
CASES = pytest.mark.parametrize(
    ("kind", "test"), HEALTH, ids=[f"{k.name}-{Path(t['inputPath']).stem}" for k, t in HEALTH]
)


@CASES
def test_the_health_that_argo_cd_shows(kind: Path, test: Object) -> None:
    assert argocdsettings.health(kind / test["inputPath"]) == test["healthStatus"]


@pytest.mark.parametrize("test", stated(ACTIONS / "action_test.yaml", "discoveryTests"), ids=lambda t: t["inputPath"])
def test_the_actions_that_argo_cd_offers(test: Object) -> None:
    wanted = {action["name"]: action["disabled"] for action in test["result"]}
    assert argocdsettings.actions(ACTIONS / test["inputPath"]) == wanted


@pytest.mark.parametrize(
    "test", stated(ACTIONS / "action_test.yaml", "actionTests"), ids=lambda t: t["expectedOutputPath"]
)
def test_what_an_action_makes_of_the_object(test: Object) -> None:
    wanted = yaml.safe_load((ACTIONS / test["expectedOutputPath"]).read_text())
    assert argocdsettings.after(ACTIONS / test["inputPath"], test["action"]) == wanted


def test_the_settings_are_valid_for_argo_cd() -> None:
    command = [str(argocdsettings.program()), "admin", "settings", "validate", f"--argocd-cm-path={OUTPUT}"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "✅ resource-overrides\n4 resource overrides" in found.stdout, found.stdout + found.stderr
