"""What is worth waking somebody or telling somebody of, and what to do then. The runbooks are made from this file.

Rules:
- `critical`: users are not served, or what keeps them served is gone; `warning`: somebody has to look today; `info`:
  something happened that people want to know of, and nothing is to be repaired;
- an alert names what is the case, for whom, and nothing that is in order: it ends by itself when that ends;
- labels of an alert are namespace, deployment and the like, never `instance`: a process that is replaced is no news;
- what replicas of the operator tell alike is the maximum over them.
"""

from __future__ import annotations

from typing import Literal

from monitoring.alert import DENIED, OF, Alert, happened
from monitoring.usagealerts import USAGE

BUDGET = "scalar(tuneyard:error_budget)"


def _failures(script: str) -> str:
    """That it failed lately, by gateway, with its name."""
    errors = f'envoy_http_lua_{script}_errors{{envoy_http_conn_manager_prefix="gateway"}}'
    return f"""label_replace({happened(errors, "pod", "5m")}, "script", "{script}", "", "")"""


def _burning(name: str, factor: float, long: str, short: str, severity: Literal["critical", "warning"]) -> Alert:
    """After Google's SRE workbook: both windows, so that it begins soon and ends soon."""
    return Alert(
        name,
        f"(tuneyard:errors:ratio_rate{long} > {factor} * {BUDGET})"
        f" and (tuneyard:errors:ratio_rate{short} > {factor} * {BUDGET})"
        # two failures in a quiet night are no trend
        f' and on ({OF}) (sum by ({OF}) (increase(tuneyard_requests_total{{outcome="error"}}[{long}])) > 10)',
        "2m",
        severity,
        f"{{{{ $labels.namespace }}}}/{{{{ $labels.deployment }}}} fails {{{{ $value | humanizePercentage }}}} of its "
        f"answers, {factor:g} times what its error budget allows.",
        f"Over the last {long}, and still over the last {short}, answers fail {factor:g} times as often as "
        "`monitoring.rules.errorBudget` allows (default 1 %). Errors are answers of 500 and above, broken streams and "
        "pods that cannot be reached; what clients do wrong and what they leave does not count.",
        "Dashboard Deployment: errors by revision say whether it is one revision or all; the access log's `flags`, "
        "`details` and `pod` say what failed where (`kubectl logs -n tuneyard-system -l "
        "app.kubernetes.io/component=gateway -c envoy`).",
        "One revision only: take it back (docs/howto/roll-back.md). All: look at the pool (dashboard Pools: queue, KV "
        "cache, pods that are not ready) and at the engine's log.",
    )


TRAFFIC = (
    _burning("TuneyardErrorBudgetBurnsFast", 14.4, "1h", "5m", "critical"),
    _burning("TuneyardErrorBudgetBurns", 6, "6h", "30m", "warning"),
    Alert(
        "TuneyardRequestsUnserved",
        f"max by ({OF}) (tuneyard_gateway_unserved_percent) > 0",
        "5m",
        "critical",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: {{ $value }} % of the requests get 503, for no pod serves "
        "their revision.",
        "The stable revision has no ready pod, so its share of the requests is refused (nobody else may answer for "
        "it).",
        "`tuneyard status -n NAMESPACE DEPLOYMENT` names the revision and why its pods are not ready.",
        "docs/howto/what-a-reason-means.md, under the reason that the status shows. Another revision that is ready can "
        "take over at once by its weight in spec.traffic.",
    ),
    Alert(
        "TuneyardPoolAtItsLimit",
        "max by (namespace, pool, limit) (tuneyard_pool_scaling_limited) > 0",
        "30m",
        "warning",
        "Pool {{ $labels.namespace }}/{{ $labels.pool }} is asked more than its pods can take, and {{ $labels.limit }} "
        "allows no more of them.",
        "`serving.autoscaling` asks for more replicas than `maxReplicas` or `costCeiling` allows, for half an hour. "
        "Requests are served, later than the targets say.",
        "Dashboard Pools: pods that the load asks for, requests that wait. `kubectl get bmodel NAME -o "
        "jsonpath='{.status.pools}'` says what asks for how many.",
        "Raise `maxReplicas` or `costCeiling.perHour` if the load is right; else limit who asks so much "
        "(docs/howto/limit-tenants.md), or let some wait (docs/howto/priorities-of-tenants.md).",
    ),
    Alert(
        "TuneyardHeldRequestsRefused",
        happened('tuneyard_gateway_holds_total{outcome=~"timeout|too-many|no-room"}', "outcome", "10m"),
        "",
        "warning",
        "Requests that waited for an adapter to be loaded were refused: {{ $labels.outcome }}.",
        "Adapters that are loaded only when somebody asks (serving.lora.idleTimeout) do not come soon enough "
        "(`timeout`), their pool is full (`no-room`), or more requests wait than may (`too-many`).",
        "Dashboard Gateways: requests that wait. `kubectl get loraadapters -A` shows what is loading and how far.",
        "`timeout`: make loading faster (serving.cache, a nearer source) or gateway.hold.seconds longer. `no-room`: "
        "raise serving.lora.maxCpuLoras or the pool's replicas. `too-many`: raise gateway.hold.requests or "
        "perDeployment.",
    ),
    Alert(
        "TuneyardMirrorFailing",
        f"sum by ({OF}, revision) "
        f'(rate(tuneyard_mirror_copies_total{{outcome=~"error|broken|timeout|unreachable"}}[15m]))'
        f" / sum by ({OF}, revision) (rate(tuneyard_mirror_copies_total[15m])) > 0.5",
        "15m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: more than half of the copies for {{ $labels.revision }} "
        "fail.",
        "The mirrored revision does not answer the copies of requests; users notice nothing.",
        "Dashboard Deployment: copies to the mirrored revision, by what became of them.",
        "Look at that revision's pods, or take spec.mirror away (docs/howto/mirror-traffic.md).",
    ),
    Alert(
        "TuneyardFeedbackNotWritten",
        "max by (pod) (tuneyard_gateway_feedback_failing_seconds) > 600"
        " or sum by (pod) (increase(tuneyard_gateway_feedback_dropped_total[15m])) > 0",
        "",
        "warning",
        "Gateway {{ $labels.pod }} cannot write feedback to its bucket.",
        "Records wait in memory (16 MB at most) and are lost beyond that, or when the gateway ends.",
        "The gateway process's log says what the bucket answers.",
        "Mend the rights, the Secret or the address of feedback.export (docs/howto/export-feedback.md); what waits is "
        "then written.",
    ),
)

ROLLOUTS = (
    Alert(
        "TuneyardCandidateRejected",
        "time() - max by (namespace, deployment, revision, reason) (tuneyard_rollout_verdict_timestamp_seconds) < 3600",
        "",
        "info",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: {{ $labels.revision }} was rejected "
        "({{ $labels.reason }}); stable has its traffic.",
        "The candidate got a verdict within the last hour. Users are served by the stable revision; Git still asks for "
        "the candidate.",
        "`tuneyard rollout status -n NAMESPACE DEPLOYMENT` shows the evidence, `tuneyard report` the gates' numbers.",
        "Nothing for users. Fix the adapter and add it as a new revision, or take its weight out of Git; "
        "`tuneyard rollout retry` tries the same contents again.",
    ),
    Alert(
        "TuneyardRolloutStalled",
        f'max by ({OF}) (tuneyard_rollout_phase{{phase="Inconclusive"}}) == 1',
        "1h",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: the rollout waits for evidence since more than an hour.",
        "The step's hold is over, and too little is known of the candidate's answers to go on: mostly too little "
        "traffic "
        "for the difference that is to be seen.",
        "`tuneyard rollout status -n NAMESPACE DEPLOYMENT`: the sentence of the analysis, and how much is missing.",
        "Wait, give the candidate more weight by hand (`tuneyard rollout promote`), or ask for less "
        "(docs/explanation/how-a-canary-is-judged.md).",
    ),
    Alert(
        "TuneyardMetricsUnavailable",
        f'max by ({OF}) (tuneyard_rollout_analysis{{outcome="MetricsUnavailable"}}) == 1',
        "15m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: the rollout stands, because what it is judged by is not "
        "there.",
        "A gateway does not tell what it has seen of answers, or a check of Prometheus has no number. The candidate "
        "keeps "
        "its weight: nothing is promoted and nothing rejected for it.",
        "`tuneyard rollout status` names the gateway or the check; the operator's log says what was answered.",
        "Gateways: look at their pods and the NetworkPolicy between operator and gateways (port 9443). Checks: "
        "docs/howto/checks-of-prometheus.md.",
    ),
    Alert(
        "TuneyardGateCannotRun",
        f'max by ({OF}, gate) (tuneyard_rollout_gate{{state="CannotRun"}}) == 1',
        "15m",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: gate {{ $labels.gate }} cannot run and holds the candidate.",
        "The gate's Job could not measure; that says nothing of the candidate, and it is tried again.",
        "The gate's message in `tuneyard rollout status`, and the log of its Job.",
        "Mend what the message names (data set, judge, quota, image). A gate that is not wanted any more can be taken "
        "out of spec.rollout.gates.",
    ),
    Alert(
        "TuneyardDrifting",
        f"max by ({OF}) (tuneyard_drifting) == 1",
        "",
        "warning",
        "{{ $labels.namespace }}/{{ $labels.deployment }}: the stable revision answers worse than in its first days.",
        "An evaluation or users' feedback of stable has become worse than spec.rollout.drift allows. No traffic is "
        "changed for it.",
        "`tuneyard report -n NAMESPACE DEPLOYMENT` shows the numbers by day.",
        "docs/howto/watch-for-drift.md: mostly users ask for something new; train again on what they ask now.",
    ),
    Alert(
        "TuneyardAdapterNotLoaded",
        'max by (namespace, name, reason) (tuneyard_stalled{kind="LoRAAdapter"}) == 1',
        "5m",
        "warning",
        "LoRAAdapter {{ $labels.namespace }}/{{ $labels.name }} cannot be loaded: {{ $labels.reason }}.",
        "Pods cannot fetch, verify or load the adapter. Revisions that name it get no traffic.",
        "`kubectl describe loraadapter NAME`: the message names the pod, the file or the number.",
        "docs/howto/what-a-reason-means.md, under the reason.",
    ),
    Alert(
        "TuneyardStalled",
        "max by (kind, namespace, name, reason) "
        '(tuneyard_stalled{kind!="LoRAAdapter",reason!="CandidateRejected"}) == 1',
        "10m",
        "warning",
        "{{ $labels.kind }} {{ $labels.namespace }}/{{ $labels.name }} needs somebody: {{ $labels.reason }}.",
        "The object does not become what its spec says without somebody's doing. Rejected candidates have an alert of "
        "their own, TuneyardCandidateRejected.",
        "`kubectl describe` it: the condition Stalled has the message.",
        "docs/howto/what-a-reason-means.md, under the reason.",
    ),
    Alert(
        "TuneyardPoolPodsMissing",
        "max by (namespace, pool) (tuneyard_pool_ready_replicas) < max by (namespace, pool) (tuneyard_pool_replicas)",
        "30m",
        "warning",
        "Pool {{ $labels.namespace }}/{{ $labels.pool }} has {{ $value }} ready pods, fewer than it should.",
        "Pods are not scheduled, do not start or are not ready, for longer than a large model takes to load.",
        "`kubectl get pods -l tuneyard.dev/pool=POOL`, and the BaseModel's status.",
        "Most often GPUs are missing (Unschedulable) or the engine ends (EngineCrashed): "
        "docs/howto/what-a-reason-means.md.",
    ),
)

GATEWAYS = (
    Alert(
        "TuneyardNoGateway",
        "absent(tuneyard_gateway_envoy_connected)",
        "2m",
        "critical",
        "No gateway is seen by Prometheus.",
        "No gateway runs, or Prometheus may not ask them.",
        "`kubectl get pods -n tuneyard-system -l app.kubernetes.io/component=gateway`, and Prometheus's page of "
        "targets.",
        "Pods run: label Prometheus's namespace `tuneyard.dev/scrape=true` (NetworkPolicy). Else `kubectl describe` "
        "them.",
    ),
    Alert(
        "TuneyardGatewayWithoutEnvoy",
        "max by (pod) (1 - tuneyard_gateway_envoy_connected) == 1",
        "1m",
        "critical",
        "Gateway {{ $labels.pod }}: Envoy is not connected to its process.",
        "Envoy serves what it knew; changes of weights, pods and rollbacks do not reach it. The pod is not ready.",
        "`kubectl logs POD -c envoy` and `-c gateway`.",
        "Delete the pod: another one serves meanwhile. If it comes back like this, keep both logs for a report.",
    ),
    Alert(
        "TuneyardPushRefused",
        "max by (pod) (tuneyard_gateway_refused_pushes) > 0",
        "",
        "critical",
        "Gateway {{ $labels.pod }}: Envoy refuses a configuration.",
        "Envoy works with what it had before for the models that it names; their changes do not take effect. A bug.",
        "`kubectl logs POD -c gateway` names the resource and Envoy's words.",
        "Undo the last change of the deployment that is named, and report both lines.",
    ),
    Alert(
        "TuneyardScriptFailed",
        happened(DENIED, "pod", "5m"),
        "",
        "critical",
        "Gateway {{ $labels.pod }}: a script failed, and requests were refused with 500.",
        "Envoy would pass on a request unmodified whose script failed; the gate refuses it instead. A bug, or a "
        "request "
        "that was made to find one.",
        "`kubectl logs POD -c envoy | grep -i lua` has the script's error; the access log has the requests "
        "(`details` rbac_access_denied).",
        "Report the error with the request's shape. One client only: refuse it before it comes here.",
    ),
    Alert(
        "TuneyardScriptStumbled",
        # what fails in `rewrite` on the way to a pod is refused by the gate, and told of above
        f"({_failures('answer')} or {_failures('mirror')}"
        f" or {_failures('rewrite')} unless on (pod) ({happened(DENIED, 'pod', '5m')}))",
        "",
        "warning",
        "Gateway {{ $labels.pod }}: the script {{ $labels.script }} failed, and the requests went on without it.",
        "`answer`: answers pass to their clients, but the gateway does not know their times and tokens (they are "
        "estimated), and an event of usage that a client has not asked for may be in its stream. `mirror`: there is no "
        "copy of the request. `rewrite`: the list of models (GET /v1/models) where clients need keys is a 503. A bug, "
        "or a request or an answer that was made to find one.",
        "`kubectl logs POD -c envoy | grep -i lua` has the script's error and its line.",
        "Report the error with the shape of the request and of the engine's answer.",
    ),
    Alert(
        "TuneyardGatewayWatchStale",
        "max by (pod, resource) (tuneyard_gateway_watch_age_seconds) > 150",
        "1m",
        "warning",
        "Gateway {{ $labels.pod }} has heard nothing of {{ $labels.resource }} from the API server for "
        "{{ $value | humanizeDuration }}.",
        "The gateway serves what it knew. Weights, rollbacks and pods that change meanwhile do not reach it.",
        "Are all gateways and the operator affected: then it is the API server or the network to it.",
        "The API server is well, and it is one pod: its liveness probe replaces it by itself within a minute.",
    ),
    Alert(
        "TuneyardCertificateExpires",
        "min by (pod) (tuneyard_gateway_certificate_expires_seconds) < 14 * 86400",
        "15m",
        "warning",
        "Gateway {{ $labels.pod }}: the certificate that clients are shown expires in {{ $value | humanizeDuration }}.",
        "Clients refuse the gateway from then on. 0: Envoy has no certificate, and the pod is not ready.",
        "The Secret gateway.tls.secretName in tuneyard-system; `kubectl logs POD -c envoy` says why Envoy "
        "refused a newer one (envoy_sds_key_rotation_failed).",
        "Renew the Secret: gateways take it without a restart (docs/howto/expose-the-gateway.md).",
    ),
    Alert(
        "TuneyardSnapshotFailing",
        "sum by (pod) (increase(tuneyard_gateway_snapshot_failures_total[15m])) > 0",
        "15m",
        "warning",
        "Gateway {{ $labels.pod }} cannot write its snapshot.",
        "It serves; but a process that starts while the API server is away would know an old state or none.",
        "`kubectl logs POD -c gateway`: mostly the memory-backed folder /run/tuneyard is full.",
        "Restart the pod; if the world is large, report its size.",
    ),
)

OPERATOR = (
    Alert(
        "TuneyardNoLeader",
        "max(tuneyard_leader) < 1 or absent(tuneyard_leader)",
        "2m",
        "critical",
        "No replica of the operator leads.",
        "Users are served; but no rollout goes on, nothing is rolled back by itself, no pool is made or mended.",
        "`kubectl get pods -n tuneyard-system -l app.kubernetes.io/component=operator` and "
        "`kubectl get lease -n tuneyard-system tuneyard-operator`.",
        "Pods run: their logs say why the lease is not taken (rights, API server). A rollback by edit of spec.traffic "
        "works without the operator.",
    ),
    Alert(
        "TuneyardWatchStale",
        "max by (pod, resource) (tuneyard_watch_age_seconds) > 150",
        "1m",
        "warning",
        "The operator {{ $labels.pod }} has heard nothing of {{ $labels.resource }} for {{ $value | humanizeDuration "
        "}}.",
        "It plans with what it knew.",
        "Are gateways affected too: then it is the API server or the network to it.",
        "The API server is well: the liveness probe replaces the process by itself within a minute.",
    ),
    Alert(
        "TuneyardPassesFail",
        'sum by (kind) (increase(tuneyard_reconcile_passes_total{outcome=~"failed|refused"}[15m])) > 3',
        "15m",
        "warning",
        "Passes over objects of kind {{ $labels.kind }} fail again and again.",
        "`refused`: the API server refuses what the operator writes (rights, quota, a webhook, an admission policy). "
        "`failed`: a bug; other objects are not held up.",
        "The operator's log names the object and the API server's words.",
        "Mend what refuses; report what fails with its traceback.",
    ),
    Alert(
        "TuneyardQueueLate",
        "max(tuneyard_queue_oldest_seconds) > 60",
        "10m",
        "warning",
        "Objects wait longer than a minute for the operator.",
        "Changes take effect late. More objects change than it can look at, or the API server is slow.",
        "Dashboard Gateways and operator: duration of passes by kind, writes, processor time.",
        "Give the operator more processor (operator.resources); look at who changes objects all the time.",
    ),
)

GROUPS = {"traffic": TRAFFIC, "rollouts": ROLLOUTS, "gateways": GATEWAYS, "usage": USAGE, "operator": OPERATOR}
ALERTS = tuple(alert for group in GROUPS.values() for alert in group)
