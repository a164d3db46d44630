"""Alerts on the counting of tokens and on tenants. Users are served all the same: none of it is critical."""

from __future__ import annotations

from monitoring.alert import Alert, happened

_WINDOW = "15m"
_FETCHES = "envoy_http_jwt_authn_jwks_fetch"
_GATEWAY = '{envoy_http_conn_manager_prefix="gateway"}'

USAGE = (
    Alert(
        "TuneyardUsageStandsStill",
        # only where this gateway counts at all
        f'(sum by (pod) (increase(tuneyard_requests_total{{outcome="ok"}}[{_WINDOW}])) > 0)'
        " and on (pod) tuneyard_gateway_usage_unreadable_total"
        f" unless on (pod) ({happened('tuneyard_usage_requests_total', 'pod', _WINDOW)})"
        " or max by (pod) (tuneyard_gateway_usage_stopped_seconds) > 60",
        "5m",
        "warning",
        "Gateway {{ $labels.pod }} answers requests and counts no tokens.",
        "Envoy writes no lines of usage, or the process does not read them or cannot keep its sums. Requests are "
        "served; what is in the lines is counted once that works again, what Envoy could not write is not.",
        "`kubectl logs POD -c gateway`: `usage cannot be counted` comes with the reason, mostly that the pod's "
        "memory-backed volume is full. `kubectl logs POD -c envoy`: whether it can write its log.",
        "A full volume: see what fills it (usage that waits for its bucket has an alert of its own, "
        "TuneyardUsageNotWritten), or delete the pod: it exports what it has, and another one serves.",
    ),
    Alert(
        "TuneyardUsageUncounted",
        "sum by (pod) (increase(tuneyard_gateway_usage_uncounted_files_total[15m])) > 0",
        "",
        "warning",
        "Gateway {{ $labels.pod }} has lost files of usage before they were counted.",
        "Each is some 4 MiB of lines, about 8,000 requests, that are in no sum and in no record. They had to go, for "
        "nothing could be counted for long, and the volume may hold 64 MiB of them.",
        "`kubectl logs POD -c gateway`: what it says before of usage that cannot be counted; TuneyardUsageStandsStill "
        "fired earlier.",
        "As TuneyardUsageStandsStill. What is lost is not found again at the gateway; engines' own counters "
        "(`vllm:request_prompt_tokens_sum`) have it in sum.",
    ),
    Alert(
        "TuneyardUsageNotWritten",
        "max by (pod) (tuneyard_gateway_usage_failing_seconds) > 600"
        " or sum by (pod) (increase(tuneyard_gateway_usage_dropped_files_total[15m])) > 0",
        "",
        "warning",
        "Gateway {{ $labels.pod }} cannot write records of usage to its bucket.",
        "Records wait on the pod's volume; beyond 64 MiB (about 130,000 requests) the oldest files are lost, and what "
        "waits when the gateway ends. The sums for Prometheus go on.",
        "`kubectl logs POD -c gateway` says what the bucket answers.",
        "Mend the rights, the Secret or the address of usage.export (docs/howto/count-tokens.md); what waits is then "
        "written. Tokens of records that are lost are in `tuneyard_usage_tokens_total` all the same.",
    ),
    Alert(
        "TuneyardUsageUnreadable",
        "sum by (pod) (increase(tuneyard_gateway_usage_unreadable_total[1h])) > 3",
        "",
        "warning",
        "Gateway {{ $labels.pod }} could not read {{ $value | humanize }} lines of usage within an hour.",
        "Each is a request that nobody has counted. An Envoy that is killed leaves half a line, once; more of them "
        "come of an Envoy that is killed again and again, or are a bug.",
        "`kubectl get pods -n tuneyard-system -l app.kubernetes.io/component=gateway`: restarts of the container "
        "envoy, and in `kubectl describe` why (OOMKilled, a failed probe).",
        "It restarts: give it memory (gateway.envoyResources). It does not: report the lines that the process's log "
        "counts, with Envoy's version.",
    ),
    Alert(
        "TuneyardTenantProblems",
        "max by (problem) (tuneyard_gateway_tenant_problems) > 0",
        "5m",
        "warning",
        "Tenants: {{ $value }} times {{ $labels.problem }}.",
        "Objects of tenants are not what they should be, and somebody may be refused for it: a key that two tenants "
        "have, a tenant with keys and no policy or the other way round, one that cannot be read.",
        "`tuneyard tenants` names the tenants and says what to do.",
        "docs/howto/tenants-and-keys.md has a table of all problems.",
    ),
    Alert(
        "TuneyardSigningKeysNotFetched",
        f"sum by (pod) (increase({_FETCHES}_failed{_GATEWAY}[10m])) > 0"
        f" unless sum by (pod) (increase({_FETCHES}_success{_GATEWAY}[10m])) > 0",
        "5m",
        "warning",
        "Gateway {{ $labels.pod }} has not got the signing keys of tokens for ten minutes.",
        "It goes on with those that it has; but a gateway that starts now answers tokens with 503, and a token that a "
        "new key has signed gets 401. Tenants with keys are served as ever.",
        "`gateway.auth.jwt.jwksUri`: whether it answers from within the cluster, with a list of keys, and with a "
        "certificate of the authority that is expected. With `jwks` or `jwksConfigMap` the gateway process logs what "
        "is wrong with them (`tuneyard_gateway_signing_keys_unreadable`).",
        "Mend the issuer, the way to it, or the ConfigMap (docs/howto/tokens-in-place-of-keys.md). Envoy asks again "
        "every second; nothing is to be restarted.",
    ),
)
