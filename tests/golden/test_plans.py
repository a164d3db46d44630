"""CR -> plan: what the operator does when it first sees the objects of plans/NAME.in.yaml, in plans/NAME.out.yaml.

`TUNEYARD_UPDATE=1` writes the .out files anew and deletes those without an .in; read the diff before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.builders import KEYS, T0
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.observations import BaseModelObservation, LoRAAdapterObservation, ModelDeploymentObservation
from tuneyard.planning.plan import Apply, Plan, Redacted
from tuneyard.planning.pools import places
from tuneyard.planning.settings import Settings

FOLDER = Path(__file__).parent / "plans"
CASES = sorted(p.name.removesuffix(".in.yaml") for p in FOLDER.glob("*.in.yaml"))
UPDATE = os.environ.get("TUNEYARD_UPDATE") == "1"
SETTINGS = Settings.from_dict(
    {
        "images": {"tuneyard": "tuneyard:1", "envoy": "tuneyard-envoy:1", "vllm": "vllm:1"},
        "engineEnv": {"OMP_NUM_THREADS": "1"},
        "allowedHostPathPrefixes": ["/var/lib/models"],
    }
)


def printable(value: Any) -> Any:
    """Plain values that YAML can write, secrets as they are printed."""
    if isinstance(value, Redacted):
        return str(value)
    if isinstance(value, dict):
        return {k: printable(v) for k, v in value.items()}
    return [printable(v) for v in value] if isinstance(value, list | tuple) else value


def told(plan: Plan) -> dict[str, Any]:
    """A plan as YAML can say it."""
    assert all(isinstance(a, Apply) for a in plan.actions), "nothing is there yet that could be changed or deleted"
    return {
        "apply": [printable(a.object) for a in plan.actions if isinstance(a, Apply)],
        "status": plan.status.to_dict() if plan.status else None,
        "events": [f"{e.type} {e.reason.value}: {e.message}" for e in plan.events],
        "requeueAfter": plan.requeue_after,
    }


def planned(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Every object's first plan, with nothing there but the objects."""
    for number, document in enumerate(documents):
        stamp = {"uid": f"uid-{number}", "generation": 1, "creationTimestamp": f"2026-01-01T00:00:{number:02}Z"}
        document["metadata"] |= stamp
    bases = tuple(BaseModelResource.from_dict(d) for d in documents if d["kind"] == "BaseModel")
    adapters = tuple(LoRAAdapterResource.from_dict(d) for d in documents if d["kind"] == "LoRAAdapter")
    deployments = tuple(ModelDeploymentResource.from_dict(d) for d in documents if d["kind"] == "ModelDeployment")
    plans: dict[str, Plan] = {}
    for base in bases:
        seen = BaseModelObservation(
            base, deployments, adapters, (), (), bases, KEYS, SETTINGS, T0, has_leader_worker_sets=True
        )
        plans[f"BaseModel {base.metadata.name}"] = plan_basemodel(seen)
    for adapter in adapters:
        found = next((b for b in bases if b.metadata.name == adapter.spec.base_model), None)
        pools = places(found, deployments, adapters, ()) if found else ()
        asked = LoRAAdapterObservation(adapter, found, pools, deployments, (), SETTINGS, T0)
        plans[f"LoRAAdapter {adapter.metadata.name}"] = plan_loraadapter(asked)
    for deployment in deployments:
        view = ModelDeploymentObservation(deployment, deployments, adapters, bases, (), (), 2, (), SETTINGS, T0)
        plans[f"ModelDeployment {deployment.metadata.name}"] = plan_modeldeployment(view)
    return {name: told(plan) for name, plan in plans.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.lasting
def test_plan_is_the_golden_one(case: str) -> None:
    documents = list(yaml.safe_load_all((FOLDER / f"{case}.in.yaml").read_text()))
    found = yaml.safe_dump(planned(documents), sort_keys=False, width=120, allow_unicode=True)
    golden = FOLDER / f"{case}.out.yaml"
    if UPDATE:
        golden.write_text(found)
    assert golden.exists(), "no golden plan: TUNEYARD_UPDATE=1 writes it"
    assert found == golden.read_text()


def test_no_golden_plan_is_left_over() -> None:
    orphans = [p for p in FOLDER.glob("*.out.yaml") if p.name.removesuffix(".out.yaml") not in CASES]
    for orphan in orphans if UPDATE else []:
        orphan.unlink()
    assert UPDATE or not orphans


def test_golden_plans_hold_no_secret() -> None:
    keys = [KEYS.of(ns, pool) for ns, pool in [("demo", "smollm2-135m"), ("team", "llama-3.1-8b")]]
    text = "".join(p.read_text() for p in FOLDER.glob("*.out.yaml"))
    assert "key: '[redacted]'" in text
    assert not any("".join(key) in text for key in keys)
