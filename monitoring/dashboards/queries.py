"""Pieces of queries that the dashboards share.

Rules: counters of gateways are summed over them; what every replica of the operator tells alike is the maximum over
them; a latency is a quantile of histograms that were added up before. Labels beyond those of the metrics themselves are
`pod` of all and `pool` of model pods, which the chart's PodMonitors give, or the scrape configuration in
examples/monitoring.
"""

from __future__ import annotations

from monitoring.grafana import Panel, Query, panel

ALL = 'namespace=~"$namespace"'
ONE = 'namespace="$namespace",deployment="$deployment"'
DEPLOYMENTS = "{{namespace}}/{{deployment}}"
RATE = "$__rate_interval"


def quantile(q: float, metric: str, selector: str, by: str) -> str:
    """A quantile of a histogram, by these labels."""
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket{{{selector}}}[{RATE}])))"


def quantiles(title: str, metric: str, selector: str, by: str, legend: str, *, description: str = "") -> Panel:
    """Median and 99th percentile of a histogram in seconds."""
    queries = [Query(quantile(q, metric, selector, by), f"{legend} p{q * 100:.0f}") for q in (0.5, 0.99)]
    return panel(title, *queries, unit="s", description=description)


def errors(selector: str, by: str) -> str:
    """Share of the answers that failed; what clients did wrong, left or what the gateway refused does not count."""
    failed = f'tuneyard_requests_total{{{selector},outcome="error"}}'
    all_ = f'tuneyard_requests_total{{{selector},outcome=~"ok|error"}}'
    # one without failures has no series of them: then it is 0
    return (
        f"(sum by ({by}) (rate({failed}[{RATE}])) or 0 * sum by ({by}) (rate({all_}[{RATE}])))"
        f" / sum by ({by}) (rate({all_}[{RATE}]))"
    )


def newest(metric: str, by: str) -> str:
    """What replicas of the operator tell alike."""
    return f"max by ({by}) ({metric})"


OF = "namespace, deployment"
