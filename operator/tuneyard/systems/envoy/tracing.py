"""Traces of a gateway's Envoy: one span a request, sent to a collector by OpenTelemetry's protocol over gRPC.

Rules:
- without a collector there is nothing that a request could cost, and `traceparent` goes to the engine as the
  client wrote it;
- who is sampled is decided once: by the client where it sends `traceparent`, else by the share that is asked for. The
  engine gets the same trace id and the same sampled flag, and its own span is a child of this one;
- that decision is the sampler's alone. Envoy 1.40's own (tracing.random_sampling) takes the sampled flag from a client
  whose request it does not choose, and x-client-trace-id forces a trace: the one is 100, the other 0;
- no id of a request changes: Envoy would write its decision into x-request-id, also without a collector, and make of
  a client's UUID of version 7 another one;
- spans carry the deployment, the revision, and what OpenTelemetry's conventions for generative AI ask for (_gen_ai): no
  prompt, no answer and no credential. Numbers are texts there: Envoy's tags know nothing else. A tag without a value
  is left out: the engine's name where none was asked, tokens that nobody has told.
While the collector is away spans are dropped, and requests wait for nothing.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from tuneyard.api import names
from tuneyard.planning.settings import TracingSettings
from tuneyard.systems.envoy.documents import EXTENSIONS, Json, extension, static_cluster, tcp

CLUSTER = "tracing"
SERVICE = "tuneyard-gateway"
PROVIDER = "vllm"
_OPERATION = (
    "%CEL(request.url_path == '/v1/chat/completions' ? 'chat' : (request.url_path == '/v1/completions'"
    " ? 'text_completion' : (request.url_path == '/v1/embeddings' ? 'embeddings' : '')))%"
)
_ANSWERED = '%COALESCE({"operators":[{"command":"CLUSTER_METADATA","param":"NAMESPACE:adapter"},'
_ANSWERED += '{"command":"CLUSTER_METADATA","param":"NAMESPACE:base_model"}]})%'


def request_ids() -> Json:
    """Field of the connection manager: ids are texts that nothing is written into."""
    config = extension(
        "ids",
        "request_id.uuid.v3.UuidRequestIdConfig",
        pack_trace_reason=False,
        use_request_id_for_trace_sampling=False,
    )
    return {"request_id_extension": {"typed_config": config["typed_config"]}}


def tracing(settings: TracingSettings, metadata: str) -> Json:
    """Fields of the connection manager, none without a collector; `metadata`: the namespace of clusters' metadata."""
    if not settings.otlp_endpoint:
        return {}
    share = {"numerator": round(settings.sampling * 10_000), "denominator": "MILLION"}
    ratio = extension(
        "ratio", "tracers.opentelemetry.samplers.v3.TraceIdRatioBasedSamplerConfig", sampling_percentage=share
    )
    sampler = extension("parent", "tracers.opentelemetry.samplers.v3.ParentBasedSamplerConfig", wrapped_sampler=ratio)
    provider = {
        "@type": "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig",
        "grpc_service": {"envoy_grpc": {"cluster_name": CLUSTER}, "timeout": "5s"},
        "service_name": SERVICE,
        "sampler": sampler,
    }
    return {
        "tracing": {
            "client_sampling": {"value": 0},
            "random_sampling": {"value": 100},
            "overall_sampling": {"value": 100},
            "provider": {"name": "envoy.tracers.opentelemetry", "typed_config": provider},
            "custom_tags": [
                _of_cluster("tuneyard.deployment", "deployment", metadata),
                _of_cluster("tuneyard.revision", "revision", metadata),
                *_gen_ai(metadata),
            ],
        },
    }


def _gen_ai(metadata: str) -> list[Json]:
    """What OpenTelemetry's conventions for generative AI ask for, under the names that they have now.

    The provider is who makes the engine; server is the pod that answered; the model that answered is the fine-tune, or
    the base where there is none, by its object's name.
    """

    def told(*path: str) -> Json:
        keys = [{"key": key} for key in path]
        return {"metadata": {"kind": {"request": {}}, "metadata_key": {"key": metadata, "path": keys}}}

    return [
        {"tag": "gen_ai.operation.name", "value": _OPERATION},
        {"tag": "gen_ai.provider.name", "literal": {"value": PROVIDER}},
        {"tag": "gen_ai.request.model", "request_header": {"name": names.MODEL_HEADER}},
        {"tag": "gen_ai.response.model", "value": _ANSWERED.replace("NAMESPACE", metadata)},
        {"tag": "gen_ai.usage.input_tokens", **told("usage", "prompt_tokens")},
        {"tag": "gen_ai.usage.cache_read.input_tokens", **told("usage", "cached_tokens")},
        {"tag": "gen_ai.usage.output_tokens", **told("usage", "completion_tokens")},
        {"tag": "server.address", "value": "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
        {"tag": "server.port", "value": "%UPSTREAM_REMOTE_PORT%"},
        {"tag": "error.type", **told("error")},
    ]


def _of_cluster(tag: str, key: str, metadata: str) -> Json:
    return {
        "tag": tag,
        "metadata": {"kind": {"cluster": {}}, "metadata_key": {"key": metadata, "path": [{"key": key}]}},
    }


def tracing_clusters(settings: TracingSettings) -> list[Json]:
    """The collector as a cluster, none without one."""
    if not settings.otlp_endpoint:
        return []
    url = urlsplit(settings.otlp_endpoint)
    options = {
        "@type": EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster = static_cluster(
        CLUSTER,
        tcp(url.hostname or "", url.port or 4317),
        type="STRICT_DNS",
        dns_lookup_family="ALL",
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )
    return [cluster]
