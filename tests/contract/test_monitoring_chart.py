"""What the chart gives Prometheus and Grafana, by the real kinds of Prometheus's operator."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from cluster.gobuild import module_files
from monitoring import outside
from monitoring.dashboards import DASHBOARDS
from monitoring.grafana import rendered as dashboard_json
from monitoring.rules import rules
from tests.builders import SETTINGS, base_model, deployment, revision
from tests.contract.apiserver import ApiServer
from tests.contract.chart import CHART, NAMESPACE, install, named, of_kind, rendered
from tuneyard.planning.podspec import pod_template
from tuneyard.planning.pools import pools_of
from tuneyard.planning.settings import Settings
from tuneyard.systems.kube.client import Object

pytestmark = pytest.mark.apiserver

EXAMPLE = CHART.parents[1] / "examples" / "monitoring" / "values.yaml"
ALL: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())


def test_nothing_of_it_is_there_unless_it_is_asked_for() -> None:
    kinds = {obj["kind"] for obj in rendered()}
    assert not kinds & {"PodMonitor", "PrometheusRule"}
    assert [obj["metadata"]["name"] for obj in of_kind(rendered(), "ConfigMap")] == ["tuneyard-config"]


def selects(monitor: Object, labels: dict[str, str], container_ports: set[str]) -> bool:
    """Whether the monitor takes pods with these labels, by ports that they have."""
    selector = monitor["spec"]["selector"]
    matches = selector.get("matchLabels", {}).items() <= labels.items()
    exists = all(e["key"] in labels and e["operator"] == "Exists" for e in selector.get("matchExpressions", ()))
    return matches and exists and {e["port"] for e in monitor["spec"]["podMetricsEndpoints"]} <= container_ports


def ports(spec: Object) -> set[str]:
    containers = [*spec.get("initContainers", ()), *spec["containers"]]
    return {port["name"] for container in containers for port in container.get("ports", ())}


def test_monitors_find_the_pods_and_leave_their_labels_alone() -> None:
    objects = rendered(**ALL)
    monitors = {m["metadata"]["name"]: m for m in of_kind(objects, "PodMonitor")}
    pods = {
        name: named(objects, "Deployment", name)["spec"]["template"]
        for name in ("tuneyard-operator", "tuneyard-gateway")
    }
    base = base_model()
    pods["tuneyard-pools"] = pod_template(pools_of(base, [deployment(revisions=[revision("v1")])])[0], base, SETTINGS)
    assert set(monitors) == set(pods)
    for name, monitor in monitors.items():
        taken = {n for n, p in pods.items() if selects(monitor, p["metadata"]["labels"], ports(p["spec"]))}
        assert taken == {name}
        assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"
        honoured = monitor["spec"]["podMetricsEndpoints"][0].get("honorLabels", False)
        assert honoured == (name != "tuneyard-pools"), "the pages of our own processes name other people's namespaces"


def test_no_series_that_alerts_and_dashboards_ask_for_is_dropped() -> None:
    by_operator = named(rendered(**ALL), "PodMonitor", "tuneyard-gateway")["spec"]["podMetricsEndpoints"][0]
    plain = yaml.safe_load((EXAMPLE.parent / "prometheus.yaml").read_text())["scrape_configs"][0]
    for rules_ in (by_operator["metricRelabelings"], plain["metric_relabel_configs"]):
        dropped = [rule["regex"] for rule in rules_ if rule["action"] == "drop"]
        assert dropped and len(dropped) == len(rules_)
        assert not [name for name in outside.ENVOY for regex in dropped if re.fullmatch(regex, name)]


def test_a_monitor_of_pools_looks_where_the_operator_looks() -> None:
    def where(**more: Any) -> Object:
        found: Object = named(rendered(**ALL, **more), "PodMonitor", "tuneyard-pools")["spec"]["namespaceSelector"]
        return found

    assert where() == {"any": True}
    assert where(watchNamespaces=["models"]) == {"matchNames": ["models"]}


def test_alerts_are_those_of_the_plain_file_with_the_budget_and_the_links_that_are_asked_for() -> None:
    assert named(rendered(**ALL), "PrometheusRule", "tuneyard")["spec"] == rules()
    values = {"monitoring": {"rules": {"enabled": True, "errorBudget": 0.005, "runbookUrl": "https://wiki/alerts"}}}
    changed = named(rendered(**values), "PrometheusRule", "tuneyard")["spec"]
    text = json.dumps(rules()).replace('"vector(0.01)"', '"vector(0.005)"')
    assert changed == json.loads(text.replace('"docs/reference/alerts.md#', '"https://wiki/alerts#'))


def test_dashboards_are_the_generated_ones_as_they_are() -> None:
    found = {
        obj["metadata"]["name"]: obj
        for obj in of_kind(rendered(**ALL), "ConfigMap")
        if obj["metadata"]["name"] != "tuneyard-config"
    }
    assert set(found) == {f"tuneyard-dashboard-{d.name}" for d in DASHBOARDS}
    for dashboard in DASHBOARDS:
        obj = found[f"tuneyard-dashboard-{dashboard.name}"]
        assert obj["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert obj["metadata"]["annotations"] == {"grafana_folder": "Tuneyard"}
        # legends are `{{revision}}`, which helm must not read
        assert json.loads(obj["data"][f"tuneyard-{dashboard.name}.json"]) == dashboard_json(dashboard)


def test_the_collector_is_in_the_settings_that_operator_and_gateways_read() -> None:
    values = {"tracing": {"otlpEndpoint": "http://collector.tracing:4317", "sampling": 0.5}}
    text = named(rendered(**values), "ConfigMap", "tuneyard-config")["data"]["config.yaml"]
    told = Settings.from_dict(yaml.safe_load(text)).tracing
    assert (told.otlp_endpoint, told.sampling) == ("http://collector.tracing:4317", 0.5)
    nothing = rendered(tracing={"sampling": 0})
    text = named(nothing, "ConfigMap", "tuneyard-config")["data"]["config.yaml"]
    assert Settings.from_dict(yaml.safe_load(text)).tracing.sampling == 0


@pytest.fixture
def monitored(apiserver: ApiServer) -> Iterator[ApiServer]:
    """An API server that knows the kinds of Prometheus's operator."""
    folder = module_files("prometheus-operator", "github.com/prometheus-operator/prometheus-operator")
    crds = folder / "example" / "prometheus-operator-crd"
    plurals = ("podmonitors", "prometheusrules")
    install(apiserver, [yaml.safe_load((crds / f"monitoring.coreos.com_{p}.yaml").read_text()) for p in plurals])
    for plural in plurals:
        done = apiserver.kubectl("wait", "--for=condition=Established", f"crd/{plural}.monitoring.coreos.com")
        assert done.returncode == 0, done.stderr
    install(apiserver, [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
    yield apiserver


def test_a_real_api_server_takes_all_of_it(monitored: ApiServer) -> None:
    objects = [o for o in rendered(**ALL) if o["kind"] in ("PodMonitor", "PrometheusRule", "ConfigMap")]
    assert len(objects) == 3 + 1 + len(DASHBOARDS) + 1
    text = "---\n".join(yaml.safe_dump(obj) for obj in objects)
    done = monitored.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr, done.stderr
