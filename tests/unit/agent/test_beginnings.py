"""When an engine that takes adapters only at its start begins anew, and with which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.agent.states import after, planned
from tuneyard.api.documents import PlannedAdapter, PoolPlan
from tuneyard.api.names import engine_adapter_name
from tuneyard.api.reasons import Reason
from tuneyard.planning.agent import Begin, Fetch, Load, Probe, Remove, Unload, next_steps
from tuneyard.planning.agentstate import (
    BaseProven,
    Began,
    Begun,
    EngineSeen,
    Event,
    Failed,
    Fetched,
    PlanChanged,
    Prepared,
    Proven,
    Published,
    State,
)
from tuneyard.planning.beginnings import asks_for_turn
from tuneyard.planning.engines import Loading
from tuneyard.planning.podreport import pod_report

DIGEST = "sha256:" + "1" * 64
A, B, C = planned("a"), planned("b"), planned("c")


def prepared(adapter: PlannedAdapter) -> Prepared:
    return Prepared(adapter.source, DIGEST, engine_adapter_name(adapter.name, DIGEST), 8, ("q_proj",), 10)


def name(adapter: PlannedAdapter) -> str:
    return prepared(adapter).engine_name


def fetched(adapter: PlannedAdapter) -> Fetched:
    return Fetched(adapter.name, prepared(adapter))


def wants(*adapters: PlannedAdapter, turns: list[str] | None = None) -> PlanChanged:
    return PlanChanged(PoolPlan(pool="p", base_model="base", adapters=list(adapters), turns=turns))


def known(*events: Event) -> State:
    return after(*events, state=State("10.0.0.1:8080", "base", 4, loading=Loading.AT_START))


def serving(*events: Event) -> State:
    """It serves the base and adapter a, and then this."""
    before = known(wants(A), fetched(A), Begun(frozenset({name(A)})), EngineSeen(frozenset({"base", name(A)})))
    return after(BaseProven(), Proven("a", name(A)), *events, state=before)


def begin(*adapters: PlannedAdapter) -> Begin:
    return Begin(tuple((a, prepared(a)) for a in adapters))


def test_it_begins_once_all_files_are_there() -> None:
    assert next_steps(known(), 0.0) == [], "nobody knows yet what it is to serve"
    assert next_steps(known(wants()), 0.0) == [begin()]
    assert next_steps(known(wants(A, B), fetched(A)), 0.0) == [Fetch(B)]
    assert next_steps(known(wants(A, B), fetched(A), fetched(B)), 0.0) == [begin(A, B)]
    failed = Failed(B, Reason.FILES_MISSING, "gone", 0.0)
    assert begin(A) in next_steps(known(wants(A, B), fetched(A), failed), 0.0), "what fails is not waited for"


def test_it_is_asked_and_never_told_to_load() -> None:
    state = known(wants(A), fetched(A), Begun(frozenset({name(A)})), EngineSeen(frozenset({"base", name(A)})))
    assert [type(step) for step in next_steps(state, 0.0) if isinstance(step, Probe | Load)] == [Probe]
    assert not any(isinstance(s, Load) for s in next_steps(serving(wants(A, B), fetched(B)), 0.0))


@pytest.mark.parametrize(("turns", "begins"), [(None, False), ([], False), (["pod"], True)])
def test_while_it_serves_it_waits_for_its_turn(turns: list[str] | None, begins: bool) -> None:
    state = serving(wants(A, B, turns=turns), fetched(B))
    assert (begin(A, B) in next_steps(state, 0.0)) is begins
    assert asks_for_turn(state)
    report = pod_report(state)
    assert report is not None and report.asks_for_turn


def test_where_nobody_is_served_by_it_it_waits_for_nobody() -> None:
    state = known(wants(A, B), fetched(A), fetched(B), Begun(frozenset({name(A)})))
    assert next_steps(state, 0.0) == [begin(A, B)]


def test_it_does_not_begin_anew_to_get_rid_of_an_adapter() -> None:
    state = serving(wants(turns=["pod"]))
    assert not any(isinstance(step, Begin) for step in next_steps(state, 100.0))
    assert not asks_for_turn(state)
    report = pod_report(state)
    assert report is not None
    assert Unload(name(A)) in next_steps(after(Published(report, 0.0), state=state), 100.0)


def test_an_adapter_that_is_wanted_again_gets_its_name_back() -> None:
    state = serving(wants(A), EngineSeen(frozenset({"base"})), BaseProven())
    assert Load(A, prepared(A)) in next_steps(state, 0.0)
    assert not any(isinstance(step, Begin) for step in next_steps(state, 0.0))


def test_a_folder_stays_as_long_as_it_would_begin_with_it() -> None:
    gone = serving(wants(), EngineSeen(frozenset({"base"}), frozenset({name(A)})))
    assert Remove(name(A)) not in next_steps(replace(gone, withdrawn={name(A): 0.0}), 100.0)


def test_it_is_not_begun_while_anything_is_under_way_in_it() -> None:
    state = serving(wants(A, B, turns=["pod"]), fetched(B), Began(("engine", name(A))))
    assert not any(isinstance(step, Begin) for step in next_steps(state, 0.0))


def test_a_hopeless_adapter_asks_for_no_turn() -> None:
    failed = Failed(B, Reason.LOAD_REFUSED, "llama-server does not come up", 0.0)
    once = serving(wants(A, B), fetched(B), failed)
    assert asks_for_turn(once)
    assert not asks_for_turn(after(failed, failed, state=once))


def test_one_that_cannot_be_fetched_keeps_no_other_back() -> None:
    failed = Failed(C, Reason.FILES_MISSING, "gone", 0.0)
    state = serving(wants(A, B, C), fetched(B))
    assert not asks_for_turn(state), "both come in one turn, where both come soon"
    assert asks_for_turn(after(failed, state=state))


def test_it_says_loading_only_of_what_its_engine_was_begun_with() -> None:
    """Another pod gives its turn to one that says so: gateways send nothing to it for that adapter yet."""

    def told(state: State) -> str | None:
        report = pod_report(state)
        return report.adapters["b"].reason if report is not None else None

    downloading = serving(wants(A, B, C), fetched(B), Began(("adapter", "c")))
    assert told(downloading) == Reason.ENGINE_NOT_READY, "it serves all that it has"
    both = frozenset({name(A), name(B)})
    begun = after(Begun(both), EngineSeen(both | {"base"}), BaseProven(), Proven("a", name(A)), state=downloading)
    assert told(begun) == Reason.LOADING
    assert told(after(Proven("b", name(B)), state=begun)) is None


def test_what_was_proven_was_another_process_s() -> None:
    state = serving(Begun(frozenset({name(A)})))
    assert (state.proven, state.engine.healthy, state.engine.answers) == ({}, False, False)
