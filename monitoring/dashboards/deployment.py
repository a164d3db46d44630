"""One deployment."""

from __future__ import annotations

from monitoring.dashboards.queries import OF, ONE, RATE, errors, newest, quantiles
from monitoring.grafana import TOKENS, Dashboard, Query, Row, Variable, panel

DEPLOYMENT = Dashboard(
    "deployment",
    "Deployment",
    "One deployment: its split, the candidate against stable, what its rollout knows and why it goes on or not.",
    (
        Variable("namespace", "label_values(tuneyard_revision_spec_weight, namespace)"),
        Variable("deployment", 'label_values(tuneyard_revision_spec_weight{namespace="$namespace"}, deployment)'),
    ),
    (
        Row(
            "Traffic",
            (
                panel(
                    "Split",
                    Query(newest(f"tuneyard_revision_weight{{{ONE}}}", "revision"), "{{revision}}"),
                    unit="percent",
                    stacked=True,
                    top=100,
                    description="What revisions really get; what is missing to 100 nobody may serve.",
                ),
                panel(
                    "Ceilings",
                    Query(newest(f"tuneyard_revision_spec_weight{{{ONE}}}", "revision"), "{{revision}} spec"),
                    Query(newest(f"tuneyard_revision_allowed_weight{{{ONE}}}", "revision"), "{{revision}} allowed"),
                    unit="percent",
                    top=100,
                    description="The spec's weight, and how much of it the rollout allows by now.",
                ),
                panel(
                    "Pods that serve",
                    Query(f"min by (revision) (tuneyard_gateway_revision_endpoints{{{ONE}}})", "{{revision}}"),
                    description="As the gateway sees it that knows the fewest.",
                ),
                panel(
                    "Requests by revision",
                    Query(f"sum by (revision) (rate(tuneyard_requests_total{{{ONE}}}[{RATE}]))", "{{revision}}"),
                    unit="reqps",
                    stacked=True,
                ),
                panel(
                    "Requests by how they ended",
                    Query(
                        f"sum by (revision, outcome) (rate(tuneyard_requests_total{{{ONE}}}[{RATE}]))",
                        "{{revision}} {{outcome}}",
                    ),
                    unit="reqps",
                ),
                panel("Errors by revision", Query(errors(ONE, "revision"), "{{revision}}"), unit="percentunit"),
                panel(
                    "Tokens per second",
                    Query(
                        f"sum by (revision, kind) (rate(tuneyard_usage_tokens_total{{{ONE}}}[{RATE}]))",
                        "{{revision}} {{kind}}",
                    ),
                    unit=TOKENS,
                    description="Of the prompts (cached: the part that was known already) and of the answers.",
                ),
                panel(
                    "Requests that nobody may serve",
                    Query(f"max(tuneyard_gateway_unserved_percent{{{ONE}}})", "unserved"),
                    unit="percent",
                    top=100,
                    description="They get 503: their revision has no pod that is ready.",
                ),
            ),
        ),
        Row(
            "Latencies: candidate against stable",
            (
                quantiles(
                    "Time to the first token",
                    "tuneyard_time_to_first_token_seconds",
                    ONE,
                    "revision",
                    "{{revision}}",
                    description="Of streams, from the whole request on.",
                ),
                quantiles(
                    "Time between tokens",
                    "tuneyard_inter_token_latency_seconds",
                    ONE,
                    "revision",
                    "{{revision}}",
                    description="The mean of each stream.",
                ),
                quantiles(
                    "Time to the whole answer",
                    "tuneyard_request_duration_seconds",
                    ONE,
                    "revision",
                    "{{revision}}",
                    description="Of answers that ended well.",
                ),
            ),
        ),
        Row(
            "Rollout",
            (
                panel(
                    "Phase",
                    Query(newest(f"tuneyard_rollout_phase{{{ONE}}}", "phase"), "{{phase}}"),
                    shape="state-timeline",
                    width=12,
                ),
                panel(
                    "What the answers say",
                    Query(newest(f"tuneyard_rollout_analysis{{{ONE}}}", "outcome"), "{{outcome}}"),
                    shape="state-timeline",
                    width=12,
                ),
                panel(
                    "Evidence: answers that were judged",
                    Query(
                        newest(f"tuneyard_rollout_answers_judged{{{ONE}}}", "objective, role"), "{{objective}} {{role}}"
                    ),
                ),
                panel(
                    "Evidence: share that missed the objective",
                    Query(
                        newest(f"tuneyard_rollout_answers_bad{{{ONE}}}", "objective, role")
                        + " / ("
                        + newest(f"tuneyard_rollout_answers_judged{{{ONE}}}", "objective, role")
                        + " > 0)",
                        "{{objective}} {{role}}",
                    ),
                    unit="percentunit",
                    description="docs/explanation/how-a-canary-is-judged.md says what a difference has to be.",
                ),
                panel(
                    "Step",
                    Query(newest(f"tuneyard_rollout_step{{{ONE}}}", OF), "step"),
                    description="Index in spec.rollout.steps; the number of steps: past all of them.",
                ),
                panel(
                    "Roles",
                    newest(f"tuneyard_revision_role{{{ONE}}}", "revision, role"),
                    shape="table",
                    labels_only=True,
                ),
                panel(
                    "Gates",
                    newest(f"tuneyard_rollout_gate{{{ONE}}}", "gate, state"),
                    shape="table",
                    labels_only=True,
                ),
                panel(
                    "Verdicts",
                    newest(f"tuneyard_rollout_verdict_timestamp_seconds{{{ONE}}}", "revision, reason") + " * 1000",
                    shape="table",
                    unit="dateTimeAsIso",
                    description="Rejected revisions, why and when.",
                ),
                panel(
                    "Ends of rollouts by day",
                    Query(newest(f"increase(tuneyard_rollout_outcomes_total{{{ONE}}}[1d])", "outcome"), "{{outcome}}"),
                ),
            ),
        ),
        Row(
            "Satisfaction, drift and the mirror",
            (
                panel(
                    "Feedback by revision",
                    Query(
                        f"sum by (revision, rating) (rate(tuneyard_feedback_total{{{ONE}}}[1h])) * 3600",
                        "{{revision}} {{rating}}",
                    ),
                    description="Ratings an hour.",
                ),
                panel(
                    "Stable drifts",
                    Query(newest(f"tuneyard_drifting{{{ONE}}}", OF), "drifting"),
                    top=1,
                    description="docs/howto/watch-for-drift.md",
                ),
                panel(
                    "Copies to the mirrored revision",
                    Query(
                        f"sum by (revision, outcome) (rate(tuneyard_mirror_copies_total{{{ONE}}}[{RATE}]))",
                        "{{revision}} {{outcome}}",
                    ),
                    unit="reqps",
                ),
            ),
        ),
    ),
)
