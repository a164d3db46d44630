"""Good and bad answers at a deployment's own thresholds, as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.unit.gateway.test_evidence import ERROR, SLO, answer, routes
from tests.unit.gateway.turns import turns_beside
from tuneyard.gateway.evidence import Evidence
from tuneyard.gateway.slometrics import SLO_ANSWERS, slo_page

Key = tuple[str, str, str]


def counting(**routed: object) -> Evidence:
    """What a gateway counts of a deployment; all requests began long after its weights."""
    evidence = Evidence("g", "g-1", lambda: 0.0, lambda _seconds, _call: None, lambda: True, wall=lambda: -1e9)
    evidence.routed("support", routes(**routed))  # type: ignore[arg-type]
    return evidence


async def samples(evidence: Evidence) -> dict[Key, float]:
    """By revision, objective and verdict."""
    found = {}
    for family in text_string_to_metric_families(await slo_page(evidence.report())):
        for s in family.samples:
            assert (s.name, s.labels["namespace"], s.labels["deployment"]) == (SLO_ANSWERS, "default", "md-support")
            found[s.labels["revision"], s.labels["objective"], s.labels["verdict"]] = s.value
    return found


async def test_they_are_exact_at_thresholds_that_no_histogram_has() -> None:
    evidence = counting(slo=SLO.model_copy(update={"ttft": "1700ms"}))
    evidence.answered([answer(ttft=1700, prompt_tokens=9), answer(ttft=1701, prompt_tokens=9000), answer(ERROR)])
    found = await samples(evidence)
    assert found["v1", "ttft", "good"] == found["v1", "ttft", "bad"] == 1
    assert (found["v1", "errorRate", "good"], found["v1", "errorRate", "bad"]) == (2, 1)
    assert (found["v1", "e2e", "good"], found["v1", "e2e", "bad"]) == (2, 0), "a share needs both"
    assert {revision for revision, _, _ in found} == {"v1"}


async def test_other_objectives_begin_anew_and_without_any_there_is_nothing() -> None:
    evidence = counting()
    evidence.answered([answer()] * 3)
    evidence.routed("support", routes(slo=SLO.model_copy(update={"e2e": "1s"})))
    evidence.answered([answer()])
    assert (await samples(evidence))["v1", "e2e", "good"] == 1
    evidence.routed("support", routes(slo=None))
    assert await samples(evidence) == {}


async def test_a_page_of_thousands_gives_others_their_turn() -> None:
    evidence = counting()
    evidence.answered([answer()])
    report = evidence.report()
    (one,) = report.deployments.values()
    report = report.model_copy(update={"deployments": {f"default/m{n}": one for n in range(2000)}})
    page, turns = await turns_beside(slo_page(report))
    assert page.count("\n") == 2 + 2000 * 4
    assert turns >= 40
