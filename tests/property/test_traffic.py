"""The rules of rollout.md that hold in every state, for the function that operator and gateways share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tuneyard.api.modeldeployment import ModelDeploymentSpec, Revision, TrafficTarget
from tuneyard.api.rollout import RolloutSpec
from tuneyard.planning.traffic import effective

NAMES = ["v1", "v2", "v3", "v4"]


STEPS = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 5}]})


@st.composite
def specs(draw: st.DrawFn, rollout: RolloutSpec | None = None) -> ModelDeploymentSpec:
    names = NAMES[: draw(st.integers(1, 4))]
    cuts = sorted(draw(st.lists(st.integers(0, 100), min_size=len(names) - 1, max_size=len(names) - 1)))
    weights = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
    return ModelDeploymentSpec(
        rollout=rollout,
        revisions=[Revision(name=n, base_model="b", adapter=n) for n in names],
        traffic=[
            TrafficTarget(revision=n, weight=w) for n, w in zip(names, weights, strict=True) if w or draw(st.booleans())
        ],
    )


ready = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 3))
stable = st.one_of(st.none(), st.sampled_from([*NAMES, "gone"]))
allowed = st.one_of(st.none(), st.dictionaries(st.sampled_from(NAMES), st.integers(0, 100)))


on_demand = st.sets(st.sampled_from(NAMES))


@given(specs(), ready, stable, allowed, on_demand)
def test_ceiling_sum_and_readiness_hold(spec, ready, stable, allowed, on_demand):
    split = effective(spec, ready, stable=stable, allowed=allowed, on_demand=on_demand)
    assert sum(split.weights.values()) + split.unserved == 100
    for name, weight in split.weights.items():
        assert weight >= 0
        if weight:
            assert ready.get(name, 0) > 0 or name in on_demand, "weight on a revision that nobody serves or loads"
        if name != split.stable:
            assert weight <= spec.weight_of(name), "a candidate above its spec weight"
            assert allowed is None or weight <= allowed.get(name, 100), "a candidate above what the rollout allows"
        if weight < spec.weight_of(name):
            assert name in split.withheld
    rejected = {name for name, limit in (allowed or {}).items() if limit == 0}
    assert not any(split.weights[name] for name in rejected if name in split.weights), "a verdict counts for nothing"
    if (ready.get(split.stable, 0) or split.stable in on_demand) and split.stable not in rejected:
        assert split.unserved == 0


@given(specs(), stable)
def test_everything_ready_and_allowed_is_the_spec(spec, stable):
    split = effective(spec, dict.fromkeys(NAMES, 1), stable=stable)
    assert split.weights == {r.name: spec.weight_of(r.name) for r in spec.revisions}


@given(specs(), ready, stable, allowed)
def test_what_goes_idle_as_it_is_served_keeps_its_weights(spec, ready, stable, allowed):
    """Whatever pods unload then, one after the other."""
    everything = dict.fromkeys(NAMES, 1)
    served = effective(spec, everything, stable=stable, allowed=allowed)
    assert effective(spec, ready, stable=served.stable, allowed=allowed, on_demand=NAMES).weights == served.weights


@given(specs(), ready, stable)
def test_stable_does_not_flap(spec, ready, stable):
    first = effective(spec, ready, stable=stable).stable
    assert effective(spec, ready, stable=first).stable == first


@given(specs(), ready)
def test_without_a_status_only_the_heaviest_revision_may_get_more_than_its_weight(spec, ready):
    """An object that was deleted and created again has none; its candidate must not become the stable revision."""
    split = effective(spec, ready)
    heaviest = max(spec.weight_of(r.name) for r in spec.revisions)
    for name, weight in split.weights.items():
        assert weight <= spec.weight_of(name) or spec.weight_of(name) == heaviest


@given(specs(rollout=STEPS), ready, stable, allowed)
def test_by_steps_what_nobody_has_allowed_gets_nothing(spec, ready, stable, allowed):
    split = effective(spec, ready, stable=stable, allowed=allowed)
    assert sum(split.weights.values()) + split.unserved == 100
    for name, weight in split.weights.items():
        if name != split.stable:
            assert weight <= min(spec.weight_of(name), (allowed or {}).get(name, 0))
    if stable in split.weights:
        assert split.stable == stable, "a spec weight makes nobody stable"
