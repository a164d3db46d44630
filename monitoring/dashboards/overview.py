"""All deployments."""

from __future__ import annotations

from monitoring.dashboards.queries import ALL, DEPLOYMENTS, OF, RATE, errors, newest, quantiles
from monitoring.grafana import Dashboard, Query, Row, Variable, panel

OVERVIEW = Dashboard(
    "overview",
    "Overview",
    "All deployments: what they answer, how fast, what is rolled out and what asks for somebody.",
    (Variable("namespace", "label_values(tuneyard_revision_spec_weight, namespace)", several=True),),
    (
        Row(
            "Now",
            (
                panel(
                    "Requests per second",
                    f"sum(rate(tuneyard_requests_total{{{ALL}}}[{RATE}]))",
                    shape="stat",
                    unit="reqps",
                    width=4,
                ),
                panel(
                    "Errors",
                    f'sum(rate(tuneyard_requests_total{{{ALL},outcome="error"}}[{RATE}]))'
                    f' / sum(rate(tuneyard_requests_total{{{ALL},outcome=~"ok|error"}}[{RATE}]))',
                    shape="stat",
                    unit="percentunit",
                    width=4,
                    bad_above=0.01,
                    description="Answers that failed by the revision's doing, of those that ended well or failed.",
                ),
                panel(
                    "Deployments not ready",
                    f'count({newest(f"""tuneyard_ready{{kind="ModelDeployment",{ALL}}}""", "namespace, name")} == 0)'
                    " or vector(0)",
                    shape="stat",
                    width=4,
                    bad_above=1,
                ),
                panel(
                    "Rollouts under way",
                    "count("
                    + newest(
                        f'tuneyard_rollout_phase{{{ALL},phase=~"Gating|Progressing|Paused|Inconclusive|Baking"}}', OF
                    )
                    + ") or vector(0)",
                    shape="stat",
                    width=4,
                ),
                panel(
                    "Rejected in the last day",
                    "count(time() - "
                    + newest(f"tuneyard_rollout_verdict_timestamp_seconds{{{ALL}}}", f"{OF}, revision")
                    + " < 86400) or vector(0)",
                    shape="stat",
                    width=4,
                    bad_above=1,
                ),
                panel(
                    "Drifting",
                    f"sum({newest(f'tuneyard_drifting{{{ALL}}}', OF)}) or vector(0)",
                    shape="stat",
                    width=4,
                    bad_above=1,
                ),
            ),
        ),
        Row(
            "Answers",
            (
                panel(
                    "Requests by deployment",
                    Query(f"sum by ({OF}) (rate(tuneyard_requests_total{{{ALL}}}[{RATE}]))", DEPLOYMENTS),
                    unit="reqps",
                    stacked=True,
                ),
                panel("Errors by deployment", Query(errors(ALL, OF), DEPLOYMENTS), unit="percentunit"),
                panel(
                    "Bad feedback by deployment",
                    Query(
                        f'sum by ({OF}) (rate(tuneyard_feedback_total{{{ALL},rating="bad"}}[1h]))'
                        f" / sum by ({OF}) (rate(tuneyard_feedback_total{{{ALL}}}[1h]))",
                        DEPLOYMENTS,
                    ),
                    unit="percentunit",
                    description="Of the answers that users rated in the last hour.",
                ),
                quantiles(
                    "Time to the first token",
                    "tuneyard_time_to_first_token_seconds",
                    ALL,
                    OF,
                    DEPLOYMENTS,
                    description="Of streams, from the whole request on.",
                ),
                quantiles(
                    "Time between tokens",
                    "tuneyard_inter_token_latency_seconds",
                    ALL,
                    OF,
                    DEPLOYMENTS,
                    description="The mean of each stream.",
                ),
                quantiles(
                    "Time to the whole answer",
                    "tuneyard_request_duration_seconds",
                    ALL,
                    OF,
                    DEPLOYMENTS,
                    description="Of answers that ended well.",
                ),
            ),
        ),
        Row(
            "Rollouts and objects",
            (
                panel(
                    "Phases",
                    Query(newest(f"tuneyard_rollout_phase{{{ALL}}}", f"{OF}, phase"), f"{DEPLOYMENTS} {{{{phase}}}}"),
                    shape="state-timeline",
                    width=12,
                ),
                panel(
                    "Weight of candidates",
                    Query(
                        newest(f"tuneyard_revision_weight{{{ALL}}}", f"{OF}, revision")
                        + f" and on ({OF}, revision) "
                        + newest(f'tuneyard_revision_role{{{ALL},role="candidate"}}', f"{OF}, revision"),
                        DEPLOYMENTS + " {{revision}}",
                    ),
                    unit="percent",
                    top=100,
                    width=12,
                ),
                panel(
                    "What asks for somebody",
                    newest(f"tuneyard_stalled{{{ALL}}}", "kind, namespace, name, reason"),
                    shape="table",
                    labels_only=True,
                    width=12,
                    description="docs/howto/what-a-reason-means.md says what to do.",
                ),
                panel(
                    "Alerts that fire",
                    'ALERTS{alertname=~"Tuneyard.*",alertstate="firing"}',
                    shape="table",
                    labels_only=True,
                    width=12,
                ),
            ),
        ),
    ),
)
