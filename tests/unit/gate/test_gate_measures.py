"""Numbers of a report, and that it fits where it is written."""

from __future__ import annotations

import json

import pytest

from tuneyard.api.gatereports import MESSAGE_BYTES, BenchmarkNumbers, GateReport, Histogram, Sample
from tuneyard.gate.asking import Answer
from tuneyard.gate.main import fitting
from tuneyard.gate.measures import histogram, percentile, side, times


@pytest.mark.parametrize(("percent", "wanted"), [(50, 10), (95, 19), (99, 20), (1, 1)])
def test_percentiles_are_times_that_were_seen(percent: int, wanted: float) -> None:
    assert percentile([float(n) for n in range(1, 21)], percent) == wanted


def test_a_histogram_has_the_same_edges_whatever_it_holds() -> None:
    assert histogram([100.0]) == Histogram(first=27, counts=[1])
    assert 2 ** (26 / 4) < 100 <= 2 ** (27 / 4)
    assert histogram([0.1, 1.0, 2.0, 2.0, 4.0]) == Histogram(first=0, counts=[2, 0, 0, 0, 2, 0, 0, 0, 1])
    assert times([]) is times([None]) is None


def test_answers_that_failed_count_as_errors_and_in_no_time() -> None:
    whole = Answer(tokens=10, ttft=100.0, itl=10.0, e2e=200.0)
    found = side([whole, whole, Answer(error="status 500", e2e=9000.0)])
    assert (found.requests, found.errors, found.tokens_per_second) == (3, 1, 50)
    assert found.e2e and (found.e2e.p50, found.e2e.p99) == (200, 200)
    assert side([Answer(error="x")]).tokens_per_second is None


def test_a_report_fits_into_a_termination_message_and_loses_samples_first() -> None:
    spread = [Answer(tokens=9, ttft=1.3**n, itl=1.2**n, e2e=1.4**n) for n in range(60)]
    numbers = BenchmarkNumbers(candidate=side(spread), stable=side(spread))
    report = GateReport(benchmark=numbers, samples=[Sample(prompt="ä" * 160, answer="\u2028" * 160)] * 6)
    text = fitting(report)
    assert len(text.encode()) <= MESSAGE_BYTES
    read = GateReport.model_validate_json(text)
    assert read.benchmark == numbers
    assert 0 < len(read.samples) < 6
    assert json.loads(text)["benchmark"]["candidate"]["e2e"]["p99"]
