"""What a pod says fits an annotation, whatever it serves; and it is ready once others can know that."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.unit.agent.states import after, plan, planned
from tests.unit.agent.waiting import until
from tuneyard.agent import publishing
from tuneyard.agent.draining import Drain
from tuneyard.agent.front import Front
from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.publishing import Publisher
from tuneyard.agent.server import application
from tuneyard.api import names
from tuneyard.api.documents import PodReport, PoolPlan, Transfer
from tuneyard.api.reasons import Reason
from tuneyard.planning.adapterchecks import Tensor, violations
from tuneyard.planning.agentstate import (
    MESSAGE,
    BaseProven,
    Began,
    Ended,
    EngineSeen,
    Failed,
    Fetched,
    Fetching,
    Prepared,
    Proven,
    State,
)
from tuneyard.planning.basefacts import base_facts
from tuneyard.planning.podreport import REPORT_BYTES, as_text, fitting, pod_report
from tuneyard.systems.kube.client import ApiError

MOST = 256 << 10
"""What the API server takes of all annotations together."""
DIGEST = "sha256:" + "a" * 64


def serving(count: int, digest: str | None = None, length: int = 20) -> State:
    """A pod that serves that many adapters with names of that length, as PEFT writes them."""
    adapters = [planned(f"a{i:0{length - 1}}", digest) for i in range(count)]
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    engine_names = {a.name: names.engine_adapter_name(a.name, DIGEST) for a in adapters}
    state = State("10.0.0.1:8080", "base", 4096, plan=PoolPlan(pool="p", base_model="base", adapters=adapters))
    return after(
        *(Fetched(a.name, Prepared(a.source, DIGEST, engine_names[a.name], 16, modules, 1 << 24)) for a in adapters),
        EngineSeen(frozenset({"base", *engine_names.values()})),
        BaseProven(),
        *(Proven(*names) for names in engine_names.items()),
        state=state,
    )


def said(state: State) -> PodReport:
    found = pod_report(state)
    assert found is not None
    return found


def routes(report: PodReport) -> set[str | None]:
    """Engine names that gateways may send requests for."""
    return {a.engine_name for a in report.adapters.values() if a.state == "Loaded"}


def test_how_far_an_adapter_is_shows_while_it_comes() -> None:
    transfer = Transfer(done_bytes=1, total_bytes=4, bytes_per_second=2)
    coming = after(
        plan(planned("a")), EngineSeen(frozenset({"base"})), Began(("adapter", "a")), Fetching("a", transfer)
    )
    told = said(coming).adapters["a"]
    assert (told.state, told.reason, told.transfer) == ("Loading", Reason.FETCHING, transfer)
    over = after(Ended(("adapter", "a")), state=coming)
    assert said(over).adapters["a"].transfer is None


@pytest.mark.lasting
def test_it_says_whether_the_front_takes_tls_and_nothing_of_it_where_not() -> None:
    state = serving(1)
    assert said(replace(state, tls=True)).tls is True
    assert "tls" not in as_text(said(state))
    kept = fitting(said(replace(serving(1500), tls=True)), frozenset())
    assert kept.tls is True, "in a long report, too"


def test_a_report_that_fits_loses_nothing() -> None:
    report = said(serving(500))
    assert fitting(report, frozenset()) is report


def test_a_thousand_adapters_are_all_offered() -> None:
    report = said(serving(1000))
    assert len(as_text(report)) > MOST, "as it is, nobody would read it"
    reduced = fitting(report, frozenset())
    assert len(as_text(reduced)) <= REPORT_BYTES < MOST
    assert routes(reduced) == routes(report)
    assert all(a.digest == DIGEST for a in reduced.adapters.values()), "the operator pins by them"


@pytest.mark.parametrize(("count", "length"), [(2200, 20), (1100, 63)])
@pytest.mark.lasting
def test_as_many_as_the_rules_say_are_offered_once_they_are_pinned(count: int, length: int) -> None:
    report = said(serving(count, DIGEST, length))
    reduced = fitting(report, frozenset(report.adapters))
    assert len(as_text(reduced)) <= REPORT_BYTES
    assert routes(reduced) == routes(report)


@pytest.mark.lasting
def test_what_the_operator_does_not_know_yet_is_told_as_long_as_possible() -> None:
    report = said(serving(1000))
    new, *others = report.adapters
    reduced = fitting(report, frozenset(others))
    assert reduced.adapters[new] == report.adapters[new]


def test_a_failure_keeps_its_source_in_a_long_report() -> None:
    report = said(serving(1000))
    first = next(iter(report.adapters))
    told = report.adapters[first].model_copy(update={"state": "Failed"})
    report = report.model_copy(update={"adapters": {**report.adapters, first: told}})
    reduced = fitting(report, frozenset(report.adapters))
    assert reduced.adapters[first].source == told.source is not None
    assert {a.source for n, a in reduced.adapters.items() if n != first} == {None}


def test_what_does_not_fit_at_all_is_left_out_from_the_end_and_failures_first() -> None:
    state = serving(10)
    first, *_, last = said(state).adapters
    for name in (first, last):
        state = after(Failed(planned(name), Reason.LOAD_REFUSED, "no", 0.0), state=state)
    report = said(state)
    for most in range(0, len(as_text(report)), 50):
        reduced = fitting(report, frozenset(), most)
        kept = [n for n in report.adapters if n in reduced.adapters]
        assert len(as_text(reduced)) <= max(most, len(as_text(said(serving(0)))))
        if any(reduced.adapters[n].state == "Failed" for n in kept):
            assert routes(reduced) == routes(report)
        loaded = [n for n, a in report.adapters.items() if a.state == "Loaded"]
        assert [n for n in kept if n in loaded] == loaded[: len(routes(reduced))]


@pytest.mark.lasting
def test_a_hostile_adapter_cannot_silence_the_pod() -> None:
    """Names of tensors and modules are of any length; a report with them would be refused for ever."""
    long = "\u0001" * 100_000
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": [long] * 1000}
    found = violations(config, [Tensor(long, long, (1,) * 10_000)] * 100, base_facts({}, ()), 16)
    assert found
    for violation in found:
        assert len(violation.message) < 1000
    huge = after(Failed(planned("a" + "0" * 19), Reason.UNEXPECTED_TENSOR, long, 0.0), state=serving(10))
    assert len(str(said(huge).adapters["a" + "0" * 19].message)) == MESSAGE

    state = serving(900)
    for name in list(said(state).adapters)[100:]:
        state = after(Failed(planned(name), Reason.UNEXPECTED_TENSOR, long, 0.0), state=state)
    reduced = fitting(said(state), frozenset())
    assert len(as_text(reduced)) <= REPORT_BYTES
    assert routes(reduced) == routes(said(state))
    assert len(routes(reduced)) == 100


class Server:
    """An API server that takes annotations up to a size; other people's take some of it."""

    def __init__(self, status: int) -> None:
        self.room = MOST
        self.status = status
        self.written: list[PodReport] = []

    async def write(self, report: PodReport) -> None:
        if len(as_text(report)) > self.room:
            raise ApiError(self.status, "Invalid", "metadata.annotations: Too long")
        self.written.append(report)


@pytest.mark.lasting
@pytest.mark.parametrize("status", [413, 422])
async def test_a_refused_report_is_published_reduced_and_whole_again_later(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_LONGEST_DELAY", 0.01)
    monkeypatch.setattr(publishing, "_WHOLE_AGAIN", 0.1)
    server, knowledge = Server(status), Knowledge(serving(1000))
    server.room = 60 << 10
    publisher = Publisher(knowledge, server.write, lambda: 7.0)
    task = asyncio.create_task(publisher.run())
    whole = said(knowledge.state)
    publisher.offer(whole)
    await until(lambda: bool(server.written))
    reduced = server.written[0]
    assert reduced.engine == "Ready"
    assert 200 < len(routes(reduced)) < 1000
    await until(lambda: knowledge.state.published == reduced)
    left_out = routes(whole) - routes(reduced)
    assert left_out == knowledge.state.withdrawn.keys(), "who is not offered counts as not offered"
    server.room = MOST
    await until(lambda: routes(server.written[-1]) == routes(whole))
    assert knowledge.state.published == server.written[-1]
    assert not knowledge.state.withdrawn
    written = len(server.written)
    await asyncio.sleep(0.3)
    assert len(server.written) == written, "what was published whole is not published again"
    task.cancel()


async def test_a_pod_is_what_it_has_published() -> None:
    """The readiness probe reads /report: a pod whose report nobody can read must not replace another."""
    knowledge = Knowledge(after(plan()))
    knowledge.tell(EngineSeen(frozenset({"base"})))
    knowledge.tell(BaseProven())
    allowed = False

    async def write(_: PodReport) -> None:
        if not allowed:
            raise ApiError(403, "Forbidden", "no")

    publisher = Publisher(knowledge, write, lambda: 0.0)
    task = asyncio.create_task(publisher.run())
    app = application(knowledge, Drain(knowledge, Front(None), 1.0, lambda: 0.0))  # type: ignore[arg-type]
    async with TestClient(TestServer(app)) as client:
        publisher.offer(said(knowledge.state))
        assert said(knowledge.state).engine == "Ready"
        for _ in range(20):
            assert (await client.get("/report")).status == 503
        allowed = True
        await until(lambda: knowledge.state.published is not None)
        response = await client.get("/report")
        assert response.status == 200
        assert json.loads(await response.text()) == said(knowledge.state).to_dict()
    task.cancel()
