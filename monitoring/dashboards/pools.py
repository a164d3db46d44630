"""Model pods, by what their engines and GPUs tell."""

from __future__ import annotations

from monitoring.dashboards.queries import ALL, RATE, newest, quantiles
from monitoring.grafana import TOKENS, Dashboard, Query, Row, Variable, panel

_POOL = 'namespace=~"$namespace",pool=~"$pool"'
_PODS = "namespace, pool, pod"
_IN = "{{namespace}}/{{pool}}"

POOLS = Dashboard(
    "pools",
    "Pools",
    "Model pods as their engines (vLLM) and their GPUs tell: queues, KV cache, tokens, adapters.",
    (
        Variable("namespace", "label_values(tuneyard_pool_replicas, namespace)", several=True),
        Variable("pool", 'label_values(tuneyard_pool_replicas{namespace=~"$namespace"}, pool)', several=True),
    ),
    (
        Row(
            "Load",
            (
                panel(
                    "Requests that wait",
                    Query(f"sum by ({_PODS}) (vllm:num_requests_waiting{{{_POOL}}})", "{{pod}}"),
                    description="In the engine's queue: above 0 for long, the pool is too small.",
                ),
                panel(
                    "Requests that run", Query(f"sum by ({_PODS}) (vllm:num_requests_running{{{_POOL}}})", "{{pod}}")
                ),
                panel(
                    "KV cache in use",
                    Query(f"max by ({_PODS}) (vllm:kv_cache_usage_perc{{{_POOL}}})", "{{pod}}"),
                    unit="percentunit",
                    top=1,
                ),
                panel(
                    "Tokens per second",
                    Query(
                        f"sum by (namespace, pool) (rate(vllm:generation_tokens_total{{{_POOL}}}[{RATE}]))",
                        _IN + " generated",
                    ),
                    Query(
                        f"sum by (namespace, pool) (rate(vllm:prompt_tokens_total{{{_POOL}}}[{RATE}]))", _IN + " read"
                    ),
                    unit=TOKENS,
                ),
                panel(
                    "Prefix cache hits",
                    Query(
                        f"sum by (namespace, pool) (rate(vllm:prefix_cache_hits_total{{{_POOL}}}[{RATE}]))"
                        f" / sum by (namespace, pool) (rate(vllm:prefix_cache_queries_total{{{_POOL}}}[{RATE}]))",
                        _IN,
                    ),
                    unit="percentunit",
                    top=1,
                ),
                panel(
                    "Requests that were put back",
                    Query(f"sum by ({_PODS}) (rate(vllm:num_preemptions_total{{{_POOL}}}[{RATE}]))", "{{pod}}"),
                    unit="reqps",
                    description="For want of KV cache: their prompts are computed again.",
                ),
                quantiles(
                    "Time in the engine's queue", "vllm:request_queue_time_seconds", _POOL, "namespace, pool", _IN
                ),
                quantiles(
                    "Time to the first token, by the engine",
                    "vllm:time_to_first_token_seconds",
                    _POOL,
                    "namespace, pool",
                    _IN,
                    description="Without the way through the gateway.",
                ),
                quantiles(
                    "Time between tokens, by the engine",
                    "vllm:inter_token_latency_seconds",
                    _POOL,
                    "namespace, pool",
                    _IN,
                ),
            ),
        ),
        Row(
            "Pods and adapters",
            (
                panel(
                    "Pods",
                    Query(newest(f"tuneyard_pool_ready_replicas{{{_POOL}}}", "namespace, pool"), _IN + " ready"),
                    Query(newest(f"tuneyard_pool_replicas{{{_POOL}}}", "namespace, pool"), _IN + " wanted"),
                ),
                panel(
                    "Pods that the load asks for",
                    Query(newest(f"tuneyard_pool_wanted_replicas{{{_POOL}}}", "namespace, pool"), _IN + " wanted"),
                    Query(newest(f"tuneyard_pool_ready_replicas{{{_POOL}}}", "namespace, pool"), _IN + " ready"),
                    Query(
                        newest(f"tuneyard_pool_scaling_limited{{{_POOL}}}", "namespace, pool, limit"),
                        _IN + " limited by {{limit}}",
                    ),
                    description="Of pools with serving.autoscaling.",
                ),
                panel(
                    "Copies of adapters",
                    Query(
                        newest(f"tuneyard_adapter_loaded_pods{{{ALL}}}", "namespace, adapter"),
                        "{{namespace}}/{{adapter}}",
                    ),
                    description="Pods that have loaded it.",
                ),
                panel(
                    "Copies that are missing",
                    newest(f"tuneyard_adapter_pods{{{ALL}}}", "namespace, adapter")
                    + " - "
                    + newest(f"tuneyard_adapter_loaded_pods{{{ALL}}}", "namespace, adapter")
                    + " > 0",
                    shape="table",
                ),
            ),
        ),
        Row(
            "GPUs (where the cluster has NVIDIA's DCGM exporter)",
            (
                panel(
                    "Utilisation",
                    Query(
                        'avg by (pod) (DCGM_FI_DEV_GPU_UTIL{namespace=~"$namespace",pod=~"($pool)-pool-.*"})', "{{pod}}"
                    ),
                    Query(
                        'avg by (exported_pod) (DCGM_FI_DEV_GPU_UTIL{exported_namespace=~"$namespace",'
                        'exported_pod=~"($pool)-pool-.*"})',
                        "{{exported_pod}}",
                    ),
                    unit="percent",
                    top=100,
                    width=12,
                ),
                panel(
                    "Memory in use",
                    Query(
                        'sum by (pod) (DCGM_FI_DEV_FB_USED{namespace=~"$namespace",pod=~"($pool)-pool-.*"}) * 1048576',
                        "{{pod}}",
                    ),
                    Query(
                        'sum by (exported_pod) (DCGM_FI_DEV_FB_USED{exported_namespace=~"$namespace",'
                        'exported_pod=~"($pool)-pool-.*"}) * 1048576',
                        "{{exported_pod}}",
                    ),
                    unit="bytes",
                    width=12,
                ),
            ),
        ),
    ),
)
