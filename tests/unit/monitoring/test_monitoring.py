"""Dashboards, alerts and the reference of metrics, against what the processes export."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from monitoring import outside
from monitoring.alerts import ALERTS
from monitoring.dashboards import DASHBOARDS
from monitoring.grafana import TOKENS, Dashboard, Panel, rendered
from monitoring.rules import rules
from tests.unit.monitoring import exported
from tuneyard.cli.autoscalers import SERIES

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = (ROOT / "docs" / "reference" / "metrics.md").read_text()
OPERATORS = {"and", "or", "unless", "offset", "bool", "inf", "nan", "group_left"}
PREFIXES = {"tuneyard_gateway_feedback", "tuneyard_gateway_usage"}
"""Of families that are made from them."""
PROCESS = {"process_resident_memory_bytes", "process_cpu_seconds_total"}


def series_in(query: str) -> set[str]:
    """Names of the series that a query reads."""
    for nothing in (
        r'"[^"]*"',
        r"\{[^}]*\}",
        r"\[[^\]]*\]",
        r"\$\w+",
        r"\b(by|on|without|ignoring)\s*\([^)]*\)",
    ):
        query = re.sub(nothing, "", query)
    words = re.findall(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\b(?!\s*\()", query)
    return {word for word in words if word.lower() not in OPERATORS and not re.fullmatch(r"\d+[smhd]", word)}


KNOWN = exported.names() | outside.ENVOY | outside.ENVOY_TOKENS | outside.VLLM | outside.DCGM | outside.PROMETHEUS
QUERIES = [(f"dashboard {d.name}", query) for d in DASHBOARDS for query in d.queries]
RULES = [
    (f"rule {rule.get('alert') or rule['record']}", rule["expr"])
    for group in rules()["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for group in rules()["groups"] for rule in group["rules"] if "record" in rule}


def test_names_are_found_in_queries() -> None:
    query = 'sum by (pod, le) (rate(a_total{b="c d",e=~".*"}[5m])) or on (f) vector(1) * vllm:g > 2 unless h offset 5m'
    assert series_in(query) == {"a_total", "vllm:g", "h"}


@pytest.mark.parametrize(("where", "query"), [*QUERIES, *RULES])
def test_every_series_that_is_asked_for_exists(where: str, query: str) -> None:
    asked = series_in(query)
    assert asked or "vector(" in query, where
    assert asked <= KNOWN | RECORDED | PROCESS, where


def test_nothing_of_other_programs_is_listed_that_nobody_looks_at() -> None:
    asked = set[str]().union(*(series_in(query) for _, query in [*QUERIES, *RULES]))
    assert asked >= outside.ENVOY | outside.ENVOY_TOKENS | outside.VLLM | outside.DCGM
    cost = (ROOT / "docs" / "howto" / "what-tokens-cost.md").read_text()
    # autoscalers of one's own ask for them (`tuneyard export hpa|keda`)
    scalers = set(SERIES.values())
    assert all(record in asked | scalers or record in cost for record in RECORDED)


def test_what_mission_and_users_ask_for_can_be_drawn_per_deployment_and_revision() -> None:
    (deployment,) = (d for d in DASHBOARDS if d.name == "deployment")
    asked = set[str]().union(*(series_in(query) for query in deployment.queries))
    assert asked >= {
        "tuneyard_requests_total",
        "tuneyard_time_to_first_token_seconds_bucket",
        "tuneyard_inter_token_latency_seconds_bucket",
        "tuneyard_request_duration_seconds_bucket",
        "tuneyard_feedback_total",
        "tuneyard_drifting",
        "tuneyard_revision_weight",
        "tuneyard_rollout_phase",
        "tuneyard_rollout_verdict_timestamp_seconds",
    }


def test_the_reference_names_every_metric_and_no_other() -> None:
    told = set(re.findall(r"`(tuneyard_\w+)", REFERENCE))
    exist = {re.sub("_(bucket|sum|count)$", "", n) for n in exported.names() if n.startswith("tuneyard_")}
    assert told == exist


def test_no_source_names_a_metric_that_is_not_looked_at_here() -> None:
    literals = (re.findall(r'"(tuneyard_[a-z_]+)"', p.read_text()) for p in (ROOT / "operator").rglob("*.py"))
    told = set[str]().union(*literals) - {"tuneyard_namespace"} - PREFIXES
    exist = {re.sub("_(bucket|sum|count|total)$", "", name) for name in exported.names()}
    assert {re.sub("_total$", "", name) for name in told} <= exist


def test_the_reference_names_the_labels_of_statuses() -> None:
    from tuneyard.planning.statusseries import FAMILIES

    for family in FAMILIES:
        assert f"`{family.name}{{{','.join(family.labels)}}}`" in REFERENCE, family.name


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_dashboards_fit_on_a_page_and_panels_do_not_overlap(dashboard: Dashboard) -> None:
    found = rendered(dashboard)
    json.dumps(found)
    assert Counter(p["id"] for p in found["panels"]).most_common(1)[0][1] == 1
    taken: Counter[tuple[int, int]] = Counter()
    for panel in found["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        taken.update(
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        )
    assert max(taken.values()) == 1


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_variables_that_queries_use_are_there(dashboard: Dashboard) -> None:
    told = [text for row in dashboard.rows for p in row.panels for q in p.queries for text in (q.expr, q.legend)]
    used = {name for text in told for name in re.findall(r"\$([a-z_]\w*)", text)} - {"__rate_interval"}
    assert used == {variable.name for variable in dashboard.variables}
    titles = [panel.title for row in dashboard.rows for panel in row.panels]
    assert all(titles)


PANELS = [pytest.param(p, id=f"{d.name} {p.title}") for d in DASHBOARDS for row in d.rows for p in row.panels]
UNITS = {"short", "reqps", "ops", "s", "bytes", "percent", "percentunit", "dateTimeAsIso", TOKENS}


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_can_be_read(panel: Panel) -> None:
    """One unit to an axis, a name to a line, an end to what has one."""
    assert panel.unit in UNITS
    if panel.shape in ("timeseries", "state-timeline"):
        assert all(query.legend for query in panel.queries)
    rates = {bool(re.search(r"\brate\(", query.expr)) for query in panel.queries}
    assert len(rates) == 1, "rates and numbers share an axis"
    if panel.unit == "percent" and panel.shape == "timeseries":
        assert panel.top == 100
    if rates == {True} and "/ sum" not in panel.queries[0].expr and "quantile" not in panel.queries[0].expr:
        assert panel.unit != "short" or re.search(r"\* 3600|\$pod_hour", panel.queries[0].expr), (
            "so much a second of what?"
        )


def test_alerts_have_one_name_each_and_a_runbook_that_their_link_finds() -> None:
    page = (ROOT / "docs" / "reference" / "alerts.md").read_text()
    assert len({a.name for a in ALERTS}) == len(ALERTS)
    for group in rules()["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["annotations"]["runbook_url"] == f"docs/reference/alerts.md#{rule['alert'].lower()}"
                assert f"\n## {rule['alert']}\n" in page


def test_what_a_runbook_refers_to_exists() -> None:
    for alert in ALERTS:
        for path in re.findall(r"docs/[\w/-]+\.md", alert.means + alert.look + alert.do):
            assert (ROOT / path).is_file(), (alert.name, path)


def test_commands_in_runbooks_are_those_of_the_command_line() -> None:
    reference = (ROOT / "docs" / "reference" / "cli.md").read_text()
    for alert in ALERTS:
        for words in re.findall(r"`(tuneyard [a-z]+(?: (?:status|promote|retry))?)\b", alert.look + alert.do):
            assert f"## {words}\n" in reference, (alert.name, words)
