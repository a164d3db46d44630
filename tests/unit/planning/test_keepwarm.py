"""Which of the listed revisions stay loaded, by `rollout.keepWarm`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import VOLUME, Situation, base_model, deployment, pinned, revision, stamp
from tuneyard.api.mirror import MirrorSpec
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.rollout import Outcome, RolloutSpec, RolloutStatus
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.keepwarm import warm
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.pools import pools_of
from tuneyard.runtime.signatures import references

NAMES = ["v1", "v2", "v3", "v4"]
ALL = set(NAMES)


def line(name: str, outcome: Any = "Stable") -> Outcome:
    return Outcome(revision=name, content_hash=name, outcome=outcome, at=stamp(0))


HISTORY = [line("v1"), line("v2"), line("v3")]


def chat(
    keep: int | None = 1,
    *,
    traffic: dict[str, int] | None = None,
    status: RolloutStatus | None = None,
    mode: str = "Progressive",
    mirror: str | None = None,
    **rollout: Any,
) -> Any:
    steps = {"mode": mode, "steps": [{"weight": 5, "hold": "5m"}], **({} if keep is None else {"keepWarm": keep})}
    known = status or RolloutStatus(phase="Completed", stable="v3", history=HISTORY, **rollout)
    found = deployment(
        revisions=[revision(n, n) for n in NAMES],
        traffic=traffic or {"v3": 100},
        rollout=RolloutSpec.from_dict(steps),
        status=ModelDeploymentStatus(rollout=known),
    )
    mirrored = MirrorSpec(revision=mirror, percent=10) if mirror else None
    return found.model_copy(update={"spec": found.spec.model_copy(update={"mirror": mirrored})})


@pytest.mark.parametrize(
    ("found", "expected", "why"),
    [
        (chat(None), ALL, "nobody asked for less"),
        (chat(0), {"v3", "v4"}, "stable, and one that is on its way up"),
        (chat(1), {"v2", "v3", "v4"}, "and the one before it"),
        (chat(2), ALL, "and the one before that"),
        (chat(0, traffic={"v3": 0, "v1": 100}), {"v1", "v3", "v4"}, "a commit brings v1 back"),
        (chat(0, candidate="v2"), {"v2", "v3", "v4"}, "the candidate"),
        (chat(0, mirror="v1"), {"v1", "v3", "v4"}, "copies go to v1"),
        (chat(0, status=RolloutStatus()), ALL, "the status says nothing"),
        (chat(0, status=RolloutStatus(stable="gone", history=HISTORY)), ALL, "stable is not listed any more"),
        (chat(0, mode="Manual"), ALL, "mode Manual keeps no history"),
        (
            chat(1, status=RolloutStatus(stable="v1", history=[*HISTORY, line("v1")])),
            {"v1", "v3", "v4"},
            "after a way back, the one that it went back from is the one before",
        ),
        (
            chat(0, status=RolloutStatus(stable="v3", history=[*HISTORY, line("v2", "Rejected")])),
            {"v3", "v4"},
            "what was rejected since has no weight, and was stable before",
        ),
    ],
)
def test_which_revisions_are_loaded(found: Any, expected: set[str], why: str) -> None:
    assert warm(found) == expected, why


def test_a_pool_does_not_hold_what_is_not_kept_and_the_adapter_says_so() -> None:
    base = base_model(serving=ServingSpec(artifact_volumes=[VOLUME]))
    found = chat(0)
    (pool,) = pools_of(base, [found])
    assert pool.adapter_names == {"v3", "v4"}
    assert pool.idle == {"v1", "v2"}
    adapters = tuple(pinned(n) for n in NAMES)
    situation = Situation(bases=(base,), adapters=adapters, deployments=(found,))
    status = plan_loraadapter(situation.adapter("v1")).status
    ready = next(c for c in status.conditions if c.type == "Ready")  # type: ignore[union-attr]
    assert (ready.status, ready.reason) == ("True", "Idle")
    assert "beyond rollout.keepWarm of" in ready.message


def test_who_reads_it_is_woken_when_another_revision_is_kept() -> None:
    def read(found: Any) -> object:
        return references({**found.to_dict(), "metadata": {"uid": "x"}})

    assert read(chat(1)) != read(chat(0))
    assert read(chat(1)) != read(chat(1, status=RolloutStatus(stable="v4", history=[*HISTORY, line("v4")])))
    assert read(chat(1)) != read(chat(1, traffic={"v3": 90, "v1": 10}))
    assert read(chat(1)) == read(chat(1, traffic={"v3": 100, "v1": 0})), "weights alone concern nobody"
    assert read(chat(1, mirror="v1")) != read(chat(1))
    assert read(chat(1, mirror="v1")) != read(chat(1, mirror="v2"))
    assert read(chat(None, mirror="v1")) == read(chat(None)), "all are loaded anyway"
    assert read(chat(None)) == read(chat(None, traffic={"v3": 90, "v1": 10}))
