"""What a gateway makes of its Envoy's load reports."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from tuneyard.api.documents import EngineLoad
from tuneyard.api.gatereports import GateRun
from tuneyard.gateway.demand import SMOOTHING, Demand
from tuneyard.systems.envoy.answers import Answer, Outcome
from tuneyard.systems.envoy.loads import Load

V1, V2, OTHER = "team/chat/v1/0001", "team/chat/v2/0002", "team/other/v1/0003"
OTHERS = Answer("team/chat", "v1", Outcome.OK, 1.0, 1)


class Told:
    """A gateway's demand, with a clock in seconds that is put forward by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.routed: dict[str, Collection[str]] = {"team/chat": {"v1", "v2"}, "team/other": {"v1"}}
        self.demand = Demand("gateway-0", lambda: self.routed)
        self.demand.begin(self.now)

    def after(self, seconds: float, **loads: tuple[int, int]) -> None:
        """So long after the report before, Envoy tells (begun, under way)."""
        self.now += seconds
        clusters = {"v1": V1, "v2": V2, "other": OTHER}
        self.demand.reported(self.now, {clusters[name]: Load(*load) for name, load in loads.items()})

    @property
    def version(self) -> int:
        return self.demand.report().version

    def idle(self, deployment: str = "team/chat") -> float:
        return self.demand.report().deployments[deployment].idle_seconds

    def requests(self, deployment: str = "team/chat") -> dict[str, int]:
        return {n: r.requests for n, r in self.demand.report().deployments[deployment].revisions.items()}

    def in_flight(self, revision: str = "v1", deployment: str = "team/chat") -> float:
        return self.demand.report().deployments[deployment].revisions[revision].in_flight


@pytest.fixture
def told() -> Told:
    return Told()


def test_requests_add_up_by_revision(told: Told) -> None:
    told.after(1, v1=(3, 0), v2=(1, 1))
    told.after(1, v1=(2, 0), other=(7, 0))
    told.after(1)
    assert told.requests() == {"v1": 5, "v2": 1}
    assert told.requests("team/other") == {"v1": 7}


def test_a_revision_that_moved_to_other_pods_is_counted_as_one(told: Told) -> None:
    told.demand.reported(1001, {V1: Load(2, 1), "team/chat/v1/9999": Load(3, 4)})
    told.demand.reported(2000, {V1: Load(0, 1), "team/chat/v1/9999": Load(0, 4)})
    assert (told.requests(), told.in_flight()) == ({"v1": 5}, 5.0)


def test_what_is_no_revision_or_not_routed_is_not_counted(told: Told) -> None:
    told.demand.reported(1001, {"xds": Load(1, 2), "team/gone/v1/0001": Load(1, 1)})
    assert told.demand.report().deployments.keys() == {"team/chat", "team/other"}
    assert told.requests() == {}


def test_names_with_dots_are_found_again(told: Told) -> None:
    told.routed = {"team/chat.v2": {"r1.0"}}
    told.demand.reported(1001, {"team/chat~v2/r1~0/0001": Load(1, 0)})
    assert told.requests("team/chat.v2") == {"r1.0": 1}


def test_idle_time_runs_from_the_last_use_to_the_newest_report(told: Told) -> None:
    told.after(1)
    assert told.idle() == 1
    told.after(1, v1=(1, 0))
    assert (told.idle(), told.idle("team/other")) == (0, 2)
    told.after(30)
    assert (told.idle(), told.idle("team/other")) == (30, 32)
    told.now += 1000
    assert told.idle() == 30, "nobody has looked since"


def test_a_request_under_way_keeps_a_deployment_used_until_it_has_ended(told: Told) -> None:
    told.after(1, v1=(1, 1))
    told.after(100, v1=(0, 1))
    assert told.idle() == 0
    told.after(1)
    assert told.idle() == 0, "it ended within this second"
    told.after(1)
    assert told.idle() == 1


def test_when_envoy_begins_to_report_again_everything_was_just_used(told: Told) -> None:
    told.after(60, v1=(1, 5))
    told.now += 60
    told.demand.begin(told.now)
    assert (told.idle(), told.idle("team/other")) == (0, 0)
    assert told.requests() == {}, "that it was just used is no request that anybody has seen"
    told.after(2, v1=(0, 4))
    assert (told.idle(), told.requests()) == (0, {"v1": 0}), "a request from before is still under way"
    told.after(1)
    told.after(2)
    assert told.idle() == 2


def test_what_is_routed_for_the_first_time_was_just_used_and_what_is_not_any_more_is_forgotten(told: Told) -> None:
    told.after(50, v1=(1, 0), v2=(1, 1))
    told.routed = {"team/chat": {"v1"}, "team/new": {"v1"}}
    told.after(1, v2=(0, 1))
    assert told.idle("team/new") == 0
    assert told.demand.report().deployments.keys() == {"team/chat", "team/new"}
    assert told.requests() == {"v1": 1, "v2": 1}, "v2 has a request under way"
    told.after(1)
    told.after(1)
    assert told.requests() == {"v1": 1}


def test_requests_under_way_are_smoothed(told: Told) -> None:
    told.after(1, v1=(20, 20))
    first = told.in_flight()
    assert 0 < first < 20 * 1 / SMOOTHING
    for _ in range(8):
        told.after(1, v1=(10, 20))
    assert 18 < told.in_flight() < 20
    for _ in range(20):
        told.after(1)
    assert told.in_flight() == 0


def test_one_late_report_weighs_as_much_as_several(told: Told) -> None:
    told.after(4, v1=(1, 10))
    late = told.in_flight()
    other = Told()
    for _ in range(4):
        other.after(1, v1=(1, 10))
    assert late == other.in_flight()


def test_a_clock_that_stands_changes_nothing(told: Told) -> None:
    told.after(1, v1=(1, 10))
    before = told.in_flight()
    told.after(0, v1=(0, 10))
    assert (told.in_flight(), told.idle()) == (before, 0)


def test_only_something_new_makes_a_version(told: Told) -> None:
    told.after(1)
    before = told.version
    told.after(1)
    assert (told.version, told.idle()) == (before, 2)
    told.after(1, v1=(1, 0))
    assert told.version == before + 1


def test_the_first_that_waits_is_told_at_once_and_is_a_use(told: Told) -> None:
    told.after(60)
    before = told.version
    told.demand.waiting("team/chat", "v1", 1)
    assert told.version == before + 1
    assert (told.idle(), told.demand.report().deployments["team/chat"].waiting) == (0, 1)
    told.demand.waiting("team/chat", "v1", 2)
    assert told.version == before + 1, "a second one waits for the next report"
    told.after(60)
    assert told.demand.report().deployments["team/chat"].waiting == 2
    assert told.idle() == 0
    told.demand.waiting("team/chat", "v1", 0)
    told.after(1)
    assert (told.demand.report().deployments["team/chat"].waiting, told.idle()) == (0, 1)


def test_who_waits_is_told_of_the_revision_that_is_waited_for(told: Told) -> None:
    told.after(1, v1=(2, 1))
    told.demand.waiting("team/chat", "v1", 5)
    told.demand.waiting("team/chat", "v2", 1)
    told.after(1, v1=(0, 1))

    def waiting() -> dict[str, int]:
        return {n: r.waiting for n, r in told.demand.report().deployments["team/chat"].revisions.items()}

    assert waiting() == {"v1": 5, "v2": 1}
    assert told.demand.report().deployments["team/chat"].waiting == 6
    assert told.requests() == {"v1": 2, "v2": 0}, "nothing was sent to v2"
    told.demand.waiting("team/chat", "v2", 0)
    told.after(1)
    assert waiting() == {"v1": 5}


def test_who_waits_is_told_before_anything_is_routed() -> None:
    demand = Demand("gateway-0", dict)
    demand.waiting("team/chat", "v1", 3)
    assert demand.report().deployments["team/chat"].waiting == 3
    demand.begin(5.0)
    demand.reported(6.0, {})
    assert demand.report().deployments["team/chat"].waiting == 3


async def test_who_asks_again_is_answered_by_the_next_version(told: Told) -> None:
    known = told.version
    assert (await told.demand.report_after(known - 1, 60)).version == known
    assert (await told.demand.report_after(known, 0)).version == known
    asking = asyncio.create_task(told.demand.report_after(known, 60))
    await asyncio.sleep(0)
    told.after(1, v1=(1, 1))
    assert (await asking).deployments["team/chat"].revisions["v1"].requests == 1


def test_how_far_a_gate_is_is_told_with_the_next_report(told: Told) -> None:
    def run() -> GateRun | None:
        return told.demand.report().deployments["team/chat"].gate

    def ended(job: str, done: int) -> None:
        asked = GateRun(job=job, done=done, total=200)
        told.demand.answered([Answer("team/chat", "v2", Outcome.OK, 1.0, 1, run=asked), OTHERS])

    told.after(1)
    assert run() is None
    ended("a", 12)
    ended("a", 11)
    before = told.version
    told.after(1)
    assert run() == GateRun(job="a", done=12, total=200), "they end in another order than they began"
    assert told.version == before + 1
    told.after(1)
    assert told.version == before + 1
    ended("b", 0)
    told.after(1)
    assert run() == GateRun(job="b", done=0, total=200)
    told.routed = {"team/other": {"v1"}}
    told.after(1)
    assert "team/chat" not in told.demand.report().deployments
    told.routed = {"team/chat": {"v1"}}
    told.after(1)
    assert run() is None, "of a deployment that comes again nothing is known"


def first_tokens(told: Told, revision: str = "v1") -> dict[int, int]:
    return told.demand.report().deployments["team/chat"].revisions[revision].ttft


def test_first_tokens_of_the_last_minute_are_told_in_classes(told: Told) -> None:
    told.after(1, v1=(3, 1))
    stream = OTHERS._replace(streamed=True, ttft=120.0)
    told.demand.answered([stream, stream._replace(ttft=900.0), stream, stream._replace(held=True), OTHERS])
    told.demand.answered([stream._replace(revision="v9"), stream._replace(deployment="team/gone")])
    told.after(1, v1=(0, 1))
    assert first_tokens(told) == {150: 2, 1000: 1}
    told.after(30, v1=(0, 1))
    told.demand.answered([stream])
    told.after(20, v1=(0, 1))
    assert first_tokens(told) == {150: 3, 1000: 1}
    before = told.version
    told.after(15, v1=(0, 1))
    assert first_tokens(told) == {150: 1}
    assert told.version != before


def test_what_engines_have_to_do_is_told_with_it(told: Told) -> None:
    told.after(1, v1=(3, 1))
    before, loads = told.version, {"team/pod-0": EngineLoad(waiting=3)}
    told.demand.reading(lambda: loads)
    told.demand.read()
    assert told.version != before
    assert told.demand.report().engines == loads
