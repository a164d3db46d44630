"""`tuneyard lineage`: the chain as values, as a tree at 80 and 120 columns, and which object a name means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.cli import world
from tests.unit.cli.test_status_render import compare, shown
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.cli.errors import UserError
from tuneyard.cli.lineage import chosen_kind, run
from tuneyard.cli.lineagerender import UNFOLDED, render_lineage
from tuneyard.cli.lineageview import found_kinds, lineage_view
from tuneyard.cli.statusview import Read

LINEAGE = {
    "version": "v1",
    "dataset": "s3://training/acme/2026-05.jsonl",
    "datasetHash": "sha256:9f1c0c5d",
    "hyperparameters": {"r": "8", "learning_rate": "2e-4"},
    "parent": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "run": "https://mlflow.example.com/#/experiments/7/runs/5f0c8a1e",
    "commit": "4f7a1c9e",
    "trainedBy": "pipeline",
    "trainedAt": "2026-02-20T10:00:00Z",
    "evals": [
        {"name": "target_task", "score": 0.82, "dataset": "held-out"},
        {"name": "regression_suite", "passed": False, "evaluatedAt": "2026-02-21T10:00:00Z"},
    ],
}


def adapter(name: str, status: dict[str, Any], **spec: Any) -> LoRAAdapterResource:
    raw = world.adapter(name).to_dict()
    return LoRAAdapterResource.from_dict(
        {**raw, "spec": {**raw["spec"], **spec}, "status": {**raw["status"], **status}}
    )


def registry() -> Read:
    v1 = adapter(
        world.V1,
        {"digest": world.DIGEST, "promotedAt": "2026-02-22T10:00:00Z", "promotedBy": "acme-support/v1"},
        lineage=LINEAGE,
    )
    conditions = [world.condition("TrainedFromBase", "False", "ParentIsAdapter", "it was trained from acme-support-v1")]
    v2 = adapter(world.V2, {"conditions": conditions})
    base = BaseModelResource.from_dict({**world.base().to_dict(), "status": {"digest": "sha256:" + "cd" * 32}})
    rollout = {"phase": "Progressing", "stable": "v1", "stableSince": "2026-02-22T10:00:00Z", "candidate": "v2"}
    return Read(deployments=[world.deployment(rollout=rollout)], base_models=[base], adapters=[v1, v2])


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    ("kind", "name"), [("ModelDeployment", "acme-support"), ("LoRAAdapter", world.V1), ("BaseModel", world.BASE)]
)
def test_tree(kind: Any, name: Any, width: Any) -> None:
    view = lineage_view(kind, name, registry())
    compare(f"lineage-{kind}-{width}", shown(render_lineage(view, width), UNFOLDED))


@pytest.mark.parametrize("width", [20, 80])
def test_what_is_copied_is_never_folded_and_words_are(width: int) -> None:
    text = shown(render_lineage(lineage_view("ModelDeployment", "acme-support", registry()), width), UNFOLDED)
    lines = text.splitlines()
    for whole in (world.DIGEST, "sha256:" + "cd" * 32, LINEAGE["run"], LINEAGE["dataset"], LINEAGE["datasetHash"]):
        assert any(line.endswith(str(whole)) for line in lines), whole
    assert not any("for the next version" in line for line in lines)
    assert "100 % now, 90 % in spec" in text
    assert "0 % now, 10 % in spec" in text


def test_a_system_prompt_is_shown_whole_and_commands_no_terminal() -> None:
    text = "You are Acme's.\n\n" + "Be brief. " * 20 + "\x1b[2J"
    prompted = adapter(world.V1, {}, systemPrompt={"text": text})
    view = lineage_view("LoRAAdapter", world.V1, replace(registry(), adapters=[prompted]))
    told = shown(render_lineage(view, 80), UNFOLDED)
    assert "IfAbsent: You are Acme's." in told
    assert told.count("brief.") == 20
    assert "\\x1b[2J" in told
    assert "\x1b" not in told
    assert max(map(len, told.splitlines())) <= 80 or "sha256:" in told


def test_what_is_named_and_does_not_exist_is_in_the_chain() -> None:
    read = replace(registry(), adapters=[], base_models=[])
    view = lineage_view("ModelDeployment", "acme-support", read)
    assert [(r.adapter.missing if r.adapter else None, r.base and r.base.missing) for r in view.revisions] == [
        (True, True)
    ] * 2
    assert shown(render_lineage(view, 80), 80).count("it is named and does not exist") == 4


def test_a_built_base_shows_what_it_came_from() -> None:
    steps = [
        {"kind": "merge", "key": "0" * 32, "seed": 7, "tools": {"peft": "0.21.2\x1b[2J"}, "checks": {"finite": "yes"}}
    ]
    status = {
        "state": "Succeeded",
        "key": "0" * 32,
        "output": "models:built/0",
        "finishedAt": "2026-02-22T10:00:00Z",
        "inputs": [{"kind": "LoRAAdapter", "name": "v1", "digest": world.DIGEST}],
        "steps": steps,
    }
    raw = world.base().to_dict()
    output = {"volume": {"claimName": "models", "path": "built"}}
    source = {"build": {"output": output, "steps": [{"merge": {"baseModel": "b", "adapter": "v1"}}]}}
    base = BaseModelResource.from_dict({**raw, "spec": {**raw["spec"], "source": source}, "status": {"build": status}})
    view = lineage_view("BaseModel", world.BASE, replace(registry(), base_models=[base]))
    told = shown(render_lineage(view, 120), UNFOLDED)
    assert "build:merge" in told
    assert "LoRAAdapter v1" in told
    assert world.DIGEST in told
    assert "merge; peft 0.21.2\\x1b[2J; seed 7; finite: yes" in told
    assert "2026-02-22T10:00:00Z into models:built/0" in told
    waiting = base.model_copy(update={"status": base.status.model_copy(update={"build": BuildStatus(state="Waiting")})})
    view = lineage_view("BaseModel", world.BASE, replace(registry(), base_models=[waiting]))
    assert "Waiting: it has not begun" in shown(render_lineage(view, 120), UNFOLDED)


def test_view_for_programs() -> None:
    (first, second) = lineage_view("ModelDeployment", "acme-support", registry()).to_dict()["revisions"]
    assert (first["role"], first["weight"], first["specWeight"]) == ("stable", 100, 90)
    assert first["stableSince"] == "2026-02-22T10:00:00Z"
    assert first["adapter"]["digest"] == world.DIGEST
    assert first["adapter"]["lineage"] == LINEAGE
    assert first["base"]["digest"] == "sha256:" + "cd" * 32
    assert (second["role"], second["adapter"]["warning"]) == (
        "candidate",
        "ParentIsAdapter: it was trained from acme-support-v1",
    )
    assert "stableSince" not in second


def test_a_name_of_several_kinds_is_asked_back() -> None:
    read = registry()
    both = replace(read, base_models=[b.model_copy(update={"metadata": renamed(b)}) for b in read.base_models])
    assert found_kinds("acme-support", both) == ["ModelDeployment", "BaseModel"]
    with pytest.raises(UserError, match="write mdep/acme-support or bmodel/acme-support"):
        chosen_kind("acme-support", None, "models", both)
    assert chosen_kind("acme-support", "BaseModel", "models", both) == "BaseModel"
    with pytest.raises(UserError, match="no LoRAAdapter 'acme-support' in namespace models"):
        chosen_kind("acme-support", "LoRAAdapter", "models", both)


def renamed(base: BaseModelResource) -> Any:
    return base.metadata.model_copy(update={"name": "acme-support"})


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(UserError, match="pod is no kind: write mdep/x, lora/x or bmodel/x") as error:
        run(type("Args", (), {"name": "pod/x"})())
    assert error.value.exit_code == 2
