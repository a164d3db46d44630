"""Gates on the real system: a candidate that is slow or answers wrongly never meets a user, a good one goes on.

Both revisions share their pods here, so a slow candidate is one that a limit calls slow: no candidate is four times as
fast as stable.
"""

from __future__ import annotations

import json

import pytest
import yaml

from demo.kubectl import ready
from demo.system import MODELS_NAMESPACE
from tests.e2e.world import deployment, rows, wait_until
from tuneyard.api import names

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS = [{"weight": 50, "hold": "5s"}]
PROMPTS = "e2e-evals"


def speed(limit):
    load = {"requests": 20, "concurrency": 2, "promptTokens": 16, "maxTokens": 4}
    return {"name": "speed", "timeout": "10m", "benchmark": {**load, "max": {"e2eP50": limit}}}


def answers(least):
    return {
        "name": "answers",
        "evaluation": {"prompts": {"configMap": PROMPTS}, "min": {"regex": least}, "maxTokens": 40},
    }


def rollout(*gates):
    return {"mode": "Progressive", "steps": STEPS, "gates": list(gates)}


def prompts(*lines):
    metadata = {"name": PROMPTS}
    data = {"prompts.jsonl": "\n".join(json.dumps(line) for line in lines)}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})


def says(pattern):
    asked = [{"role": "user", "content": "How do I reset my password?"}]
    return {"messages": asked, "check": {"regex": pattern}}


def told(deployed):
    return (deployed.get("status") or {}).get("rollout") or {}


def rejected(deployed):
    return [v["reason"] for v in told(deployed).get("verdicts") or ()]


def jobs(world):
    return world.kubectl.items("jobs", MODELS_NAMESPACE, f"{names.LABEL_COMPONENT}={names.GATE}")


@pytest.fixture
def gated(world):
    """v1 is stable in mode Progressive, and no Job or prompt of another story is there."""
    wait_until(lambda: not jobs(world), 60, "no Job is left")
    world.apply(deployment({"v1": 100}, rollout=rollout()))
    world.wait_for(lambda d: ready(d) and told(d).get("stable") == "v1", timeout=300)
    yield world
    world.kubectl("-n", MODELS_NAMESPACE, "delete", "configmap", PROMPTS, "--ignore-not-found")


@pytest.mark.slow
def test_a_candidate_that_is_slow_or_wrong_is_refused_and_a_good_one_goes_on(gated, traffic):
    world = gated
    world.apply(prompts(says(r"\(v2\)"), says(r"\(v2\)")))

    world.apply(deployment({"v1": 0, "v2": 100}, rollout=rollout(speed("0.25x"))))
    seen = world.wait_for(lambda d: told(d).get("phase") == "Gating" and jobs(world), timeout=60)
    assert rows(seen)["v2"]["weight"] == 0
    seen = world.wait_for(rejected, timeout=600)
    assert rejected(seen) == ["GateFailed"]
    assert "e2eP50" in told(seen)["verdicts"][0]["evidence"]

    world.apply(deployment({"v1": 0, "base": 100}, rollout=rollout(answers(0.5))))
    seen = world.wait_for(lambda d: any(v["revision"] == "base" for v in told(d).get("verdicts") or ()), timeout=600)
    assert told(seen)["verdicts"][0]["evidence"] == "gate answers: regex 0 is under 0.5"
    traffic.wait_for(2)
    served = traffic.summary()
    assert served.failed == served.cut == 0, served
    assert set(served.by_revision) == {"v1"}, "nobody met a candidate that was refused"

    good = {**rollout(answers(0.5), speed("4x")), "retryToken": "again"}
    world.apply(deployment({"v1": 0, "v2": 100}, rollout=good))
    world.wait_for(lambda d: told(d).get("stable") == "v2", timeout=900)
    served = traffic.summary()
    assert served.failed == served.cut == 0, served
    found = {(r["revision"], r["gate"], r["outcome"]) for r in world.tuneyard("report")["results"]}
    assert found >= {("v2", "answers", "Passed"), ("v2", "speed", "Passed"), ("v2", "speed", "Failed")}, "all are kept"


def test_a_gate_without_its_prompts_holds_until_they_are_there(gated):
    world = gated
    world.apply(deployment({"v1": 0, "v2": 100}, rollout=rollout(answers(0.5))))
    seen = world.wait_for(lambda d: any(g["state"] == "CannotRun" for g in told(d).get("gates") or ()), timeout=300)
    assert f"ConfigMap {PROMPTS}, key prompts.jsonl does not exist" in told(seen)["gates"][0]["message"]
    assert not rejected(seen)
    assert rows(seen)["v2"]["weight"] == 0
    world.apply(prompts(says(r"\(v2\)")))
    world.wait_for(lambda d: told(d).get("stable") == "v2", timeout=600)
