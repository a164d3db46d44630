"""What Prometheus reads of a gateway's routes."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from tests.contract.envoy import model, revision
from tuneyard.gateway.routemetrics import RouteMetrics

SPLIT = model("support", revision("v1", 60, ["a:1", "b:1"]), revision("v2", 10), unserved=30)


def samples(metrics: RouteMetrics) -> dict[tuple[str, str, str], float]:
    found = [
        ((s.name.removeprefix("tuneyard_gateway_"), s.labels["deployment"], s.labels.get("revision", "")), s.value)
        for family in text_string_to_metric_families("".join(metrics.page()))
        for s in family.samples
    ]
    assert len(found) == len(dict(found)), "a series comes once"
    return dict(found)


def test_weights_and_pods_are_those_of_the_routes() -> None:
    metrics = RouteMetrics()
    metrics.routed("support", SPLIT)
    of = "md-support"
    assert samples(metrics) == {
        ("revision_weight", of, "v1"): 60,
        ("revision_weight", of, "v2"): 10,
        ("revision_endpoints", of, "v1"): 2,
        ("revision_endpoints", of, "v2"): 0,
        ("unserved_percent", of, ""): 30,
    }
    metrics.routed("support", model("support", revision("v1", 100)))
    assert ("revision_weight", of, "v2") not in samples(metrics)
    metrics.routed("support", None)
    assert samples(metrics) == {}


def test_a_deployment_under_two_names_has_its_series_once() -> None:
    metrics = RouteMetrics()
    metrics.routed("support", SPLIT)
    metrics.routed("renamed", replace(SPLIT, model="renamed"))
    assert len(samples(metrics)) == 5
    metrics.routed("support", None)
    assert len(samples(metrics)) == 5
    metrics.routed("renamed", None)
    assert samples(metrics) == {}


def test_a_name_that_goes_to_another_deployment_leaves_nothing_behind() -> None:
    metrics = RouteMetrics()
    metrics.routed("support", SPLIT)
    metrics.routed("support", replace(SPLIT, deployment="other"))
    assert {deployment for _, deployment, _ in samples(metrics)} == {"other"}
