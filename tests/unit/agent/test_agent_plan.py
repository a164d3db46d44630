"""An agent's decisions: whole lists of steps for what it knows, and what it says of itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agent.states import after, plan, planned
from tuneyard.agent.snapshot import _document, _restored
from tuneyard.api.documents import AdapterReport, PlannedAdapter, PodReport
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.agent import (
    GRACE,
    Fetch,
    Load,
    Probe,
    ProbeBase,
    Remove,
    Step,
    Unload,
    next_steps,
    next_time,
)
from tuneyard.planning.agentstate import (
    BaseProven,
    Began,
    DrainAsked,
    Ended,
    EngineGone,
    EnginePoisoned,
    EngineSeen,
    EngineUnwell,
    Event,
    Failed,
    Fetched,
    Prepared,
    Proven,
    Published,
    Removed,
    State,
    Unloaded,
)
from tuneyard.planning.podreport import pod_report, source_mark

NOW = 100.0


def ready(name: str, path: str = "") -> Prepared:
    return Prepared(planned(name, path=path).source, f"sha256:{name}{path}", f"{name}-{path or 1}", 8, ("q_proj",), 100)


def steps(state: State, now: float = NOW) -> list[Step]:
    return next_steps(state, now)


def seen(*names: str, busy: tuple[str, ...] | None = ()) -> EngineSeen:
    return EngineSeen(frozenset({"base", *names}), None if busy is None else frozenset(busy))


UP = (seen(), BaseProven())


def report(state: State) -> PodReport:
    found = pod_report(state)
    assert found is not None
    return found


def states(state: State) -> dict[str, str]:
    return {name: a.state for name, a in report(state).adapters.items()}


def serving(*names: str, room: int = 4) -> State:
    """A pod that serves these adapters and has published it."""
    state = after(plan(*map(planned, names)), *(Fetched(n, ready(n)) for n in names), *UP, room=room)
    state = after(seen(*(f"{n}-1" for n in names)), *(Proven(n, f"{n}-1") for n in names), state=state)
    return after(Published(report(state), NOW), state=state)


def test_nothing_is_done_or_said_without_a_plan_or_a_look_at_the_engine() -> None:
    assert steps(after(*UP)) == []
    assert pod_report(after(*UP)) is None
    assert pod_report(after(plan(planned("a")))) is None


def test_a_new_adapter_step_by_step() -> None:
    state = after(plan(planned("a"), planned("b")), EngineGone())
    assert steps(state) == [Fetch(planned("a")), Fetch(planned("b"))], "while the engine starts"
    assert states(state) == {"a": "Loading", "b": "Loading"}
    assert report(state).engine == "Starting"

    state = after(Began(("adapter", "a")), Began(("adapter", "b")), state=state)
    assert steps(state) == [], "what is under way is not begun again"

    state = after(Fetched("a", ready("a")), Ended(("adapter", "a")), state=state)
    assert steps(state) == [], "there is no engine yet"

    state = after(seen(), state=state)
    assert steps(state) == [ProbeBase(), Load(planned("a"), ready("a"))]
    assert report(state).engine == "Starting", "not before the base has answered"

    state = after(seen("a-1"), state=state)
    assert steps(state) == [ProbeBase(), Probe(planned("a"), ready("a"))]
    assert states(after(Proven("a", "a-1"), state=state))["a"] == "Loading", "not before the base has answered"

    state = after(BaseProven(), state=state)
    assert steps(state) == [Probe(planned("a"), ready("a"))]
    assert report(state).engine == "Ready"
    assert states(state) == {"a": "Loading", "b": "Loading"}

    state = after(Proven("a", "a-1", Reason.ANSWERS_LIKE_BASE), state=state)
    assert steps(state) == []
    assert report(state).adapters["a"] == AdapterReport(
        state="Loaded",
        source=source_mark(planned("a").source),
        digest="sha256:a",
        engine_name="a-1",
        rank=8,
        target_modules=["q_proj"],
        size_bytes=100,
        warning="AnswersLikeBase",
    )


def test_an_adapter_that_goes_is_unpublished_then_unloaded_then_deleted() -> None:
    state = after(plan(planned("b")), state=serving("a", "b"))
    assert states(state) == {"b": "Loaded"}
    assert steps(state) == [], "not before others can know"

    state = after(Published(report(state), NOW), state=state)
    assert steps(state, NOW + GRACE - 0.01) == []
    assert next_time(state, NOW) == NOW + GRACE
    assert steps(state, NOW + GRACE) == [Unload("a-1")]

    state = after(Unloaded("a-1", NOW + 4), seen("b-1", busy=("a-1",)), state=state)
    assert steps(state, NOW + 4 + GRACE) == [], "a stream still runs with it"
    state = after(seen("b-1", busy=None), state=state)
    assert steps(state, NOW + 4 + GRACE) == [], "somebody waits, and nobody knows with what"
    state = after(seen("b-1"), state=state)
    assert steps(state, NOW + 4) == []
    assert steps(state, NOW + 4 + GRACE) == [Remove("a-1")]

    state = after(Removed("a-1"), state=state)
    assert steps(state, NOW + 100) == []
    assert state.prepared.keys() == {"b"}


def test_an_adapter_that_comes_back_in_time_stays() -> None:
    state = after(plan(), state=serving("a"))
    state = after(Published(report(state), NOW), plan(planned("a")), state=state)
    assert states(state) == {"a": "Loaded"}
    assert steps(state, NOW + GRACE) == []
    state = after(Published(report(state), NOW + 1), plan(), state=state)
    assert steps(state, NOW + GRACE) == [], "its time begins anew"


def test_a_restarted_engine_gets_everything_again() -> None:
    state = after(EngineGone(), state=serving("a", "b"))
    assert (report(state).engine, states(state)) == ("Starting", {"a": "Loading", "b": "Loading"})
    assert report(state).adapters["a"].reason == Reason.ENGINE_NOT_READY
    assert steps(state) == []
    state = after(seen(), state=state)
    assert steps(state) == [ProbeBase(), Load(planned("a"), ready("a")), Load(planned("b"), ready("b"))]


def test_an_engine_that_lost_a_name_unseen_has_begun_anew() -> None:
    state = after(seen("b-1"), state=serving("a", "b"))
    assert report(state).engine == "Starting"
    assert steps(state) == [ProbeBase(), Load(planned("a"), ready("a")), Probe(planned("b"), ready("b"))]
    state = after(BaseProven(), state=state)
    assert states(state) == {"a": "Loading", "b": "Loading"}
    assert steps(state) == [Load(planned("a"), ready("a")), Probe(planned("b"), ready("b"))]


def test_an_engine_that_hangs_is_not_offered_and_keeps_what_it_has() -> None:
    state = after(EngineUnwell(), state=serving("a"))
    assert report(state).engine == "Starting"
    assert steps(state) == []
    state = after(seen("a-1"), state=state)
    assert (report(state).engine, states(state), steps(state)) == ("Ready", {"a": "Loaded"}, [])


def failed(name: str, now: float = NOW, *, wish: PlannedAdapter | None = None, **more: Any) -> Failed:
    return Failed(wish or planned(name), Reason.CANNOT_GENERATE, "no token", now, f"sha256:{name}", **more)


def test_an_adapter_that_cannot_generate_is_taken_out_and_tried_again() -> None:
    state = after(plan(planned("a")), Fetched("a", ready("a")), *UP, seen("a-1"), failed("a"))
    assert report(state).adapters["a"] == AdapterReport(
        state="Failed",
        source=source_mark(planned("a").source),
        digest="sha256:a",
        engine_name="a-1",
        reason="CannotGenerate",
        message="no token",
    )
    assert steps(state) == [Unload("a-1")], "nobody was told of it: at once"
    state = after(Unloaded("a-1", NOW), state=state)
    assert steps(state) == []
    again = next_time(state, NOW)
    assert again is not None
    assert NOW + 0.7 < again <= NOW + 1
    assert steps(state, again) == [Load(planned("a"), ready("a"))]
    state = after(seen("a-1"), state=state)
    assert steps(state, again) == [Probe(planned("a"), ready("a"))]
    assert states(state) == {"a": "Failed"}, "until it is proven"
    state = after(Proven("a", "a-1"), state=state)
    assert states(state) == {"a": "Loaded"}


def test_retries_are_further_and_further_apart() -> None:
    state, now, pauses = after(plan(planned("a")), *UP), NOW, []
    for _ in range(10):
        state = after(failed("a", now), state=state)
        then = next_time(state, now)
        assert then is not None
        pauses.append(then - now)
        now = then
        assert steps(state, now) == [Fetch(planned("a"))]
    for number, pause in enumerate(pauses):
        assert 0.75 * min(60, 2**number) <= pause <= min(60, 2**number)
    assert len({p / 2**n for n, p in enumerate(pauses[:6])}) > 1, "with jitter"


def test_the_third_failure_in_a_row_lasts_and_so_does_one_that_is_not_tried_again() -> None:
    state, said = after(plan(planned("a")), *UP), []
    for number in range(4):
        state = after(failed("a", NOW + number), state=state)
        said.append(report(state).adapters["a"].lasting)
    assert said == [None, None, True, True], "within seconds: the first retries come after 1 s and 2 s"
    assert report(after(failed("b", for_ever=True), state=after(plan(planned("b")), *UP))).adapters["b"].lasting


def test_another_plan_is_another_chance_at_once() -> None:
    state = after(plan(planned("a")), *UP, failed("a"))
    assert steps(state) == []
    assert steps(after(plan(planned("a", path="elsewhere")), state=state)) == [Fetch(planned("a", path="elsewhere"))]
    assert steps(after(plan(planned("a"), planned("b")), state=state)) == [Fetch(planned("b"))], "a's wish is the same"
    assert steps(after(plan(planned("a", "sha256:a")), state=state)) == [], "that its digest was pinned is no change"


def test_a_failure_tells_what_was_asked_for_and_one_of_a_former_wish_is_none() -> None:
    state = after(plan(planned("a", "sha256:new")), *UP, failed("a", wish=planned("a", "sha256:new")))
    assert report(state).adapters["a"].wished == "sha256:new"
    late = failed("a", wish=planned("a", "sha256:old"))
    assert states(after(late, state=after(plan(planned("a", "sha256:new")), *UP))) == {"a": "Loading"}
    late = failed("a", wish=planned("a", path="elsewhere"))
    assert states(after(late, state=after(plan(planned("a")), *UP))) == {"a": "Loading"}


def test_bytes_that_harmed_an_engine_are_never_tried_again() -> None:
    state = after(plan(planned("a")), Fetched("a", ready("a")), *UP, seen("a-1"), failed("a", for_ever=True))
    state = after(Unloaded("a-1", NOW), EngineGone(), *UP, state=state)
    assert steps(state, NOW + 1e6) == []
    assert next_time(state, NOW) is None or next_time(state, NOW) != math.inf
    assert states(state) == {"a": "Failed"}


def test_a_poisoned_engine_offers_nothing_and_gets_nothing_to_do() -> None:
    state = after(EnginePoisoned(), state=serving("a"))
    assert (report(state).engine, states(state), steps(state)) == ("Starting", {"a": "Loading"}, [])
    state = after(seen("a-1"), state=state)
    assert state.engine.poisoned, "only another engine is cured"
    state = after(EngineGone(), *UP, state=state)
    assert steps(state) == [Load(planned("a"), ready("a"))]


def test_the_engine_never_holds_more_than_it_can() -> None:
    state = after(plan(*map(planned, "abc")), *(Fetched(n, ready(n)) for n in "abc"), *UP, room=2)
    assert steps(state) == [Load(planned("a"), ready("a")), Load(planned("b"), ready("b"))]
    assert report(state).adapters["c"].reason == Reason.POOL_FULL
    state = after(Began(("engine", "a-1")), state=state)
    assert steps(state) == [Load(planned("b"), ready("b"))]


def test_who_serves_keeps_the_place_and_who_leaves_holds_it_until_gone() -> None:
    state = after(plan(planned("new"), planned("a"), planned("b")), state=serving("a", "b", room=2))
    assert states(state) == {"new": "Failed", "a": "Loaded", "b": "Loaded"}
    state = after(plan(planned("new"), planned("b")), Fetched("new", ready("new")), state=state)
    assert states(state) == {"new": "Loading", "b": "Loaded"}
    assert steps(state) == [], "a still holds the place"
    state = after(Published(report(state), NOW), state=state)
    assert steps(state, NOW + GRACE) == [Unload("a-1")]
    state = after(Unloaded("a-1", NOW + GRACE), state=state)
    assert steps(state, NOW + GRACE) == [Load(planned("new"), ready("new"))]


def test_other_contents_under_an_old_name_replace_the_old() -> None:
    state = after(plan(planned("a", path="v2")), state=serving("a"))
    assert states(state) == {"a": "Loading"}
    assert steps(state) == [Fetch(planned("a", path="v2"))]
    state = after(Published(report(state), NOW), Fetched("a", ready("a", "v2")), state=state)
    assert steps(state, NOW + GRACE) == [Load(planned("a", path="v2"), ready("a", "v2")), Unload("a-1")]


def test_a_pinned_digest_changes_nothing_when_it_is_the_same_and_all_when_it_is_not() -> None:
    state = after(plan(planned("a", "sha256:a")), state=serving("a"))
    assert (states(state), steps(state)) == ({"a": "Loaded"}, [])
    state = after(plan(planned("a", "sha256:other")), state=state)
    assert (states(state), steps(state)) == ({"a": "Loading"}, [Fetch(planned("a", "sha256:other"))])


def test_what_nobody_knows_is_taken_out_after_a_while() -> None:
    state = after(plan(), *UP, seen("stray-1"))
    assert steps(state, NOW) == []
    state = after(Published(report(state), NOW), state=state)
    assert steps(state, NOW + GRACE) == [Unload("stray-1")]
    state = replace(after(plan(), EngineGone()), on_disk=frozenset({"old-1"}))
    state = after(Published(report(state), NOW), state=state)
    assert steps(state, NOW + GRACE) == [Remove("old-1")]


def test_a_draining_pod_begins_and_removes_nothing() -> None:
    state = after(DrainAsked(), plan(planned("new")), state=serving("a"))
    state = after(Published(report(state), NOW), state=state)
    assert steps(state, NOW + 1000) == []
    assert report(state).engine == "Draining"


def test_draining_ends_with_the_engine() -> None:
    state = after(DrainAsked(), EngineGone(), *UP, state=serving("a"))
    assert report(state).engine == "Ready"
    assert steps(state) == [Load(planned("a"), ready("a"))]


def test_a_proof_that_comes_too_late_counts_for_nothing() -> None:
    state = after(EngineGone(), *UP, Proven("a", "a-1"), state=serving("a"))
    assert states(state) == {"a": "Loading"}


def test_many_adapters_are_worked_on_a_few_at_a_time() -> None:
    names = [f"a{i}" for i in range(20)]
    state = after(plan(*map(planned, names)), *UP, room=50)
    assert [type(s) for s in steps(state)] == [Fetch] * 2
    state = after(*(Fetched(n, ready(n)) for n in names), state=state)
    assert [type(s) for s in steps(state)] == [Load] * 8


def test_downloads_that_do_not_end_hold_up_no_adapter_of_a_volume() -> None:
    """A source that trickles, or another pod that is waited for, would keep every other tenant's adapter away."""
    slow = Source(s3=S3Source(uri="s3://models/slow/"))
    remote = [PlannedAdapter(name=f"r{i}", source=slow) for i in range(3)]
    state = after(plan(*remote), *UP, Began(("adapter", "r0")), Began(("adapter", "r1")), room=50)
    assert steps(state) == []
    state = after(plan(*remote, *map(planned, ("a", "b", "c"))), state=state)
    assert steps(state) == [Fetch(planned("a")), Fetch(planned("b"))]
    assert steps(after(Ended(("adapter", "r0")), Began(("adapter", "a")), state=state)) == [
        Fetch(remote[0]),
        Fetch(planned("b")),
    ]


EVENTS = st.sampled_from(
    [
        plan(),
        plan(planned("a")),
        plan(planned("a"), planned("b")),
        plan(planned("b"), planned("c", "sha256:c")),
        Fetched("a", ready("a")),
        Fetched("b", ready("b")),
        Fetched("c", ready("c")),
        seen(),
        seen("a-1"),
        seen("a-1", "b-1"),
        seen("c-1", "x-9", busy=("a-1",)),
        EngineGone(),
        EngineUnwell(),
        BaseProven(),
        EnginePoisoned(),
        Proven("a", "a-1"),
        Proven("b", "b-1", Reason.ANSWERS_LIKE_BASE),
        failed("a"),
        failed("b", for_ever=True),
        Unloaded("a-1", NOW),
        Removed("a-1"),
        DrainAsked(),
    ]
)


@given(st.lists(EVENTS, max_size=30), st.floats(NOW, NOW + 1000))
@pytest.mark.lasting
def test_whatever_happens_the_rules_hold(events: list[Event], now: float) -> None:
    state = after(*events, room=2)
    assert state.proven.keys() <= state.engine.models
    told = steps(state, now)
    assert len({s.key for s in told}) == len(told), "nothing twice at a time"
    found = pod_report(state)
    if found is not None:
        state = after(Published(found, now), state=state)
        loaded = {a.engine_name for a in found.adapters.values() if a.state == "Loaded"}
        if loaded:
            assert state.engine.healthy
            assert loaded <= state.engine.models
        gone = {s.engine_name for s in told if isinstance(s, Unload | Remove)}
        assert not gone & loaded, "nothing is taken from under a published adapter"
        assert not {s.engine_name for s in told if isinstance(s, Remove)} & state.engine.models
    held = len(state.engine.models - {"base"})
    assert held + sum(isinstance(s, Load) for s in told) <= max(2, held)


@given(st.lists(EVENTS, max_size=30))
@pytest.mark.lasting
def test_an_agent_that_restarts_takes_nothing_back(events: list[Event]) -> None:
    before = after(*events)
    if not before.engine.healthy or before.plan is None:
        return
    fresh = replace(after(), on_disk=before.on_disk)
    restored = _restored(fresh, _document(before), before.on_disk)
    assert pod_report(restored) is None, "it says nothing before it has looked"
    looked = after(EngineSeen(before.engine.models, before.engine.busy), state=restored)
    lost = {n for n, f in before.failures.items() if f.retry_at != math.inf}
    was, now = report(before), report(looked)
    assert now.engine == was.engine
    for name, told in was.adapters.items():
        if name not in lost:
            assert now.adapters[name].state == told.state
