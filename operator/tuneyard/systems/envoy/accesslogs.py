"""What Envoy tells of each request to whoever reads its output (requestlog.py: to the gateway process)."""

from __future__ import annotations

from tuneyard.api import names
from tuneyard.systems.envoy.documents import Json, extension

ADS_CLUSTER = "xds"
METADATA = "tuneyard"
"""Namespace of the scripts' dynamic metadata and of the endpoints' metadata."""


def _metadata(key: str) -> str:
    return f"%DYNAMIC_METADATA({METADATA}:{key})%"


LOG_FORMAT: Json = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%E3SZ)%",
    "request_id": "%REQ(x-request-id)%",
    "traceparent": "%REQ(traceparent):55%",
    "trace_id": "%TRACE_ID%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "method": "%REQ(:method)%",
    "path": "%PATH(NQ:PATH)%",
    "tenant": f"%REQ({names.TENANT_HEADER})%",
    "model": f"%REQ({names.MODEL_HEADER})%",
    "deployment": "%CLUSTER_METADATA(tuneyard:deployment)%",
    "revision": "%RESP(x-revision)%",
    "adapter": "%CLUSTER_METADATA(tuneyard:adapter)%",
    "adapter_digest": "%CLUSTER_METADATA(tuneyard:adapter_digest)%",
    "base_model": "%CLUSTER_METADATA(tuneyard:base_model)%",
    "base_digest": "%CLUSTER_METADATA(tuneyard:base_digest)%",
    "pod": "%UPSTREAM_METADATA(tuneyard:pod)%",
    "address": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "error": _metadata("error"),
    "out": _metadata("out"),
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "headers_ms": "%RESPONSE_DURATION%",
    "ttft_ms": _metadata("ttft_ms"),
    "itl_ms": _metadata("itl_ms"),
    "chunks": _metadata("chunks"),
    "prompt_tokens": _metadata("usage:prompt_tokens"),
    "completion_tokens": _metadata("usage:completion_tokens"),
}
"""One line per request on stdout. No prompt, no answer, no key: nothing here comes from a body or from credentials."""


def stdout_log() -> list[Json]:
    """One JSON line of LOG_FORMAT per request."""
    return [extension("access", "access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": LOG_FORMAT})]
