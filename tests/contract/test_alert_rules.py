"""The alerts on series as Prometheus reads them (promtool), and every query of the dashboards on a real Prometheus."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster import gobuild
from cluster.progress import Progress
from monitoring import outside
from monitoring.alerts import ALERTS
from monitoring.dashboards import DASHBOARDS
from monitoring.rules import rules_file
from tests.contract.operator_process import eventually
from tests.contract.promserver import PrometheusServer
from tests.unit.monitoring.exported import pages

slow = pytest.mark.slow
"""Prometheus has to be built."""

CHAT = 'namespace="team",deployment="chat"'
PASSES = 'tuneyard_reconcile_passes_total{kind="LoRAAdapter"'
VERDICT = f'tuneyard_rollout_verdict_timestamp_seconds{{{CHAT},revision="v2",reason="AnalysisFailed"'
ENVOY = 'envoy_http_rbac_denied{envoy_http_conn_manager_prefix="gateway",pod="g-0"}'
UNREADABLE = 'tuneyard_gateway_usage_unreadable_total{pod="g-0"}'


class Case(NamedTuple):
    """Series for which an alert fires, and for which it does not; values as promtool writes them, one a minute."""

    fires: dict[str, str]
    quiet: dict[str, str]
    at: str
    labels: dict[str, str]
    """Beyond the alert's name and severity."""


def ratio(errors: str, fine: str) -> dict[str, str]:
    return {
        f'tuneyard_requests_total{{{CHAT},revision="v1",pod="g-0",outcome="error"}}': errors,
        f'tuneyard_requests_total{{{CHAT},revision="v1",pod="g-1",outcome="ok"}}': fine,
    }


def one(series: str, fires: str, quiet: str, at: str, **labels: str) -> Case:
    return Case({series: fires}, {series: quiet}, at, labels)


def lua(script: str) -> str:
    return f'envoy_http_lua_{script}_errors{{envoy_http_conn_manager_prefix="gateway",pod="g-0"}}'


def fetches(outcome: str) -> str:
    return f'envoy_http_jwt_authn_jwks_fetch_{outcome}{{envoy_http_conn_manager_prefix="gateway",pod="g-0"}}'


def answered(counted: str) -> dict[str, str]:
    """A gateway that answers a request a minute and counts this many of them, by minute."""
    labels = f'{CHAT},revision="v1",pod="g-0"'
    return {
        f'tuneyard_requests_total{{{labels},outcome="ok"}}': "0+1x90",
        f'tuneyard_usage_requests_total{{{labels},tenant="",source="engine"}}': counted,
        UNREADABLE: "0x90",
    }


TEAM = {"namespace": "team", "deployment": "chat"}
CASES = {
    # 20 % of the answers fail, the budget is 1 %
    "TuneyardErrorBudgetBurnsFast": Case(ratio("0+2x90", "0+8x90"), ratio("0+1x90", "0+99x90"), "75m", TEAM),
    # 8 %: too slow for the other
    "TuneyardErrorBudgetBurns": Case(ratio("0+8x400", "0+92x400"), ratio("0+5x400", "0+95x400"), "380m", TEAM),
    "TuneyardRequestsUnserved": Case(
        {f'tuneyard_gateway_unserved_percent{{{CHAT},pod="g-{n}"}}': "0x5 40x10" for n in "01"},
        # pods that come up take a while
        {f'tuneyard_gateway_unserved_percent{{{CHAT},pod="g-0"}}': "100x3 0x20"},
        "12m",
        TEAM,
    ),
    "TuneyardPoolAtItsLimit": Case(
        {
            f'tuneyard_pool_scaling_limited{{namespace="team",pool="p",limit="maxReplicas",pod="o-{n}"}}': "1x60"
            for n in "01"
        },
        {'tuneyard_pool_scaling_limited{namespace="team",pool="p",limit="maxReplicas",pod="o-0"}': "1x20 _x60"},
        "45m",
        {"namespace": "team", "pool": "p", "limit": "maxReplicas"},
    ),
    # what never happened has no series: the first one counts too
    "TuneyardHeldRequestsRefused": one(
        'tuneyard_gateway_holds_total{outcome="timeout",pod="g-0"}', "_x20 1x5", "7x30", "22m", outcome="timeout"
    ),
    "TuneyardMirrorFailing": Case(
        {
            f'tuneyard_mirror_copies_total{{{CHAT},revision="v2",outcome="unreachable"}}': "0+9x60",
            f'tuneyard_mirror_copies_total{{{CHAT},revision="v2",outcome="answered"}}': "0+1x60",
        },
        {
            f'tuneyard_mirror_copies_total{{{CHAT},revision="v2",outcome="timeout"}}': "0+1x60",
            f'tuneyard_mirror_copies_total{{{CHAT},revision="v2",outcome="answered"}}': "0+9x60",
        },
        "40m",
        {**TEAM, "revision": "v2"},
    ),
    "TuneyardFeedbackNotWritten": Case(
        {'tuneyard_gateway_feedback_failing_seconds{pod="g-0"}': "0+60x30"},
        {
            'tuneyard_gateway_feedback_failing_seconds{pod="g-0"}': "0x5 60+60x3 0x30",
            'tuneyard_gateway_feedback_dropped_total{pod="g-0"}': "3x30",
        },
        "20m",
        {"pod": "g-0"},
    ),
    # the tests' clock begins at 0
    "TuneyardCandidateRejected": Case(
        {f'{VERDICT},pod="o-{n}"}}': "_x9 600x60" for n in "01"},
        {f"{VERDICT}}}": "-5000x60"},
        "15m",
        {**TEAM, "revision": "v2", "reason": "AnalysisFailed"},
    ),
    "TuneyardRolloutStalled": Case(
        {f'tuneyard_rollout_phase{{{CHAT},phase="Inconclusive"}}': "1x90"},
        {
            f'tuneyard_rollout_phase{{{CHAT},phase="Inconclusive"}}': "1x40 _x60",
            f'tuneyard_rollout_phase{{{CHAT},phase="Progressing"}}': "_x41 1x60",
        },
        "70m",
        TEAM,
    ),
    "TuneyardMetricsUnavailable": one(
        f'tuneyard_rollout_analysis{{{CHAT},outcome="MetricsUnavailable"}}', "1x30", "1x5 _x30", "20m", **TEAM
    ),
    "TuneyardGateCannotRun": one(
        f'tuneyard_rollout_gate{{{CHAT},gate="bench",state="CannotRun"}}',
        "1x30",
        "1x5 _x30",
        "20m",
        **TEAM,
        gate="bench",
    ),
    "TuneyardDrifting": one(f"tuneyard_drifting{{{CHAT}}}", "1x5", "0x5", "3m", **TEAM),
    "TuneyardAdapterNotLoaded": Case(
        {'tuneyard_stalled{kind="LoRAAdapter",namespace="team",name="v2",reason="LoadRefused"}': "1x20"},
        {'tuneyard_stalled{kind="LoRAAdapter",namespace="team",name="v2",reason="SourceUnreachable"}': "1x3 _x20"},
        "10m",
        {"namespace": "team", "name": "v2", "reason": "LoadRefused"},
    ),
    "TuneyardStalled": Case(
        {'tuneyard_stalled{kind="BaseModel",namespace="team",name="b",reason="Unschedulable"}': "1x20"},
        {'tuneyard_stalled{kind="LoRAAdapter",namespace="team",name="b",reason="Unschedulable"}': "1x20"},
        "15m",
        {"kind": "BaseModel", "namespace": "team", "name": "b", "reason": "Unschedulable"},
    ),
    "TuneyardPoolPodsMissing": Case(
        {
            'tuneyard_pool_replicas{namespace="team",base_model="b",pool="b"}': "3x60",
            'tuneyard_pool_ready_replicas{namespace="team",base_model="b",pool="b"}': "2x60",
        },
        {
            'tuneyard_pool_replicas{namespace="team",base_model="b",pool="b"}': "3x60",
            'tuneyard_pool_ready_replicas{namespace="team",base_model="b",pool="b"}': "0x20 3x60",
        },
        "45m",
        {"namespace": "team", "pool": "b"},
    ),
    "TuneyardNoGateway": Case({}, {'tuneyard_gateway_envoy_connected{pod="g-0"}': "1x20"}, "5m", {}),
    "TuneyardGatewayWithoutEnvoy": one(
        'tuneyard_gateway_envoy_connected{pod="g-0"}', "1x3 0x20", "1x20", "10m", pod="g-0"
    ),
    "TuneyardPushRefused": one('tuneyard_gateway_refused_pushes{pod="g-0"}', "0x3 1x5", "0x9", "5m", pod="g-0"),
    "TuneyardScriptFailed": one(ENVOY, "_x20 1x5", "1x60", "22m", pod="g-0"),
    "TuneyardScriptStumbled": one(lua("answer"), "_x20 1x5", "1x60", "22m", pod="g-0", script="answer"),
    "TuneyardGatewayWatchStale": one(
        'tuneyard_gateway_watch_age_seconds{pod="g-0",resource="pods"}',
        "0+60x9",
        "45x9",
        "6m",
        pod="g-0",
        resource="pods",
    ),
    "TuneyardCertificateExpires": one(
        'tuneyard_gateway_certificate_expires_seconds{pod="g-0"}', "1209500x40", "7776000x40", "20m", pod="g-0"
    ),
    "TuneyardSnapshotFailing": one(
        'tuneyard_gateway_snapshot_failures_total{pod="g-0"}', "0+1x60", "0x3 1x60", "40m", pod="g-0"
    ),
    "TuneyardUsageStandsStill": Case(answered("0+1x20 20x70"), answered("0+1x90"), "60m", {"pod": "g-0"}),
    "TuneyardUsageUncounted": one(
        'tuneyard_gateway_usage_uncounted_files_total{pod="g-0"}', "0x5 1x30", "3x40", "12m", pod="g-0"
    ),
    "TuneyardUsageNotWritten": Case(
        {'tuneyard_gateway_usage_dropped_files_total{pod="g-0"}': "0x5 1x30"},
        {
            'tuneyard_gateway_usage_failing_seconds{pod="g-0"}': "0x5 60+60x3 0x30",
            'tuneyard_gateway_usage_dropped_files_total{pod="g-0"}': "3x30",
        },
        "18m",
        {"pod": "g-0"},
    ),
    # an Envoy that was killed leaves one
    "TuneyardUsageUnreadable": one(UNREADABLE, "0x9 5x60", "0x9 1x60", "30m", pod="g-0"),
    "TuneyardTenantProblems": Case(
        {f'tuneyard_gateway_tenant_problems{{problem="NoPolicy",pod="g-{n}"}}': "0x3 1x20" for n in "01"},
        # a Secret that comes before its ConfigMap
        {'tuneyard_gateway_tenant_problems{problem="NoPolicy",pod="g-0"}': "0x3 1x3 0x20"},
        "15m",
        {"problem": "NoPolicy"},
    ),
    "TuneyardSigningKeysNotFetched": Case(
        {fetches("failed"): "0x2 60+60x60"},
        # one that fails now and then
        {fetches("failed"): "0x2 60+60x60", fetches("success"): "0 1+1x60"},
        "30m",
        {"pod": "g-0"},
    ),
    # a replica that waits for the lease is no leader
    "TuneyardNoLeader": one('tuneyard_leader{pod="o-0"}', "1x3 0x9", "1x20", "8m"),
    "TuneyardWatchStale": one(
        'tuneyard_watch_age_seconds{pod="o-0",resource="pods"}', "0+60x9", "45x9", "6m", pod="o-0", resource="pods"
    ),
    "TuneyardPassesFail": one(f'{PASSES},outcome="refused"}}', "0+1x60", "0x3 2x60", "40m", kind="LoRAAdapter"),
    "TuneyardQueueLate": one('tuneyard_queue_oldest_seconds{pod="o-0"}', "0+60x20", "0x5 90x3 0x20", "15m"),
}
SEVERITY = {alert.name: alert.severity for alert in ALERTS}


@pytest.fixture(scope="module")
def promtool() -> Path:
    return gobuild.ensure(["promtool"], Progress())["promtool"]


def complaints(promtool: Path, folder: Path, tests: list[dict[str, Any]]) -> str:
    """What promtool says of the rules with these tests, empty where all pass."""
    (folder / "rules.yaml").write_text(rules_file())
    file = folder / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def firing(name: str, series: dict[str, str], at: str, labels: dict[str, str] | None) -> dict[str, Any]:
    """That the alert fires with these labels then, or with None does not."""
    all_ = {"alertname": name, "alertstate": "firing", "severity": SEVERITY[name], **(labels or {})}
    shown = ", ".join(f'{key}="{value}"' for key, value in sorted(all_.items()))
    expected = [] if labels is None else [{"labels": f"ALERTS{{{shown}}}", "value": 1}]
    return {
        "name": f"{name} {'is quiet' if labels is None else 'fires'}",
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'ALERTS{{alertname="{name}",alertstate="firing"}}',
                "eval_time": at,
                "exp_samples": expected,
            }
        ],
    }


def test_every_alert_is_tried() -> None:
    assert set(CASES) == set(SEVERITY)


@slow
@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_when_it_should_and_only_then(promtool: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    tests = [firing(name, case.fires, case.at, case.labels), firing(name, case.quiet, case.at, None)]
    assert not complaints(promtool, tmp_path, tests)


@slow
def test_more_that_stands_still_or_does_not(promtool: Path, tmp_path: Path) -> None:
    """Where nothing is counted, where the first request has just been, where nobody asks; a script of either kind."""
    still, stumbled = "TuneyardUsageStandsStill", "TuneyardScriptStumbled"
    elsewhere = {series: values for series, values in answered("0x90").items() if series != UNREADABLE}
    begun = {series: "_x50 1x40" if "requests" in series else values for series, values in answered("").items()}
    idle = dict.fromkeys(answered(""), "7x90")
    never = {series: values for series, values in answered("").items() if "usage_requests" not in series}
    refused = {lua("rewrite"): "_x20 1x5", ENVOY: "_x20 1x5"}
    tests = [
        *(firing(still, series, "60m", None) for series in (elsewhere, begun, idle)),
        firing(still, never, "60m", {"pod": "g-0"}),
        firing(still, {'tuneyard_gateway_usage_stopped_seconds{pod="g-0"}': "0x5 0+60x20"}, "20m", {"pod": "g-0"}),
        firing(stumbled, refused, "22m", None),
        firing(stumbled, {lua("rewrite"): "_x20 1x5"}, "22m", {"pod": "g-0", "script": "rewrite"}),
        firing(stumbled, {lua("mirror"): "0x20 1x5"}, "22m", {"pod": "g-0", "script": "mirror"}),
        firing(stumbled, {lua("mirror"): "0x20 1x5", ENVOY: "_x20 1x5"}, "22m", {"pod": "g-0", "script": "mirror"}),
    ]
    assert not complaints(promtool, tmp_path, tests)


@slow
def test_a_wrong_expectation_is_noticed(promtool: Path, tmp_path: Path) -> None:
    case = CASES["TuneyardDrifting"]
    assert "TuneyardDrifting" in complaints(promtool, tmp_path, [firing("TuneyardDrifting", case.fires, case.at, None)])


@slow
def test_tokens_and_their_work_are_recorded_by_deployment(promtool: Path, tmp_path: Path) -> None:
    """Of two gateways, two revisions and a base; those from the cache are a tenth of the work of others."""

    def series(kind: str, **labels: str) -> str:
        told = {"namespace": "team", "deployment": "chat", "base": "tiny", "instance": "a", "kind": kind, **labels}
        return f"tuneyard_usage_tokens_total{{{','.join(f'{k}={json.dumps(v)}' for k, v in told.items())}}}"

    given = {
        series("prompt"): "0+600x120",  # ten a second
        series("cached"): "0+300x120",
        series("completion"): "0+60x120",
        series("prompt", instance="b", revision="v2"): "0+600x120",
        series("completion", instance="b", revision="v2"): "0+60x120",
        series("prompt", deployment="plain", base="large"): "0+120x120",
    }
    chat, plain = 'namespace="team", deployment="chat"', 'namespace="team", deployment="plain"'
    tokens, work = "tuneyard:tokens:rate1h", "tuneyard:work:rate1h"
    wanted: dict[str, dict[str, float]] = {
        tokens: {
            f'{tokens}{{{chat}, kind="prompt"}}': 20,
            f'{tokens}{{{chat}, kind="cached"}}': 5,
            f'{tokens}{{{chat}, kind="completion"}}': 2,
            f'{tokens}{{{plain}, kind="prompt"}}': 2,
        },
        work: {
            f'{work}{{{chat}, base_model="tiny"}}': 15 + 5 * 0.1 + 2 * 4,
            f'{work}{{{plain}, base_model="large"}}': 2,
        },
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in given.items()],
        "promql_expr_test": [
            {
                "expr": expr,
                "eval_time": "2h",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in found.items()],
            }
            for expr, found in wanted.items()
        ],
    }
    assert not complaints(promtool, tmp_path, [test])


@slow
def test_the_rule_file_and_the_example_of_a_configuration_are_valid(promtool: Path, tmp_path: Path) -> None:
    example = Path(__file__).resolve().parents[2] / "examples" / "monitoring" / "prometheus.yaml"
    (tmp_path / "rules.yaml").write_text(rules_file())
    (tmp_path / "prometheus.yaml").write_text(example.read_text())
    checked = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# -- dashboards ----------------------------------------------------------------------------------------------------


def page() -> dict[str, float]:
    """A page of an operator, a gateway and what other programs have beside them, by series."""
    lines = [line for line in pages().splitlines() if line and not line.startswith("#")]
    found = {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}
    pod = 'namespace="team",pool="chat",pod="chat-pool-5d-x"'
    for name in sorted(outside.VLLM | outside.DCGM):
        le = ',le="+Inf"' if name.endswith("_bucket") else ""
        found[f"{name}{{{pod}{le}}}"] = 1.0
    for name in sorted(outside.ENVOY):
        labels = '{envoy_http_conn_manager_prefix="gateway",envoy_response_code_class="2"}'
        found[name + ("" if "server" in name else labels)] = 1.0
    for pool in ("tuneyard_pool_replicas", "tuneyard_pool_ready_replicas", "tuneyard_pool_wanted_replicas"):
        found[f'{pool}{{namespace="team",base_model="b",pool="chat"}}'] = 1.0
    found['tuneyard_pool_scaling_limited{namespace="team",base_model="b",pool="chat",limit="maxReplicas"}'] = 1.0
    for recorded in ('tokens:rate1h{kind="prompt",', 'tokens:rate1h{kind="completion",', 'work:rate1h{base_model="b",'):
        found[f'tuneyard:{recorded}namespace="team",deployment="chat"}}'] = 1.0
    found['tuneyard:hosted_cost:rate1h{namespace="team",deployment="chat",revision="api",currency="USD"}'] = 1.0
    for pods, number in (("tuneyard_adapter_pods", 2.0), ("tuneyard_adapter_loaded_pods", 1.0)):
        found[f'{pods}{{namespace="team",adapter="a"}}'] = number
    found['tuneyard_mirror_copies_total{namespace="team",deployment="chat",revision="v2",outcome="answered"}'] = 1.0
    found['tuneyard_gateway_holds_total{outcome="ready"}'] = 1.0
    found['tuneyard_reconcile_passes_total{kind="BaseModel",outcome="done"}'] = 1.0
    found['tuneyard_reconcile_seconds_bucket{kind="BaseModel",le="+Inf"}'] = 1.0
    found['tuneyard_writes_total{kind="BaseModel",verb="apply"}'] = 1.0
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    with PrometheusServer(tmp_path_factory.mktemp("prometheus"), page(), honor_labels=True) as running:
        # a rate is of two readings at least
        eventually(lambda: (running.known("count_over_time(tuneyard_leader[1m])") or 0) > 1, running.said)
        yield running


CHOSEN = {
    "__rate_interval": "1m",
    "namespace": "team|default",
    "deployment": "chat|md-chat",
    "pool": "chat",
    "pod_hour": "0.8",
    "currency": "USD",
    "api_prompt": "0.3",
    "api_completion": "1.2",
}
SILENT = {
    'ALERTS{alertname=~"Tuneyard.*",alertstate="firing"}',  # nothing fires
    'exported_pod=~"',  # the labels of another exporter's configuration
    ',kind="completion"}[1h]',  # nobody asks meanwhile (test_cost_dashboard.py)
}


def asked(server: PrometheusServer, query: str) -> list[Any]:
    """The series that a query finds."""
    for name, value in CHOSEN.items():
        query = query.replace(f"${name}", value)
    # a dashboard of one deployment compares with =, and the page has it under two names
    query = re.sub(r'(namespace|deployment)="(team\|default|chat\|md-chat)"', r'\1=~"\2"', query)
    url = f"{server.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: list[Any] = json.load(answer)["data"]["result"]
    return found


@slow
@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.name)
def test_every_query_of_a_dashboard_finds_something(server: PrometheusServer, dashboard: Any) -> None:
    for query in dashboard.queries:
        if "[1d:5m]" in query:  # every fifth minute of a server that is younger than that
            assert len(asked(server, query)) <= 1
        elif any(silent in query for silent in SILENT):
            assert asked(server, query) == []
        else:
            assert asked(server, query), query
