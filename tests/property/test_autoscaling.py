"""Whatever happens to a pool: bounds hold, half knowledge lowers nothing, more load never gives fewer replicas."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.builders import T0
from tuneyard.api.autoscaling import Autoscaling, ScalingStatus
from tuneyard.planning.autoscaling import Measured, Metric, PoolNow, decide, least_replicas, most_replicas, targets_of

EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "30"))
_TARGETS = st.fixed_dictionaries(
    {},
    optional={
        "inFlightRequests": st.integers(1, 50),
        "waitingRequests": st.integers(1, 20),
        "kvCacheUtilization": st.integers(1, 100),
        "tokensPerSecond": st.integers(1, 5000),
        "ttft": st.just({"max": "2s"}),
    },
).filter(bool)
_RULES = st.fixed_dictionaries(
    {}, optional={"stabilizationWindow": st.sampled_from(["0s", "30s", "5m"]), "maxStep": st.integers(1, 9)}
)


@st.composite
def settings(draw: st.DrawFn) -> Autoscaling:
    least = draw(st.integers(0, 12))
    given_: dict[str, object] = {
        "minReplicas": least,
        "maxReplicas": draw(st.integers(max(1, least), 40)),
        "targets": draw(_TARGETS),
        "scaleUp": draw(_RULES),
        "scaleDown": draw(_RULES),
    }
    if draw(st.booleans()):
        each = draw(st.floats(0.1, 9))
        given_["costCeiling"] = {"perReplicaHour": each, "perHour": each * max(1, least) * draw(st.floats(1, 5))}
    return Autoscaling.from_dict(given_)


_LOADS = st.fixed_dictionaries({metric: st.floats(0, 20_000) for metric in Metric})
_STATES = st.builds(
    ScalingStatus,
    since=st.none() | st.just("2026-01-01T11:59:55Z"),
    from_replicas=st.none() | st.integers(1, 40),
    lower_since=st.none() | st.just("2026-01-01T11:50:00Z"),
    higher_since=st.none() | st.just("2026-01-01T11:50:00Z"),
    sustained=st.none() | st.floats(0.1, 100),
    sustained_at=st.none() | st.just("2026-01-01T11:00:00Z"),
)
_POOLS = st.builds(
    PoolNow,
    replicas=st.integers(0, 50),
    serving=st.integers(0, 50),
    least=st.integers(0, 50),
    steady=st.booleans(),
)
_WHOLE = st.frozensets(st.sampled_from(list(Metric)))


@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
@given(settings(), _LOADS, _POOLS, _STATES, _WHOLE)
def test_bounds_hold_always(
    given_: Autoscaling, load: dict[Metric, float], pool: PoolNow, state: ScalingStatus, whole: frozenset[Metric]
) -> None:
    found = decide(given_, Measured(load, whole), pool, state, T0)
    most = most_replicas(given_)
    assert min(most, least_replicas(given_)) <= found.wanted <= most
    assert found.wanted >= min(most, pool.least)
    assert found.state.peaks is None or len(found.state.peaks) <= 12


@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
@given(settings(), _LOADS, _POOLS, _STATES, _WHOLE)
def test_what_is_not_known_lowers_nothing(
    given_: Autoscaling, load: dict[Metric, float], pool: PoolNow, state: ScalingStatus, whole: frozenset[Metric]
) -> None:
    found = decide(given_, Measured(load, whole), pool, state, T0)
    known = targets_of(given_.targets).keys() <= whole and pool.steady
    if not known:
        assert found.wanted >= min(most_replicas(given_), max(1, pool.replicas))


@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
@given(settings(), _LOADS, st.floats(1, 10), _POOLS, _STATES)
def test_more_of_everything_never_gives_fewer(
    given_: Autoscaling, load: dict[Metric, float], factor: float, pool: PoolNow, state: ScalingStatus
) -> None:
    # what a replica sustains is learned from the load itself, and is no part of this
    state = state.model_copy(update={"sustained": None, "sustained_at": None})
    more = {metric: value * factor for metric, value in load.items()}
    whole = frozenset(Metric)
    low = decide(given_, Measured(load, whole), pool, state, T0)
    high = decide(given_, Measured(more, whole), pool, state, T0)
    assert high.wanted >= low.wanted


@hypothesis_settings(max_examples=EXAMPLES, deadline=None)
@given(settings(), st.lists(_LOADS, min_size=1, max_size=12), st.integers(1, 20))
def test_nothing_comes_and_goes_within_a_window(
    given_: Autoscaling, loads: list[dict[Metric, float]], replicas: int
) -> None:
    """A replica that was added stays for the window of scaleDown at least; every pod serves at once here."""
    given_ = given_.model_copy(update={"scale_down": None})
    state, added, now = ScalingStatus(), None, T0
    for load in loads:
        found = decide(given_, Measured(load, frozenset(Metric)), PoolNow(replicas, replicas), state, now)
        in_bounds = least_replicas(given_) <= replicas <= most_replicas(given_)
        if found.wanted < replicas and in_bounds:
            assert added is None or (now - added).total_seconds() >= 300
        if found.wanted > replicas:
            added = now
        replicas, state, now = found.wanted, found.state, now + timedelta(seconds=40)
