"""What Prometheus reads of answers."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.envoy import model, revision
from tests.unit.gateway.test_evidence import answer
from tests.unit.gateway.turns import turns_beside
from tuneyard.gateway.answermetrics import AnswerMetrics
from tuneyard.systems.envoy.answers import Answer, Outcome

Key = tuple[str, tuple[tuple[str, str], ...]]


@pytest.fixture
def metrics() -> AnswerMetrics:
    found = AnswerMetrics()
    found.routed("support", model("support", revision("v1", 90), revision("v2", 10)))
    return found


async def samples(metrics: AnswerMetrics) -> dict[Key, float]:
    """The page, read as Prometheus does; of labels those beyond namespace and deployment."""
    return {
        (s.name, tuple(sorted((k, v) for k, v in s.labels.items() if k not in ("namespace", "deployment")))): s.value
        for family in text_string_to_metric_families(await metrics.page())
        for s in family.samples
    }


async def test_counts_and_histograms_are_what_prometheus_expects(metrics: AnswerMetrics) -> None:
    metrics.answered(
        [
            answer(took=100),
            answer(took=101, ttft=300, itl=30),
            answer(Outcome.ERROR, took=5),
            answer(Outcome.CLIENT_LEFT, took=9000, ttft=90_000),
            answer(took=400_000, revision="v2", chosen=True),
        ]
    )
    found = await samples(metrics)
    v1, v2 = ("revision", "v1"), ("revision", "v2")

    def bucket(name: str, edge: str, of: tuple[str, str]) -> float:
        return found[f"tuneyard_{name}_seconds_bucket", (("le", edge), of)]

    requests = {labels: n for (name, labels), n in found.items() if name == "tuneyard_requests_total"}
    assert requests == {
        (("outcome", "ok"), v1): 2,
        (("outcome", "error"), v1): 1,
        (("outcome", "client_left"), v1): 1,
        (("outcome", "ok"), v2): 1,
    }
    assert [bucket("request_duration", edge, v1) for edge in ("0.05", "0.1", "0.25", "+Inf")] == [0, 1, 2, 2]
    assert [bucket("request_duration", edge, v2) for edge in ("300.0", "+Inf")] == [0, 1]
    assert [bucket("time_to_first_token", edge, v1) for edge in ("0.25", "0.5", "60.0", "+Inf")] == [0, 1, 1, 2]
    assert found["tuneyard_time_to_first_token_seconds_sum", (v1,)] == pytest.approx(90.3)
    assert found["tuneyard_inter_token_latency_seconds_count", (v1,)] == 1
    assert ("tuneyard_inter_token_latency_seconds_count", (v2,)) not in found


async def test_every_line_says_whose_it_is(metrics: AnswerMetrics) -> None:
    metrics.answered([answer(ttft=1, itl=1)])
    page = [line for line in (await metrics.page()).splitlines() if not line.startswith("#")]
    lines = [line for line in page if not line.startswith("tuneyard_gateway_")]
    assert all('{namespace="default",deployment="md-support",revision="v1"' in line for line in lines), lines
    assert len(lines) == 1 + 15 + 14 + 13


async def test_what_is_not_routed_any_more_has_no_series(metrics: AnswerMetrics) -> None:
    metrics.answered([answer(), answer(revision="v2"), answer(revision="unknown")])
    metrics.routed("renamed", model("support", revision("v1", 100)))
    metrics.routed("support", None)
    metrics.answered([answer(), answer(revision="v2")])
    found = await samples(metrics)
    assert {n for (name, _), n in found.items() if name == "tuneyard_requests_total"} == {2}
    assert {dict(labels).get("revision", "v1") for _, labels in found} == {"v1"}
    metrics.routed("renamed", None)
    assert not await samples(metrics)


@pytest.mark.lasting
async def test_a_page_of_thousands_of_revisions_holds_nobody_up_for_long() -> None:
    metrics = AnswerMetrics()
    for number in range(1000):
        name = f"m{number}"
        metrics.routed(name, model(name, revision("v1", 90), revision("v2", 10)))
        for one in ("v1", "v2"):
            metrics.answered([Answer(f"default/md-{name}", one, Outcome.OK, 50.0, 9, streamed=True, ttft=9, itl=9)])
    page, turns = await turns_beside(metrics.page())
    assert page.count("\n") > 80_000
    assert turns > 100
