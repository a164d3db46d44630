"""Series of other programs that dashboards and alerts look at; tests ask the real ones for them, but for GPUs."""

from __future__ import annotations

ENVOY = frozenset(
    {
        "envoy_http_downstream_rq_active",
        "envoy_http_downstream_rq_total",
        "envoy_http_downstream_rq_xx",
        "envoy_http_lua_answer_errors",
        "envoy_http_lua_mirror_errors",
        "envoy_http_lua_rewrite_errors",
        "envoy_http_rbac_denied",
        "envoy_server_memory_physical_size",
    }
)
"""Envoy 1.40, at the gateways."""

ENVOY_TOKENS = frozenset({"envoy_http_jwt_authn_jwks_fetch_failed", "envoy_http_jwt_authn_jwks_fetch_success"})
"""The same, where clients may have tokens in the place of keys."""

VLLM = frozenset(
    {
        "vllm:generation_tokens_total",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:kv_cache_usage_perc",
        "vllm:num_preemptions_total",
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:prefix_cache_hits_total",
        "vllm:prefix_cache_queries_total",
        "vllm:prompt_tokens_total",
        "vllm:request_queue_time_seconds_bucket",
        "vllm:time_to_first_token_seconds_bucket",
    }
)
"""vLLM 0.32, through the pods' fronts."""

DCGM = frozenset({"DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_GPU_UTIL"})
"""NVIDIA's DCGM exporter, where the cluster has one."""

PROMETHEUS = frozenset({"ALERTS"})
"""Prometheus itself."""
