"""Candidates that cannot serve, in rollouts by steps: rejected by themselves, told everywhere, met by no user, and the
next commit goes on."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from demo.kubectl import condition, ready
from demo.system import MODELS_NAMESPACE
from tests.e2e.world import TrafficOn, World, adapter, deployment, reason_of, rows, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

STEPS = {"mode": "Progressive", "steps": [{"weight": 10, "hold": "3s"}, {"weight": 50, "hold": "3s"}]}


def rolled_back(world: World, revision: str, reason: str, words: str, within: float) -> None:
    """The candidate has a verdict, and whoever looks is told; stable has all traffic."""
    seen = world.wait_for(lambda d: d["status"]["rollout"]["phase"] == "RolledBack", timeout=within)
    (verdict,) = seen["status"]["rollout"]["verdicts"]
    assert (verdict["revision"], verdict["reason"]) == (revision, reason), verdict
    assert words in verdict["evidence"]
    assert (rows(seen)["v1"]["weight"], rows(seen)[revision]["weight"]) == (100, 0)
    assert rows(seen)[revision]["withheld"].startswith("CandidateRejected")
    assert (condition(seen, "Stalled"), reason_of(seen, "Stalled")) == ("True", "CandidateRejected")
    wait_until(lambda: world.record().get("verdicts") == [verdict], 20, "it is kept beyond the deployment")
    wait_until(lambda: any(words in note for note in world.events("RolledBack")), 20, "an event tells it")
    told: dict[str, Any] = world.tuneyard("rollout status")
    assert (told["phase"], told["stable"], told["verdicts"]) == ("RolledBack", "v1", [verdict])
    assert reason in told["message"]
    outcomes = [(o["revision"], o["outcome"], o.get("reason")) for o in world.tuneyard("history")["outcomes"]]
    assert outcomes[-1] == (revision, "Rejected", reason)


def the_next_goes_on(world: World, traffic: TrafficOn, corrected: str) -> dict[str, Any]:
    """The next commit, that gives v2 all traffic: it is stable soon, and in the whole story no request has failed."""
    world.apply(corrected)
    seen = world.wait_for(lambda d: d["status"]["rollout"]["stable"] == "v2" and ready(d), timeout=60)
    # what was answered since may have begun before: on a slow machine streams last longer than the steps
    wait_until(lambda: "v2" in traffic.summary().by_revision, 60, "v2 answers")
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert set(told.by_revision) == {"v1", "v2"}, "nobody met the candidate"
    return seen


def test_a_candidate_with_a_broken_adapter_is_rolled_back_and_the_next_one_goes_on(
    world: World, traffic: TrafficOn, bad_adapters: dict[str, str]
) -> None:
    bad = {"bad": "bad-nan"}
    world.apply(adapter("bad-nan", "adapters/bad/nan"))
    world.apply(deployment({"v1": 0, "bad": 100}, bad, rollout=STEPS))
    rolled_back(world, "bad", bad_adapters["nan"], "NaN", within=60)
    # who comes next is listed beside it, and the verdict stays with what it is about
    seen = the_next_goes_on(world, traffic, deployment({"v1": 0, "bad": 0, "v2": 100}, bad, rollout=STEPS))
    assert [v["revision"] for v in seen["status"]["rollout"]["verdicts"]] == ["bad"]
    world.apply(deployment({"v1": 100}))
    world.kubectl.delete_unused("lora", "bad-nan", MODELS_NAMESPACE)


UNSCHEDULABLE = {"tensorParallelSize": 9, "resources": {"limits": {"nvidia.com/gpu": 9}}}


@pytest.mark.parametrize(
    ("serving", "deadline", "told"),
    [
        pytest.param(
            {"extraArgs": ["--no-such-flag"]},
            "10m",
            ("EngineCrashed", "engine ended with exit code"),
            marks=pytest.mark.slow,
        ),
        (UNSCHEDULABLE, "10s", ("ProgressDeadlineExceeded", "longer than progressDeadline 10s (Unschedulable: ")),
    ],
)
def test_a_candidate_with_a_bad_engine_setting_is_rolled_back_and_the_next_one_goes_on(
    world: World, traffic: TrafficOn, serving: dict[str, Any], deadline: str, told: tuple[str, str]
) -> None:
    """In pods of its own: an engine that ends with an error, and one that no node can take."""
    rollout = {**STEPS, "progressDeadline": deadline}
    candidate = yaml.safe_load(deployment({"v1": 0, "own": 100}, {"own": "acme-support-v2"}, rollout=rollout))
    candidate["spec"]["revisions"][-1]["serving"] = {"replicas": 1, **serving}
    world.apply(yaml.safe_dump(candidate))
    rolled_back(world, "own", *told, within=300)
    seen = the_next_goes_on(world, traffic, deployment({"v1": 0, "v2": 100}, rollout=rollout))
    assert not seen["status"]["rollout"].get("verdicts"), "it went with its revision"
