"""The queries of the dashboard for cost on series as Prometheus reads them: what `tuneyard cost` would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import gobuild
from cluster.progress import Progress
from monitoring.dashboards.cost import COST
from tests.contract.test_alert_rules import complaints
from tuneyard.planning.cost import ApiPrice, Weights
from tuneyard.planning.hostedcost import price_of_tokens
from tuneyard.planning.usage import Tokens

pytestmark = pytest.mark.slow

POD_HOUR, PODS = 0.8, 2
HOSTED_SERIES = '{currency="USD", deployment="three", namespace="team", revision="api"}'
API = ApiPrice(name="an API", prompt=0.3, completion=1.2)
CHOSEN = {
    "namespace": "team",
    "currency": "USD",
    "pod_hour": str(POD_HOUR),
    "api_prompt": "0.3",
    "api_completion": "1.2",
}
MINUTE = {"one": Tokens(0, 600, 300, 100), "two": Tokens(0, 600, 0, 300)}
"""By deployment, each with an adapter of its own; the second has no series of cached tokens."""


HOSTED, PRICES = Tokens(0, 900, 600, 200), {"prompt": 2.0, "cached": 0.5, "completion": 8.0}
"""What `three` has asked an API in a minute, and what a million of them cost."""


def series() -> list[dict[str, str]]:
    found = {
        f'tuneyard_pool_ready_replicas{{namespace="team",base_model="b",pool="b",pod="o-{n}"}}': PODS for n in (0, 1)
    }
    lines = [{"series": name, "values": f"{pods}x1500"} for name, pods in found.items()]
    for deployment, tokens in MINUTE.items():
        labels = f'namespace="team",deployment="{deployment}",adapter="a-{deployment}",base="b"'
        for kind, number in (("prompt", tokens.prompt), ("cached", tokens.cached), ("completion", tokens.completion)):
            if number:
                name = f'tuneyard_usage_tokens_total{{{labels},kind="{kind}"}}'
                lines.append({"series": name, "values": f"0+{number}x1500"})
    labels = 'namespace="team",deployment="three",revision="api"'
    for kind, cost in PRICES.items():
        priced = f'tuneyard_external_price{{{labels},currency="USD",kind="{kind}"'
        # two replicas of the operator tell the same
        lines += [{"series": f'{priced},pod="o-{n}"}}', "values": f"{cost}x1500"} for n in (0, 1)]
        used = f'tuneyard_usage_tokens_total{{{labels},adapter="",base="",kind="{kind}"}}'
        lines.append({"series": used, "values": f"0+{getattr(HOSTED, kind)}x1500"})
    return lines


def query(title: str, number: int = 0) -> str:
    (panel,) = (panel for row in COST.rows for panel in row.panels if panel.title == title)
    found = panel.queries[number].expr
    for name, value in CHOSEN.items():
        found = found.replace(f"${name}", value)
    return found


def is_(expr: str, expected: dict[str, float]) -> list[dict[str, Any]]:
    """That the query finds these labels and no others, at these values."""
    near = " or ".join(f"(abs(({expr}) - {value!r}) < {value / 1e6!r}) * 0 + 1" for value in expected.values())
    samples = [{"labels": labels, "value": 1} for labels in expected]
    return [
        {"expr": near, "eval_time": "1490m", "exp_samples": samples},
        {"expr": f"count({expr})", "eval_time": "1490m", "exp_samples": [{"labels": "{}", "value": len(expected)}]},
    ]


@pytest.fixture(scope="module")
def promtool() -> Path:
    return gobuild.ensure(["promtool"], Progress())["promtool"]


def test_what_is_drawn_is_what_the_command_would_say(promtool: Path, tmp_path: Path) -> None:
    weights, hour = Weights(), POD_HOUR * PODS
    work = {name: weights.work(tokens) for name, tokens in MINUTE.items()}
    cost = {name: hour * one / sum(work.values()) for name, one in work.items()}
    million = {name: (t.prompt + t.completion) * 60 / 1e6 for name, t in MINUTE.items()}
    paid = price_of_tokens(HOSTED, PRICES["prompt"], PRICES["cached"], PRICES["completion"]) * 60
    used = (HOSTED.prompt + HOSTED.completion) * 60 / 1e6
    api = (sum(API.cost(tokens) for tokens in MINUTE.values()) + API.cost(HOSTED)) * 60
    now = (sum(million.values()) + used) * 1e6

    def by(label: str, prefix: str, values: dict[str, float]) -> dict[str, float]:
        found = {name: f'{label}="{prefix}{name}"' for name in values}
        return {"{" + ", ".join(sorted([one, 'namespace="team"'])) + "}": values[name] for name, one in found.items()}

    per_million = {name: cost[name] / million[name] for name in cost}
    pay, even = "An hour: shared pools, or a pool for each fine-tune", "Break-even: tokens an hour"
    asked = [
        *is_(query("By deployment"), by("deployment", "", {**per_million, "three": paid / used})),
        *is_(query("By adapter"), by("adapter", "a-", per_million)),
        *is_(query("An hour by deployment"), by("deployment", "", {**cost, "three": paid})),
        *is_(query("Hosted APIs: an hour by revision"), {HOSTED_SERIES: paid}),
        *is_(query(pay), {"{}": hour}),
        *is_(query(pay, 1), {"{}": POD_HOUR * len(MINUTE)}),
        *is_(query(even), {"{}": now}),
        *is_(query(even, 1), {"{}": now * hour / api}),
        *is_(query("The same tokens at the API", 1), {"{}": api}),
        *is_(query("Pool hours of the last day"), {'{namespace="team", pool="b"}': 24.0 * PODS}),
    ]
    test = {"name": "cost", "interval": "1m", "input_series": series(), "promql_expr_test": asked}
    assert not complaints(promtool, tmp_path, [test])
