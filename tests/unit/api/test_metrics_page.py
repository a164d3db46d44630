"""docs/reference/metrics.md names every metric that a process of Tuneyard registers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tuneyard.gateway.answermetrics import FEEDBACK, KINDS, REQUESTS
from tuneyard.gateway.feedbackexport import FeedbackMetrics
from tuneyard.gateway.metrics import Metrics as GatewayMetrics
from tuneyard.gateway.mirrormetrics import MirrorMetrics
from tuneyard.gateway.slometrics import SLO_ANSWERS
from tuneyard.runtime.metrics import Metrics as OperatorMetrics

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "metrics.md"
LITERAL = re.compile(r'"(tuneyard_[a-z_]+)"')
NO_METRICS = frozenset({"tuneyard_namespace"})
"""Keys of Envoy's metadata."""


def registered() -> set[str]:
    """As Prometheus sees them; of histograms without `_bucket`."""
    operator, gateway = OperatorMetrics(), GatewayMetrics()
    operator.drifts(list)
    FeedbackMetrics(gateway.registry)
    MirrorMetrics(gateway.registry)
    found = {REQUESTS, FEEDBACK, SLO_ANSWERS, *(kind.name for kind in KINDS)}
    for registry in (operator.registry, gateway.registry):
        assert isinstance(registry, CollectorRegistry)
        for family in registry.collect():
            found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return found


NAMES = sorted(registered())


def documented() -> set[str]:
    return set(re.findall(r"`(tuneyard_[a-z_]+)", PAGE.read_text()))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_on_the_page(name: str) -> None:
    assert name in documented()


def test_the_page_names_no_other() -> None:
    assert documented() <= set(NAMES)


def test_no_source_names_a_metric_that_is_not_looked_at_here() -> None:
    sources = (ROOT / "operator").rglob("*.py")
    told = {name for source in sources for name in LITERAL.findall(source.read_text())} - NO_METRICS
    assert told, "the sources are there"
    prefixes = {"tuneyard_gateway_feedback"}
    assert {name for name in told - prefixes if name not in NAMES and f"{name}_total" not in NAMES} == set()
