"""What a gateway counts as what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from tests.contract.envoy import model, revision
from tuneyard.api.analysis import Slo
from tuneyard.api.drill import Fault
from tuneyard.gateway.evidence import INTERVAL, SETTLING, Evidence, Limits, judge, judge_unnamed
from tuneyard.planning.evidence import UNNAMED, Objective, Position, Reading, Series, Tally, growth
from tuneyard.planning.routes import ModelRoutes, RevisionRoute
from tuneyard.systems.envoy.answers import Answer, Outcome

SLO = Slo(error_rate="1%", ttft="2s", itl="100ms", e2e="30s")
LIMITS = Limits.of(SLO)
OK, ERROR, LEFT = Outcome.OK, Outcome.ERROR, Outcome.CLIENT_LEFT
NAME = "default/md-support"


def answer(outcome: Outcome = OK, *, took: float = 900.0, revision: str = "v1", **more: Any) -> Answer:
    """A whole answer of what the revision is at first; with `ttft` it is a stream."""
    streamed, contents = more.pop("streamed", "ttft" in more), more.pop("contents", contents_of(revision))
    prompt_tokens = more.pop("prompt_tokens", 100)
    return Answer(NAME, revision, outcome, took, prompt_tokens, streamed=streamed, contents=contents, **more)


def contents_of(name: str) -> str:
    return revision(name, 0).contents


def other(name: str, weight: int = 0, **more: Any) -> RevisionRoute:
    """A revision of that name with other contents."""
    return replace(revision(name, weight, engine=f"{name}-replaced"), **more)


def routes(*revisions: str, slo: Slo | None = SLO, uid: str = "uid-1") -> ModelRoutes:
    return replace(model("support", *(revision(r, 0) for r in revisions or ("v1", "v2"))), slo=slo, uid=uid)


E, T, B, L = Objective.ERROR_RATE, Objective.TTFT, Objective.ITL, Objective.E2E


@pytest.mark.parametrize(
    ("given", "judged"),
    [
        # whole
        (answer(), {E: False, L: False}),
        (answer(took=30_000), {E: False, L: False}),
        (answer(took=30_001), {E: False, L: True}),
        (answer(ttft=2000, itl=100), {E: False, T: False, B: False, L: False}),
        (answer(ttft=2001, itl=101), {E: False, T: True, B: True, L: False}),
        (answer(ttft=300), {E: False, T: False, L: False}),
        # errors: also where they come soon, and where they come late
        (answer(ERROR, took=1), {E: True}),
        (answer(ERROR, took=60_000), {E: True}),
        # a stream that breaks
        (answer(ERROR, ttft=300, itl=200), {E: True, T: False, B: True}),
        (answer(ERROR, streamed=True), {E: True}),
        # whose client left: before anything is known, after, and when it was too late anyhow
        (answer(LEFT), {}),
        (answer(LEFT, streamed=True, took=1999), {}),
        (answer(LEFT, streamed=True, took=2001), {T: True}),
        (answer(LEFT, took=29_000), {}),
        (answer(LEFT, took=31_000), {L: True}),
        (answer(LEFT, ttft=300, itl=30, took=5000), {T: False, B: False}),
        (answer(LEFT, ttft=2500, took=31_000), {T: True, L: True}),
        # a client that sent nonsense, a gateway that refused
        (answer(Outcome.CLIENT_ERROR, took=60_000), {}),
        (answer(Outcome.REFUSED), {}),
        # no random sample
        (answer(chosen=True), {}),
        (answer(ERROR, chosen=True), {}),
        # had to wait for its adapter
        (answer(held=True, ttft=9000, itl=500, took=60_000), {E: False}),
        (answer(ERROR, held=True), {E: True}),
        (answer(LEFT, held=True, streamed=True, took=60_000), {}),
    ],
)
def test_what_is_judged_as_what(given: Answer, judged: dict[Objective, bool]) -> None:
    assert dict(judge(given, LIMITS)) == judged


REFUSED, GONE, UNJUDGED = Objective.CLIENT_ERRORS, Objective.CLIENTS_LEFT, Objective.UNJUDGED
GOOD = {UNJUDGED: False, REFUSED: False, GONE: False}


@pytest.mark.parametrize(
    ("given", "counted"),
    [
        (answer(), GOOD),
        (answer(ttft=9000, took=60_000), GOOD),
        (answer(Outcome.CLIENT_ERROR), {UNJUDGED: True, REFUSED: True, GONE: False}),
        (answer(LEFT), {UNJUDGED: True, REFUSED: False, GONE: True}),
        (answer(LEFT, ttft=300), {UNJUDGED: False, REFUSED: False, GONE: True}),
        (answer(LEFT, took=31_000), {UNJUDGED: False, REFUSED: False, GONE: True}),
        # an error is neither; and neither is what never reached a pod, or what is no random sample
        (answer(ERROR), {UNJUDGED: False}),
        (answer(Outcome.REFUSED), {}),
        (answer(LEFT, chosen=True), {}),
        (answer(Outcome.CLIENT_ERROR, chosen=True), {}),
        # one that has waited for its adapter blames nobody for it
        (answer(LEFT, held=True), {UNJUDGED: True, REFUSED: False}),
        (answer(Outcome.CLIENT_ERROR, held=True), {UNJUDGED: True, REFUSED: True}),
    ],
)
def test_what_is_counted_though_nobody_names_it(given: Answer, counted: dict[Objective, bool]) -> None:
    assert dict(judge_unnamed(given, LIMITS, judge(given, LIMITS))) == counted


@pytest.mark.parametrize(
    ("named", "given", "is_unjudged"),
    [
        ({"ttft": "2s"}, answer(ERROR), True),
        ({"ttft": "2s"}, answer(), True),
        ({"ttft": "2s"}, answer(ttft=300), False),
        ({"feedback": "5%"}, answer(), False),
        ({"feedback": "5%"}, answer(Outcome.CLIENT_ERROR), True),
    ],
)
def test_what_could_not_be_judged_is_told(named: dict[str, str], given: Answer, is_unjudged: bool) -> None:
    limits = Limits.of(Slo(**named))
    assert dict(judge_unnamed(given, limits, judge(given, limits)))[UNJUDGED] is is_unjudged


def test_refusals_and_leaving_clients_are_told_whatever_the_spec_names(gateway: Gateway) -> None:
    gateway.answers(answer(), answer(Outcome.CLIENT_ERROR), answer(Outcome.CLIENT_ERROR), answer(LEFT), answer())
    assert gateway.tallies(REFUSED) == {0: (5, 2, 2, 1)}
    assert gateway.tallies(GONE) == {0: (5, 1, 1, 0)}
    assert gateway.tallies(UNJUDGED) == {0: (5, 3, 3, 2)}
    assert gateway.tallies() == {0: (2, 0, 0, 0)}


@pytest.mark.parametrize("named", [{"error_rate": "1%"}, {"ttft": "2s"}, {"itl": "100ms"}, {"e2e": "30s"}])
def test_objectives_that_are_not_named_are_not_looked_at(named: dict[str, str]) -> None:
    found = judge(answer(ttft=300, itl=30), Limits.of(Slo(**named)))
    assert [objective for objective, _ in found] == [Objective({"error_rate": "errorRate"}.get(*named, *named))]


class Gateway:
    """One process's evidence, with a clock that is put forward by hand."""

    def __init__(self, process: str = "gateway-0-1") -> None:
        self.now, self.judging = 50.0, True
        self.wall = 1000.0
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.evidence = Evidence(
            "gateway-0", process, lambda: self.now, self._later, lambda: self.judging, wall=lambda: self.wall
        )
        self.evidence.routed("support", routes())

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, call))

    def forward(self, seconds: float) -> None:
        self.now += seconds
        due = [call for at, call in self.timers if at <= self.now]
        self.timers = [(at, call) for at, call in self.timers if at > self.now]
        for call in due:
            call()

    def answers(self, *answers: Answer) -> None:
        self.evidence.answered(answers)

    def tallies(self, objective: Objective = E, revision: str = "v1") -> dict[int, tuple[int, int, int, int]]:
        return self.evidence.report().deployments[NAME].counts.get(revision, {}).get(objective.value, {})

    @property
    def version(self) -> int:
        return self.evidence.report().version


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def test_answers_after_bad_ones_are_told_apart_by_revision_and_objective(gateway: Gateway) -> None:
    good, bad = answer(), answer(ERROR)
    gateway.answers(good, bad, bad, answer(revision="v2"), bad, good, good)
    gateway.answers(answer(revision="v2", outcome=ERROR))
    gateway.answers(answer(revision="v2"), bad)
    assert gateway.tallies() == {0: (7, 4, 3, 2)}
    assert gateway.tallies(revision="v2") == {0: (3, 1, 1, 0)}
    assert gateway.tallies(L) == {0: (3, 0, 0, 0)}


def test_what_is_bad_by_one_objective_begins_no_run_of_another(gateway: Gateway) -> None:
    gateway.answers(answer(ttft=9000), answer(ttft=9000))
    assert gateway.tallies(T) == {0: (2, 2, 1, 1)}
    assert gateway.tallies(E) == gateway.tallies(L) == {0: (2, 0, 0, 0)}


def test_what_is_not_judged_stands_between_no_two_answers(gateway: Gateway) -> None:
    gateway.answers(answer(ERROR), answer(LEFT), answer(Outcome.CLIENT_ERROR), answer(ERROR))
    assert gateway.tallies() == {0: (2, 2, 1, 1)}


def test_a_run_goes_on_through_prompts_of_every_length(gateway: Gateway) -> None:
    gateway.answers(answer(ERROR), answer(ERROR, prompt_tokens=5000), answer(prompt_tokens=257))
    assert gateway.tallies() == {0: (1, 1, 0, 0), 3: (1, 1, 1, 1), 1: (1, 0, 1, 0)}


def test_counts_begin_anew_with_another_object_and_with_other_objectives(gateway: Gateway) -> None:
    gateway.answers(answer())
    gateway.evidence.routed("support", routes())
    assert gateway.tallies() == {0: (1, 0, 0, 0)}
    gateway.evidence.routed("support", routes(uid="uid-2"))
    assert gateway.tallies() == {}
    gateway.answers(answer())
    stricter = Slo(error_rate="1%", e2e="1s")
    gateway.evidence.routed("support", routes(uid="uid-2", slo=stricter))
    assert gateway.tallies() == {}
    gateway.answers(answer(took=1500))
    told = gateway.evidence.report().deployments[NAME]
    assert (told.uid, told.slo, gateway.tallies(L)) == ("uid-2", stricter, {0: (1, 1, 0, 0)})


def test_what_is_not_routed_any_more_is_forgotten(gateway: Gateway) -> None:
    gateway.answers(answer(), answer(revision="v2"))
    gateway.evidence.routed("support", routes("v2", "v3"))
    gateway.answers(answer(), answer(revision="v3"))
    assert gateway.evidence.report().deployments[NAME].counts.keys() == {"v2", "v3"}
    gateway.evidence.routed("support", routes("v1", "v2", "v3"))
    assert gateway.tallies() == {}
    gateway.evidence.routed("support", routes(slo=None))
    assert not gateway.evidence.report().deployments
    gateway.answers(answer())
    gateway.evidence.routed("support", None)
    assert not gateway.evidence.report().deployments


def test_another_model_name_forgets_nothing(gateway: Gateway) -> None:
    gateway.answers(answer())
    gateway.evidence.routed("renamed", replace(routes(), model="renamed"))
    gateway.evidence.routed("support", None)
    assert gateway.tallies() == {0: (1, 0, 0, 0)}
    gateway.evidence.routed("renamed", None)
    assert not gateway.evidence.report().deployments


def test_there_is_a_version_a_second_at_most_and_none_without_news(gateway: Gateway) -> None:
    gateway.forward(INTERVAL)
    before = gateway.version
    gateway.answers(answer())
    assert gateway.version == before + 1
    for _ in range(5):
        gateway.forward(0.1)
        gateway.answers(answer())
    assert gateway.version == before + 1
    gateway.forward(0.5)
    assert gateway.version == before + 2
    gateway.forward(10)
    gateway.answers(answer(Outcome.REFUSED), answer(chosen=True))
    gateway.forward(10)
    assert gateway.version == before + 2
    assert gateway.tallies() == {0: (6, 0, 0, 0)}


def weighted(**weights: int) -> ModelRoutes:
    return replace(routes(), revisions=tuple(revision(r, weight) for r, weight in weights.items()))


def test_what_began_before_the_weights_in_force_is_not_counted_for_any_revision(gateway: Gateway) -> None:
    gateway.evidence.routed("support", weighted(v1=100, v2=0))
    gateway.wall = 2000.0
    gateway.evidence.routed("support", weighted(v1=75, v2=25))
    young = 2000.0 + SETTLING
    for began in (1999.0, young - 0.001):
        gateway.answers(answer(began=began), answer(ERROR, began=began, revision="v2"))
    assert gateway.tallies() == gateway.tallies(revision="v2") == {}
    gateway.answers(answer(ERROR, began=young), answer(began=young, revision="v2"), answer(began=young - 1))
    gateway.answers(answer(began=young + 1))
    assert gateway.tallies() == {0: (2, 1, 1, 0)}, "and what is not counted stands between no two answers"
    assert gateway.tallies(revision="v2") == {0: (1, 0, 0, 0)}


def test_only_other_weights_begin_a_cohort_and_what_was_counted_stays(gateway: Gateway) -> None:
    gateway.wall = 2000.0
    gateway.evidence.routed("support", weighted(v1=100))
    gateway.answers(answer(began=2001))
    gateway.wall = 3000.0
    gateway.evidence.routed("support", weighted(v1=100, v2=0))
    gateway.evidence.routed("support", replace(weighted(v1=100, v3=0), generation=9))
    gateway.answers(answer(began=2500))
    assert gateway.tallies() == {0: (2, 0, 0, 0)}
    gateway.evidence.routed("support", weighted(v1=50, v3=50))
    gateway.answers(answer(began=2500))
    assert gateway.tallies() == {0: (2, 0, 0, 0)}


def test_a_process_that_has_just_started_counts_all_and_so_do_other_objectives(gateway: Gateway) -> None:
    gateway.answers(answer(began=1))
    assert gateway.tallies() == {0: (1, 0, 0, 0)}
    gateway.evidence.routed("support", weighted(v1=50, v2=50))
    gateway.evidence.routed("support", replace(weighted(v1=50, v2=50), slo=Slo(error_rate="2%")))
    gateway.answers(answer(began=1))
    assert gateway.tallies() == {0: (1, 0, 0, 0)}


def test_a_late_answer_of_other_contents_is_not_counted_for_the_revision_that_has_its_name_now(
    gateway: Gateway,
) -> None:
    gateway.evidence.routed("support", weighted(v1=75, v2=25))
    late = 1000.0 + SETTLING
    gateway.answers(answer(ERROR, revision="v2", began=late))
    gateway.wall = 2000.0
    gateway.evidence.routed("support", replace(routes(), revisions=(revision("v1", 75), other("v2", 25))))
    mine, young = other("v2").contents, 2000.0 + SETTLING
    gateway.answers(answer(ERROR, revision="v2", began=young), answer(began=young - 1), answer(began=young))
    assert gateway.tallies(revision="v2") == {0: (1, 1, 0, 0)}, "what was counted stays: nothing is taken back"
    assert gateway.tallies() == {0: (1, 0, 0, 0)}, "and both are equally young"
    gateway.answers(answer(ERROR, revision="v2", began=young, contents=mine))
    assert gateway.tallies(revision="v2") == {0: (2, 2, 0, 0)}, "it goes on with no run of another one's"
    assert gateway.evidence.report().deployments[NAME].contents == {"v1": contents_of("v1"), "v2": mine}


@pytest.mark.parametrize(
    "differs",
    [
        {"pool": "other"},
        {"digest": "sha256:1"},
        {"adapter": "a", "base_digest": "sha256:1"},
        {"fault": Fault(revision="v1", errors=5)},
    ],
)
def test_contents_are_all_that_decides_an_answer(differs: dict[str, Any]) -> None:
    assert replace(revision("v1", 5), **differs).contents != contents_of("v1")
    assert replace(revision("v1", 7, ["10.0.0.1:8000"]), held=True).contents == contents_of("v1")


def test_feedback_on_other_contents_is_no_feedback_on_the_revision(gateway: Gateway) -> None:
    slo = Slo(feedback="5%")
    gateway.evidence.routed("support", replace(routes(slo=slo), revisions=(other("v1"),)))
    gateway.evidence.rated(answer(), True)
    gateway.evidence.rated(answer(contents=other("v1").contents), False)
    assert gateway.tallies(Objective.FEEDBACK) == {0: (1, 0, 0, 0)}


async def test_who_waits_is_answered_as_soon_as_there_is_something(gateway: Gateway) -> None:
    gateway.forward(INTERVAL)
    waiting = asyncio.create_task(gateway.evidence.report_after(gateway.version, 20))
    await asyncio.sleep(0)
    assert not waiting.done()
    gateway.answers(answer(ERROR))
    async with asyncio.timeout(1):
        assert (await waiting).deployments[NAME].counts["v1"]["errorRate"] == {0: (1, 1, 0, 0)}


def test_a_report_says_who_counts_and_for_how_long(gateway: Gateway) -> None:
    gateway.forward(12.5)
    gateway.judging = False
    report = gateway.evidence.report()
    assert (report.gateway, report.process, report.age_seconds) == ("gateway-0", "gateway-0-1", 12.5)
    assert not report.judging
    text = report.model_dump_json(by_alias=True, exclude_none=True)
    assert type(report).model_validate_json(text).deployments[NAME].slo == SLO


def test_it_is_what_the_judge_reads(gateway: Gateway) -> None:
    """Two processes, of which one restarts: nothing is counted twice, and only what nobody has read is lost."""
    other = Gateway("gateway-1-1")

    def reading(one: Gateway, process: str) -> Reading:
        counts = {
            Series(r, Objective(o), prompts): Tally(*tally)
            for r, objectives in one.evidence.report().deployments[NAME].counts.items()
            for o, tallies in objectives.items()
            for prompts, tally in tallies.items()
        }
        return Reading(process, one.now - one.evidence.report().age_seconds, counts)

    position, _ = growth(Position(), [reading(gateway, "a"), reading(other, "b")], 50.0)
    gateway.answers(answer(), answer(ERROR))
    other.answers(answer(revision="v2"))
    position, grown = growth(position, [reading(gateway, "a"), reading(other, "b")], 55.0)
    assert grown[Series("v1", E)] == Tally(2, 1, 0, 0)
    restarted = Gateway()
    restarted.now += 6
    restarted.evidence = Evidence("g", "c", lambda: restarted.now, restarted._later, lambda: True)
    restarted.evidence.routed("support", routes())
    restarted.answers(answer())
    _, grown = growth(position, [reading(restarted, "c"), reading(other, "b")], 57.0)
    assert grown[Series("v1", E)] == Tally(1, 0, 0, 0)
    assert Series("v2", E) not in grown


def test_objectives_are_called_as_in_the_spec() -> None:
    fields = {to_camel(name) if field.alias is None else field.alias for name, field in Slo.model_fields.items()}
    assert {objective.value for objective in set(Objective) - UNNAMED} == fields - {"slowShare"}
