"""Gateways and the operator."""

from __future__ import annotations

from monitoring.dashboards.queries import RATE, newest, quantile
from monitoring.grafana import TOKENS, Dashboard, Query, Row, panel

_CLIENTS = 'envoy_http_conn_manager_prefix="gateway"'


GATEWAYS = Dashboard(
    "gateways",
    "Gateways and operator",
    "The processes of Tuneyard itself: whether they hear, are heard and have what they need.",
    (),
    (
        Row(
            "Requests",
            (
                panel(
                    "Requests per second",
                    Query(f"sum by (pod) (rate(envoy_http_downstream_rq_total{{{_CLIENTS}}}[{RATE}]))", "{{pod}}"),
                    unit="reqps",
                    stacked=True,
                    description="Of clients, whatever became of them.",
                ),
                panel(
                    "Answers by status",
                    Query(
                        f"sum by (envoy_response_code_class) (rate(envoy_http_downstream_rq_xx{{{_CLIENTS}}}[{RATE}]))",
                        "{{envoy_response_code_class}}xx",
                    ),
                    unit="reqps",
                ),
                panel(
                    "Requests under way",
                    Query(f"sum by (pod) (envoy_http_downstream_rq_active{{{_CLIENTS}}})", "{{pod}}"),
                ),
                panel(
                    "Requests that wait for an adapter",
                    Query("sum by (pod) (tuneyard_gateway_held)", "{{pod}}"),
                    description="For one that is loaded only when somebody asks.",
                ),
                panel(
                    "How waiting ended",
                    Query(f"sum by (outcome) (rate(tuneyard_gateway_holds_total[{RATE}]))", "{{outcome}}"),
                    unit="reqps",
                ),
                panel(
                    "Requests that a script failed on",
                    Query(f"sum by (pod) (rate(envoy_http_rbac_denied{{{_CLIENTS}}}[{RATE}]))", "{{pod}}"),
                    unit="reqps",
                    description="They were refused. Anything above 0 is a bug.",
                ),
                panel(
                    "Failures of scripts",
                    *(
                        Query(f"sum(rate(envoy_http_lua_{s}_errors{{{_CLIENTS}}}[{RATE}]))", s)
                        for s in ("rewrite", "answer", "mirror")
                    ),
                    unit="ops",
                    description="Where nobody is refused: answers that are not timed and counted, copies that are not "
                    "made, a tenant's list of models. Anything above 0 is a bug.",
                ),
                panel(
                    "Certificate of clients expires in",
                    Query("min by (pod) (tuneyard_gateway_certificate_expires_seconds)", "{{pod}}"),
                    unit="s",
                    description="Only where gateways take TLS.",
                ),
            ),
        ),
        Row(
            "Gateways",
            (
                panel("Envoy is connected", Query("min by (pod) (tuneyard_gateway_envoy_connected)", "{{pod}}"), top=1),
                panel(
                    "Models that are routed",
                    Query("max by (pod) (tuneyard_gateway_models)", "{{pod}}"),
                    description="Gateways that differ for long: look at their watches.",
                ),
                panel(
                    "Routes that were sent to Envoy",
                    Query(f"sum by (pod) (rate(tuneyard_gateway_pushes_total[{RATE}]))", "{{pod}}"),
                    unit="ops",
                ),
                panel(
                    "Routes that Envoy refused",
                    Query("max by (pod) (tuneyard_gateway_refused_pushes)", "{{pod}}"),
                    description="Since it connected. Anything above 0 is a bug.",
                ),
                panel(
                    "Age of watches",
                    Query("max by (pod, resource) (tuneyard_gateway_watch_age_seconds)", "{{pod}} {{resource}}"),
                    unit="s",
                ),
                panel(
                    "Memory",
                    Query("max by (pod) (envoy_server_memory_physical_size)", "{{pod}} Envoy"),
                    Query(
                        "max by (pod) (process_resident_memory_bytes and on (pod) tuneyard_gateway_models)",
                        "{{pod}} process",
                    ),
                    unit="bytes",
                ),
                panel(
                    "Processor time of the process",
                    Query(f"rate(process_cpu_seconds_total[{RATE}]) and on (pod) tuneyard_gateway_models", "{{pod}}"),
                    unit="percentunit",
                ),
                panel(
                    "Feedback that waits to be written",
                    Query("max by (pod) (tuneyard_gateway_feedback_waiting)", "{{pod}}"),
                    description="Only where feedback is exported.",
                ),
                panel(
                    "Snapshots",
                    Query(f"sum by (pod) (rate(tuneyard_gateway_snapshots_total[{RATE}]))", "{{pod}} written"),
                    Query(f"sum by (pod) (rate(tuneyard_gateway_snapshot_failures_total[{RATE}]))", "{{pod}} failed"),
                    unit="ops",
                ),
            ),
        ),
        Row(
            "Tokens and tenants",
            (
                panel(
                    "Tokens per second by tenant",
                    Query(
                        f'sum by (tenant, kind) (rate(tuneyard_usage_tokens_total{{kind!="cached"}}[{RATE}]))',
                        "{{tenant}} {{kind}}",
                    ),
                    unit=TOKENS,
                    stacked=True,
                    description="Without a name: clients that need no keys.",
                ),
                panel(
                    "Requests whose tokens are estimated",
                    Query(
                        # one without estimates has no series of them: then it is 0
                        f'(sum by (pod) (rate(tuneyard_usage_requests_total{{source="estimate"}}[{RATE}]))'
                        f" or 0 * sum by (pod) (rate(tuneyard_usage_requests_total[{RATE}])))"
                        f" / sum by (pod) (rate(tuneyard_usage_requests_total[{RATE}]))",
                        "{{pod}}",
                    ),
                    unit="percentunit",
                    top=1,
                    description="Clients that left before the engine had told its numbers.",
                ),
                panel(
                    "Records of usage that cannot be written",
                    Query("max by (pod) (tuneyard_gateway_usage_failing_seconds)", "{{pod}}"),
                    unit="s",
                    description="Since when; only where usage is exported.",
                ),
                panel(
                    "Lines of usage that could not be read",
                    Query("sum by (pod) (increase(tuneyard_gateway_usage_unreadable_total[1h]))", "{{pod}}"),
                    description="In an hour: requests that nobody has counted.",
                ),
                panel(
                    "Problems of tenants",
                    Query("max by (problem) (tuneyard_gateway_tenant_problems)", "{{problem}}"),
                    description="docs/howto/tenants-and-keys.md says what they mean.",
                ),
            ),
        ),
        Row(
            "Operator",
            (
                panel("Leader", Query("max by (pod) (tuneyard_leader)", "{{pod}}"), shape="state-timeline", top=1),
                panel(
                    "Objects that wait for a pass",
                    Query(newest("tuneyard_queue_length", "pod"), "{{pod}}"),
                ),
                panel(
                    "How long the next one has waited",
                    Query(newest("tuneyard_queue_oldest_seconds", "pod"), "{{pod}}"),
                    unit="s",
                ),
                panel(
                    "Passes",
                    Query(
                        f"sum by (kind, outcome) (rate(tuneyard_reconcile_passes_total[{RATE}]))",
                        "{{kind}} {{outcome}}",
                    ),
                    unit="ops",
                ),
                panel(
                    "Duration of passes, p99",
                    Query(
                        quantile(0.99, "tuneyard_reconcile_seconds", "", "kind"),
                        "{{kind}}",
                    ),
                    unit="s",
                ),
                panel(
                    "Writes to the API server",
                    Query(f"sum by (kind, verb) (rate(tuneyard_writes_total[{RATE}]))", "{{kind}} {{verb}}"),
                    unit="ops",
                ),
                panel(
                    "Age of watches",
                    Query("max by (pod, resource) (tuneyard_watch_age_seconds)", "{{pod}} {{resource}}"),
                    unit="s",
                ),
                panel(
                    "Memory",
                    Query("max by (pod) (process_resident_memory_bytes and on (pod) tuneyard_queue_length)", "{{pod}}"),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
