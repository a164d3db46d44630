"""The objects that Argo CD's and Flux's rules are tested with are what the operator's plans write today.

`TUNEYARD_UPDATE=1` writes them anew and deletes those that are no more; read the difference before you commit it.
"""

from __future__ import annotations

import copy
import json
import os
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from gitops.configmap import FOLDER
from tests.toyworld import phases
from tuneyard.api import names
from tuneyard.api.rollout import Phase

Object = dict[str, Any]
UPDATE = os.environ.get("TUNEYARD_UPDATE") == "1"
KINDS = FOLDER / "resource_customizations" / names.GROUP
ACTIONS = KINDS / "ModelDeployment" / "actions"
HEALTH: dict[str, dict[str, tuple[str, str]]] = {
    "BaseModel": {
        "new": ("Progressing", "the operator has not seen generation 1 yet"),
        "stale": ("Progressing", "the operator has not seen generation 2 yet"),
        "not-used": ("Healthy", "Ready"),
        "starting": ("Progressing", "Reconciling"),
        "ready": ("Healthy", "Ready"),
        "crashing": ("Degraded", "Stalled"),
        "asleep": ("Healthy", "Ready"),
    },
    "LoRAAdapter": {
        "new": ("Progressing", "the operator has not seen generation 1 yet"),
        "stale": ("Progressing", "the operator has not seen generation 2 yet"),
        "not-used": ("Healthy", "Ready"),
        "starting": ("Progressing", "Reconciling"),
        "loading": ("Progressing", "Reconciling"),
        "loaded": ("Healthy", "Ready"),
        "corrupt": ("Degraded", "Stalled"),
        "base-missing": ("Degraded", "Stalled"),
        "asleep": ("Healthy", "Ready"),
    },
    "ModelDeployment": {
        "new": ("Progressing", "the operator has not seen generation 1 yet"),
        "stale": ("Progressing", "the operator has not seen generation 3 yet"),
        "starting": ("Progressing", "Reconciling"),
        "completed": ("Healthy", "Ready"),
        "drifting": ("Healthy", "Ready"),
        "progressing": ("Progressing", "Reconciling"),
        "manual-90-10": ("Healthy", "Ready"),
        "at-its-ceiling": ("Healthy", "Ready"),
        "paused-by-command": ("Suspended", "the rollout of v2 is paused at 5 %"),
        "paused-in-spec": ("Suspended", "the rollout of v2 is paused at 5 %"),
        "gating": ("Progressing", "Reconciling"),
        "inconclusive": ("Suspended", "the rollout of v2 is inconclusive at 5 %"),
        "baking": ("Progressing", "Reconciling"),
        "rolled-back": ("Degraded", "Stalled"),
        "next-candidate-after-a-rejected-one": ("Progressing", "Reconciling"),
        "unschedulable": ("Degraded", "Stalled"),
        "base-missing": ("Degraded", "Stalled"),
        "asleep": ("Healthy", "Ready"),
    },
}
"""Kind -> phase -> what Argo CD shows, and the condition whose message it shows or the message itself."""

COMMANDS = {
    "abort": ("progressing", "v2"),
    "promote": ("progressing", "v2"),
    "pause": ("progressing", "v2"),
    "resume": ("paused-by-command", "v2"),
    "retry": ("rolled-back", "v2"),
    "retry-while-the-next-one-climbs": ("next-candidate-after-a-rejected-one", "v2"),
    # to be refused by the operator: they name nothing
    "abort-nothing": ("completed", None),
    "retry-nothing": ("completed", None),
}
"""Name (the action first) -> the phase that it is run in, and the revision that the command has to name."""

OFFERED = {
    "new": (),
    "starting": (),
    "completed": (),
    "progressing": ("abort", "pause", "promote"),
    "manual-90-10": ("abort",),
    "paused-by-command": ("abort", "promote", "resume"),
    "paused-in-spec": ("abort",),
    "gating": ("abort", "pause", "promote"),
    "inconclusive": ("abort", "pause", "promote"),
    "baking": ("abort", "pause", "promote"),
    "rolled-back": ("retry",),
    "next-candidate-after-a-rejected-one": ("abort", "pause", "promote", "retry"),
    "asleep": ("abort",),
}
"""Phase -> the actions that are not greyed out."""

SHOWN_AS = {
    "abort": "Abort: reject the candidate",
    "pause": "Pause: take no further step",
    "promote": "Promote: give the candidate its spec weight",
    "resume": "Resume",
    "retry": "Retry the rejected revision",
}


@cache
def everything() -> dict[str, dict[str, Object]]:
    return phases.everything()


def health_test(kind: str) -> Object:
    """health_test.yaml, which upstream's own test reads."""
    tests = []
    for name, found in everything()[kind].items():
        status, message = HEALTH[kind][name]
        told = {c["type"]: c["message"] for c in (found.get("status") or {}).get("conditions", ())}
        shown = {"status": status, "message": told.get(message, message)}
        tests.append({"healthStatus": shown, "inputPath": f"testdata/{name}.yaml"})
    return {"tests": tests}


def action_test() -> Object:
    """actions/action_test.yaml, of the same."""

    def offered(phase: str) -> list[Object]:
        known = ({"name": n, "displayName": words} for n, words in SHOWN_AS.items())
        return [{**a, "disabled": a["name"] not in OFFERED[phase]} for a in known]

    def run(name: str) -> Object:
        return {
            "action": name.partition("-")[0],
            "inputPath": f"../testdata/{COMMANDS[name][0]}.yaml",
            "expectedOutputPath": f"testdata/{name}.yaml",
        }

    return {
        "discoveryTests": [{"inputPath": f"../testdata/{p}.yaml", "result": offered(p)} for p in OFFERED],
        "actionTests": [run(name) for name in COMMANDS],
    }


def commanded(name: str) -> Object:
    """The object as the action has to leave it."""
    phase, revision = COMMANDS[name]
    found = copy.deepcopy(everything()["ModelDeployment"][phase])
    metadata, action = found["metadata"], name.partition("-")[0]
    metadata.setdefault("annotations", {})
    command = {"id": f"argocd-{metadata['resourceVersion']}", "action": action}
    command |= (
        {"revision": revision, "contentHash": found["status"]["rollout"]["contents"][revision]} if revision else {}
    )
    metadata["annotations"] |= {names.ANNOTATION_COMMAND: json.dumps(command, separators=(",", ":"))}
    return found


@cache
def wanted() -> dict[Path, Object]:
    kinds = everything()
    found = {KINDS / kind / "testdata" / f"{name}.yaml": obj for kind, by in kinds.items() for name, obj in by.items()}
    found |= {ACTIONS / "testdata" / f"{name}.yaml": commanded(name) for name in COMMANDS}
    found |= {KINDS / kind / "health_test.yaml": health_test(kind) for kind in kinds}
    return found | {ACTIONS / "action_test.yaml": action_test()}


@pytest.mark.parametrize("path", wanted(), ids=lambda p: "-".join(p.relative_to(KINDS).with_suffix("").parts))
def test_the_test_data_is_what_the_operator_says(path: Path) -> None:
    found = yaml.safe_dump(wanted()[path], sort_keys=False, width=120, allow_unicode=True)
    if UPDATE:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(found)
    assert path.exists(), "TUNEYARD_UPDATE=1 writes it"
    assert found == path.read_text()


def test_nothing_is_left_over() -> None:
    left = set(KINDS.glob("**/testdata/*.yaml")) - set(wanted())
    for path in left if UPDATE else ():
        path.unlink()
    assert UPDATE or not left


def test_what_every_phase_of_the_api_is_shown_as_is_tested() -> None:
    seen = {(d.get("status") or {}).get("rollout", {}).get("phase") for d in everything()["ModelDeployment"].values()}
    assert set(get_args(Phase)) <= seen


def test_what_argo_cd_shows_is_stated_for_all() -> None:
    assert {k: set(by) for k, by in everything().items()} == {k: set(by) for k, by in HEALTH.items()}


def test_the_problem_and_the_work_stand_in_conditions_that_kstatus_knows() -> None:
    """Ready=False alone reads as in progress for ever."""
    for kind, by in everything().items():
        for name, found in by.items():
            told = {c["type"]: c["status"] for c in (found.get("status") or {}).get("conditions", ())}
            if told.get("Ready") == "False":
                assert ("Stalled" in told) != ("Reconciling" in told), f"{kind} {name}"
            else:
                assert not {"Stalled", "Reconciling"} & set(told), f"{kind} {name}"
