"""What users thought of answers, and whose it was."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import pytest

from tests.contract.envoy import revision
from tests.unit.gateway.test_evidence import NAME, answer, routes
from tuneyard.api.analysis import Slo
from tuneyard.gateway.evidence import Evidence
from tuneyard.gateway.feedback import KEPT_SECONDS, MAX_ID, MAX_TEXT, Feedback, Given, Taken, read
from tuneyard.systems.envoy.answers import Answer, Outcome


class Gateway:
    """One process that takes feedback, and a clock that is put forward by hand."""

    def __init__(self, *, kept: int = 100) -> None:
        self.now = 0.0
        self.rated: list[tuple[str, bool]] = []
        self.asked: list[Given] = []
        self.others = Taken.UNKNOWN
        self.feedback = Feedback(lambda: self.now, self._rated, self._ask, kept=kept)

    def _rated(self, answer: Answer, given: Given) -> None:
        self.rated.append((answer.revision, given.bad))

    async def _ask(self, given: Given) -> Taken:
        self.asked.append(given)
        return self.others

    def answers(self, *ids: str, **more: Any) -> None:
        self.feedback.answered([answer(request_id=id_, **more) for id_ in ids])

    def take(self, id_: str, score: float = 1.0) -> Taken:
        return self.feedback.take(Given(id_, score))


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_an_answer_is_rated_once(gateway: Gateway) -> None:
    gateway.answers("a", "b", revision="v2")
    assert [gateway.take("a", -0.1), gateway.take("a", 1), gateway.take("b", 0), gateway.take("c")] == [
        Taken.ACCEPTED,
        Taken.REPEATED,
        Taken.ACCEPTED,
        Taken.UNKNOWN,
    ]
    assert gateway.rated == [("v2", True), ("v2", False)]


def test_another_tenants_request_with_the_same_id_takes_nothing_away(gateway: Gateway) -> None:
    gateway.answers("a", tenant="acme", revision="v1")
    gateway.answers("a", tenant="beta", revision="v2")
    told = [gateway.feedback.take(Given("a", 1.0, tenant=t)) for t in ("acme", "beta", "beta", "gamma", "")]
    assert told == [Taken.ACCEPTED, Taken.ACCEPTED, Taken.REPEATED, Taken.UNKNOWN, Taken.UNKNOWN]
    assert gateway.rated == [("v1", False), ("v2", False)]


def test_a_tenant_rates_its_own_answers(gateway: Gateway) -> None:
    gateway.answers("a", "b", tenant="acme")
    gateway.answers("c")
    given = [("a", "beta"), ("a", ""), ("a", "acme"), ("b", "acme"), ("c", "acme"), ("c", "")]
    told = [gateway.feedback.take(Given(id_, 1.0, tenant=tenant)) for id_, tenant in given]
    refused, taken = Taken.UNKNOWN, Taken.ACCEPTED
    assert told == [refused, refused, taken, taken, refused, taken]


def test_it_is_known_for_an_hour_and_among_the_last_answers() -> None:
    gateway = Gateway(kept=2)
    gateway.answers("a", "b", "a", "c")
    assert [gateway.take(i) for i in "bac"] == [Taken.UNKNOWN, Taken.ACCEPTED, Taken.ACCEPTED]
    gateway.answers("d")
    gateway.now = KEPT_SECONDS
    assert gateway.take("d") is Taken.ACCEPTED
    gateway.answers("e")
    gateway.now += KEPT_SECONDS + 1
    assert gateway.take("e") is Taken.UNKNOWN


@pytest.mark.lasting
def test_an_answer_costs_the_same_however_many_are_kept() -> None:
    def seconds(kept: int) -> float:
        gateway = Gateway(kept=kept)
        gateway.answers(*(f"a{n}" for n in range(kept)))
        more = [answer(request_id=f"b{n}") for n in range(30_000)]
        begin = time.process_time()
        gateway.feedback.answered(more)
        return time.process_time() - begin

    assert seconds(50_000) < 4 * seconds(100)


def test_what_was_no_answer_of_a_revision_cannot_be_rated(gateway: Gateway) -> None:
    gateway.answers("refused", outcome=Outcome.REFUSED)
    gateway.answers("nonsense", outcome=Outcome.CLIENT_ERROR)
    gateway.answers("", "x" * (MAX_ID + 1))
    for id_ in ("refused", "nonsense", "", "x" * (MAX_ID + 1)):
        assert gateway.take(id_) is Taken.UNKNOWN
    for outcome in (Outcome.OK, Outcome.ERROR, Outcome.CLIENT_LEFT):
        gateway.answers(outcome.value, outcome=outcome)
        assert gateway.take(outcome.value) is Taken.ACCEPTED


@pytest.mark.lasting
async def test_others_are_asked_only_for_what_is_not_known_here(gateway: Gateway) -> None:
    gateway.answers("a")
    assert await gateway.feedback.take_anywhere(Given("a", 1)) is Taken.ACCEPTED
    assert await gateway.feedback.take_anywhere(Given("a", 1)) is Taken.REPEATED
    assert not gateway.asked
    gateway.others = Taken.ACCEPTED
    assert await gateway.feedback.take_anywhere(Given("b", -1)) is Taken.ACCEPTED
    assert gateway.asked == [Given("b", -1)]


@pytest.mark.lasting
async def test_who_is_quicker_than_envoy_is_waited_for(gateway: Gateway) -> None:
    taking = asyncio.create_task(gateway.feedback.take_anywhere(Given("soon", 1)))
    await asyncio.sleep(0)
    gateway.answers("soon")
    assert await taking is Taken.ACCEPTED
    assert not gateway.asked


def test_it_is_judged_where_the_objectives_say_so_and_the_revision_was_not_chosen() -> None:
    evidence = Evidence("g", "g-1", lambda: 0.0, lambda _, __: None, lambda: True)
    evidence.routed("support", routes(slo=Slo(feedback="5%")))
    for bad, chosen in ((True, False), (True, False), (False, False), (True, True)):
        evidence.rated(answer(chosen=chosen), bad)
    counts = evidence.report().deployments[NAME].counts
    assert counts == {"v1": {"feedback": {0: (3, 2, 2, 1)}}}
    other = replace(routes(), revisions=(revision("v1", 60), revision("v2", 40)), slo=Slo(feedback="5%"))
    evidence.routed("support", other)
    evidence.rated(answer(began=1), True)
    counts = evidence.report().deployments[NAME].counts
    assert counts == {"v1": {"feedback": {0: (4, 3, 2, 1)}}}, "whenever the answer began"
    evidence.routed("support", replace(routes(slo=Slo(error_rate="1%"))))
    evidence.rated(answer(), True)
    assert evidence.report().deployments[NAME].counts == {}


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 20_000, "not valid JSON"),
        (b"[]", "JSON object"),
        ({"score": 1}, "request_id"),
        ({"request_id": "", "score": 1}, "request_id"),
        ({"request_id": 7, "score": 1}, "request_id"),
        ({"request_id": "a"}, "score"),
        ({"request_id": "a", "score": True}, "score"),
        ({"request_id": "a", "score": "1"}, "score"),
        ({"request_id": "a", "score": 1.01}, "score"),
        (b'{"request_id": "a", "score": NaN}', "score"),
        (b'{"request_id": "a", "score": -Infinity}', "score"),
        (b'{"request_id": "a", "score": %s}' % (b"9" * 400), "score"),
        ({"request_id": "a", "score": 1, "text": 7}, "text"),
        ({"request_id": "a", "score": 1, "text": "x" * (MAX_TEXT + 1)}, "text"),
        ({"request_id": "a", "score": 1, "text": "ü" * (MAX_TEXT // 2 + 1)}, "text"),
    ],
)
def test_what_cannot_be_taken_says_why(body: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        read(body if isinstance(body, bytes) else json.dumps(body).encode())


def test_what_can() -> None:
    assert read(b'{"request_id": "a", "score": -1, "text": "rude", "more": []}') == Given("a", -1.0, "rude")
    assert read(b'{"request_id": "a", "score": 0}').bad is False
