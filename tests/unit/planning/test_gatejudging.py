"""A gate's numbers against its limits, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from tuneyard.api.gatereports import BenchmarkNumbers, EvaluationNumbers, GateReport, Side, Times
from tuneyard.api.gates import Gate
from tuneyard.planning.gatejudging import UnmeasuredError, checks_of, limits, number, sentence


def times(p: float) -> Times:
    return Times(p50=p / 2, p95=p, p99=p * 2)


def benchmark(candidate: dict[str, Any], stable: dict[str, Any]) -> GateReport:
    sides = [Side(**{"requests": 200, "ttft": times(100), **fields}) for fields in (candidate, stable)]
    return GateReport(benchmark=BenchmarkNumbers(candidate=sides[0], stable=sides[1]))


def speed(**limits: Any) -> Gate:
    return Gate.from_dict({"name": "speed", "benchmark": limits})


@pytest.mark.parametrize(
    ("gate", "candidate", "stable", "passed", "words"),
    [
        (
            speed(max={"ttftP95": "1.10x"}),
            {"ttft": times(110)},
            {},
            True,
            "errorRate 0 % is within 1 %, ttftP95 110 ms is within 1.10x of stable's 100 ms",
        ),
        (
            speed(max={"ttftP95": "1.10x"}),
            {"ttft": times(111)},
            {},
            False,
            "ttftP95 111 ms is over 1.10x of stable's 100 ms",
        ),
        (speed(max={"ttftP99": "150ms"}), {}, {}, False, "ttftP99 200 ms is over 150 ms"),
        (speed(max={"e2eP50": "2s"}), {"e2e": times(5000)}, {}, False, "e2eP50 2500 ms is over 2000 ms"),
        (
            speed(min={"tokensPerSecond": "0.9x"}),
            {"tokens_per_second": 44.0},
            {"tokens_per_second": 50.0},
            False,
            "tokensPerSecond 44 tokens/s is under 0.9x of stable's 50 tokens/s",
        ),
        (
            speed(min={"tokensPerSecond": "40"}),
            {"tokens_per_second": 44.0},
            {},
            True,
            "errorRate 0 % is within 1 %, tokensPerSecond 44 tokens/s reaches 40 tokens/s",
        ),
        (speed(max={"ttftP95": "1s"}), {"errors": 3}, {"errors": 1}, False, "errorRate 1.5 % is over 1 %"),
        (speed(max={"errorRate": "5%"}), {"errors": 10}, {"errors": 10}, True, "errorRate 5 % is within 5 %"),
    ],
)
def test_limits(gate: Gate, candidate: dict[str, Any], stable: dict[str, Any], passed: bool, words: str) -> None:
    checks = checks_of(gate, benchmark(candidate, stable))
    assert all(c.passed for c in checks) is passed
    assert sentence(gate, checks) == f"gate speed: {words}"


@pytest.mark.parametrize(
    ("gate", "report", "words"),
    [
        (speed(max={"ttftP95": "1x"}), GateReport(cannot_run="no judge"), "no judge"),
        (speed(max={"ttftP95": "1x"}), GateReport(), "its report holds no numbers"),
        (
            speed(max={"itlP95": "1x"}),
            benchmark({}, {}),
            "itlP95 is limited and no answer of the candidate had such a time",
        ),
        (
            speed(max={"itlP95": "1x"}),
            benchmark({"itl": times(9)}, {}),
            "itlP95 is limited to 1x of stable's, and no answer of stable had one",
        ),
        (
            speed(min={"tokensPerSecond": "5"}),
            benchmark({}, {}),
            "no answer of the candidate said how many tokens it has",
        ),
        (
            speed(max={"ttftP95": "1x"}),
            benchmark({"errors": 100}, {"errors": 50}),
            "50% of the candidate's requests failed, and 25% of stable's: the gateway or the engines are unwell",
        ),
        (speed(max={"ttftP95": "1x"}), benchmark({"requests": 0}, {}), "no request was made"),
    ],
)
def test_what_was_not_measured_is_neither_kept_nor_missed(gate: Gate, report: GateReport, words: str) -> None:
    with pytest.raises(UnmeasuredError) as error:
        checks_of(gate, report)
    assert str(error.value) == words


def test_scores_have_to_be_reached() -> None:
    gate = Gate.from_dict(
        {"name": "q", "evaluation": {"prompts": {"configMap": "evals"}, "min": {"exactMatch": 0.8, "judge": 0.5}}}
    )
    report = GateReport(evaluation=EvaluationNumbers(prompts=9, scores={"exactMatch": 0.8, "judge": 0.4999}))
    checks = checks_of(gate, report)
    assert [(c.metric, c.passed) for c in checks] == [("exactMatch", True), ("judge", False)]
    assert sentence(gate, checks) == "gate q: judge 0.4999 is under 0.5"
    with pytest.raises(UnmeasuredError, match=r"min\.judge is limited and no prompt of evals has a check judge"):
        checks_of(gate, GateReport(evaluation=EvaluationNumbers(prompts=9, scores={"exactMatch": 0.8})))


def test_before_there_are_numbers_there_are_limits() -> None:
    gate = speed(max={"ttftP95": "1.10x"}, min={"tokensPerSecond": "50"})
    assert limits(gate) == ("ttftP95 at most 1.10x", "errorRate at most 1%", "tokensPerSecond at least 50")
    scores = {"name": "q", "evaluation": {"prompts": {"configMap": "evals"}, "min": {"exactMatch": 0.8}}}
    assert limits(Gate.from_dict(scores)) == ("exactMatch at least 0.8",)


@pytest.mark.parametrize(
    ("value", "unit", "words"), [(1234.5, "ms", "1234 ms"), (0.83333, "", "0.8333"), (12.0, "%", "12 %")]
)
def test_numbers_for_people(value: float, unit: str, words: str) -> None:
    assert number(value, unit) == words
