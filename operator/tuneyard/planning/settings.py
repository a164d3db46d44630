"""The operator's and gateways' settings: what the chart knows and no custom resource says.

The file is YAML, mounted from the ConfigMap `tuneyard-config` at /etc/tuneyard/config.yaml; keys are camelCase and
unknown ones are ignored, so that an older operator starts on a newer chart's file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tuneyard.api.base import ApiModel


class Images(ApiModel):
    """Images of the pods that the operator makes."""

    tuneyard: str = "tuneyard/tuneyard:0.1.0"
    envoy: str = "tuneyard/envoy:0.1.0"
    vllm: str = "vllm/vllm-openai:v0.32.0"
    llama_cpp: str = "tuneyard/llama-cpp:0.1.0"
    build_tools: str = "tuneyard/build-tools:0.1.0"


class PrometheusSettings(ApiModel):
    """The server that the checks of rollouts are asked of."""

    url: str = ""
    """Base URL, to which /api/v1/query is added; empty: there is none."""
    token_file: str = ""
    """Bearer token, read at each request; empty: none is sent."""
    ca_file: str = ""
    """Authorities beside the system's."""


class TracingSettings(ApiModel):
    """Where spans go, of gateways and of engines."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^(|http://[^/:@ ]+:[0-9]{1,5})$")] = ""
    """`http://host:port` of a collector that takes OpenTelemetry's protocol over gRPC; empty: there are no spans.
    Without TLS: vLLM has no other way."""
    sampling: Annotated[float, Field(ge=0, le=100)] = 1
    """Percent of the requests without `traceparent`; one with it is sampled as its flag says."""


class Settings(ApiModel):
    """What the operator is told once, at its start."""

    tuneyard_namespace: str = "tuneyard-system"
    images: Images = Images()
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    model_pull_secrets: list[str] = []
    """Names of Secrets for pulling model pods' images, each in every namespace with models."""
    engine_env: dict[str, str] = {}
    """Environment of every engine container; a pool's own serving.env wins."""
    allowed_host_path_prefixes: list[str] = []
    """Absolute folders; none by default, because a hostPath lets who creates an adapter read the node."""
    allowed_cache_host_paths: list[str] = []
    """Absolute folders for serving.cache. Nobody's artifact volume may lie in one or above one: in there each namespace
    has a folder that no other may read."""
    agent_service_account_annotations: dict[str, str] = {}
    """Of the agents' service account in every namespace, for clouds that give accounts an identity (IRSA)."""
    agent_memory_limit: str = "1Gi"
    """Of each container that fetches, verifies or checks artifacts."""
    gpu_memory: str = ""
    """Of one GPU, for example 80Gi, where a pool does not say it; empty: nothing is compared with it."""
    hub_endpoint: str = ""
    """The mirror that stands for huggingface.co where a source names no endpoint; empty: huggingface.co itself."""
    gateway_url: str = "http://tuneyard-gateway.tuneyard-system.svc"
    """Base URL that clients in the cluster use, without /v1."""
    gateway_service: str = "http://tuneyard-gateway.tuneyard-system.svc:8080"
    """Base URL of the gateways' own Service, which gates ask: what stands before it may strip their headers."""
    leader_worker_sets: bool = False
    """Whether pools may have replicas that span nodes: the operator watches LeaderWorkerSets, and may make them."""
    pod_tls: bool = False
    """Whether model pods take TLS from gateways."""
    prometheus: PrometheusSettings = PrometheusSettings()
    tracing: TracingSettings = TracingSettings()
    watch_namespaces: list[str] = []
    """Empty: all namespaces."""
