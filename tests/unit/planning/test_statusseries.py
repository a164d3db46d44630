"""What statuses say to Prometheus."""

from __future__ import annotations

from typing import Any

from tests.builders import NAMESPACE, adapter, at, base_model, deployment, digest, meta, revision, stamp
from tuneyard.api.basemodel import BaseModelStatus, PoolStatus
from tuneyard.api.conditions import Condition
from tuneyard.api.gates import GateStatus
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.modeldeployment import (
    ModelDeploymentResource,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    TrafficStatus,
)
from tuneyard.api.rollout import AnalysisStatus, ObjectiveCounts, RolloutSpec, RolloutStatus, Step, Verdict
from tuneyard.planning.statusseries import FAMILIES, status_series

OBJECTIVES = [
    ObjectiveCounts(objective="errors", candidate_judged=50, candidate_bad=2, stable_judged=900, stable_bad=9),
]
ROLLOUT = RolloutStatus(
    phase="Progressing",
    stable="v1",
    candidate="v2",
    step=1,
    allowed={"v1": 100, "v2": 25},
    gates=[GateStatus(name="bench", key="k", state="Passed")],
    analysis=AnalysisStatus(outcome="Continue", sentence="…", since=stamp(0), objectives=OBJECTIVES),
    verdicts=[
        Verdict(revision="v0", content_hash="a", reason="AnalysisFailed", at=stamp(5)),
        Verdict(revision="v0", content_hash="b", reason="AnalysisFailed", at=stamp(1)),
    ],
)


def condition(type_: str, status: Any, reason: str = "Ready") -> Condition:
    return Condition(type=type_, status=status, reason=reason, last_transition_time=stamp(0))


def canary() -> ModelDeploymentResource:
    return deployment(
        revisions=[revision("v1", "v1"), revision("v2", "v2")],
        traffic={"v1": 50, "v2": 50},
        rollout=RolloutSpec(mode="Progressive", steps=[Step(weight=25)]),
        status=ModelDeploymentStatus(
            traffic=[
                TrafficStatus(revision="v1", spec_weight=50, weight=75, ready_endpoints=3),
                TrafficStatus(revision="v2", spec_weight=50, weight=25, ready_endpoints=2),
            ],
            rollout=ROLLOUT,
            conditions=[condition("Ready", "False"), condition("Stalled", "True", "StableNotReady")],
        ),
    )


def told(**objects: Any) -> dict[tuple[str, ...], float]:
    """(name, labels but for the namespace) -> value."""
    wanted = {"base_models": (), "adapters": (), "deployments": (), **objects}
    found = {}
    for family, samples in status_series(**wanted).items():
        for labels, value in samples:
            assert len(labels) == len(family.labels)
            assert labels[family.labels.index("namespace")] == NAMESPACE
            rest = tuple(v for name, v in zip(family.labels, labels, strict=True) if name != "namespace")
            key = (family.name.removeprefix("tuneyard_"), *rest)
            assert key not in found
            found[key] = value
    return found


def test_a_canary_says_where_it_stands() -> None:
    assert told(deployments=[canary()]) == {
        ("ready", "ModelDeployment", "chat"): 0,
        ("stalled", "ModelDeployment", "chat", "StableNotReady"): 1,
        ("revision_spec_weight", "chat", "v1"): 50,
        ("revision_spec_weight", "chat", "v2"): 50,
        ("revision_weight", "chat", "v1"): 75,
        ("revision_weight", "chat", "v2"): 25,
        ("revision_ready_endpoints", "chat", "v1"): 3,
        ("revision_ready_endpoints", "chat", "v2"): 2,
        ("revision_allowed_weight", "chat", "v1"): 100,
        ("revision_allowed_weight", "chat", "v2"): 25,
        ("revision_role", "chat", "v1", "stable"): 1,
        ("revision_role", "chat", "v2", "candidate"): 1,
        ("rollout_phase", "chat", "Progressing"): 1,
        ("rollout_step", "chat"): 1,
        ("rollout_gate", "chat", "bench", "Passed"): 1,
        ("rollout_analysis", "chat", "Continue"): 1,
        ("rollout_answers_judged", "chat", "errors", "candidate"): 50,
        ("rollout_answers_judged", "chat", "errors", "stable"): 900,
        ("rollout_answers_bad", "chat", "errors", "candidate"): 2,
        ("rollout_answers_bad", "chat", "errors", "stable"): 9,
        # of two verdicts under one name the newer
        ("rollout_verdict_timestamp_seconds", "chat", "v0", "AnalysisFailed"): at(5).timestamp(),
    }


def test_an_external_revision_says_what_its_tokens_cost() -> None:
    def priced(**pricing: object) -> dict[tuple[str, ...], float]:
        given = {"url": "https://api.example.com/v1", "model": "m", "pricing": pricing}
        spec = ModelDeploymentSpec.from_dict(
            {
                "revisions": [{"name": "api", "external": given}],
                "traffic": [{"revision": "api", "weight": 100}],
            }
        )
        found = told(deployments=[deployment().model_copy(update={"spec": spec})])
        return {key[-2:]: value for key, value in found.items() if key[0] == "external_price"}

    prices = {"inputPerMillion": 2, "outputPerMillion": 8}
    assert priced(**prices) == {("USD", "prompt"): 2, ("USD", "cached"): 2, ("USD", "completion"): 8}
    euros = priced(**prices, cachedInputPerMillion=0.5, currency="EUR")
    assert euros == {("EUR", "prompt"): 2, ("EUR", "cached"): 0.5, ("EUR", "completion"): 8}


def test_adapters_and_pools_say_how_many_pods_have_them() -> None:
    status = LoRAAdapterStatus(loaded="2/3", conditions=[condition("Ready", "True")])
    pools = [PoolStatus(name="smollm2", replicas=4, ready_replicas=3)]
    assert told(
        adapters=[adapter("v1", status=status)], base_models=[base_model(status=BaseModelStatus(pools=pools))]
    ) == {
        ("ready", "LoRAAdapter", "v1"): 1,
        ("adapter_pods", "v1"): 3,
        ("adapter_loaded_pods", "v1"): 2,
        ("pool_replicas", "smollm2", "smollm2"): 4,
        ("pool_ready_replicas", "smollm2", "smollm2"): 3,
    }


def test_what_nobody_has_looked_at_yet_says_no_more_than_its_spec() -> None:
    new = status_series([base_model()], [adapter("v1")], [deployment()])
    assert {family.name: len(samples) for family, samples in new.items() if samples} == {
        "tuneyard_revision_spec_weight": 1
    }
    assert tuple(new) == FAMILIES


def test_what_objects_may_call_themselves_is_all_that_labels_hold() -> None:
    # no message, digest or hash is in any label
    labels = {
        value for _, samples in status_series([], [], [canary()]).items() for given, _ in samples for value in given
    }
    assert not {v for v in labels if "…" in v or digest("v1") in v or v in ("a", "b", "k")}
    assert meta("chat").name in labels
