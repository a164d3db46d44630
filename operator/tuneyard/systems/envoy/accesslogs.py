"""What Envoy tells of each request to whoever reads its output (requestlog.py: to the gateway process)."""

from __future__ import annotations

from enum import StrEnum

from tuneyard.api import names
from tuneyard.systems.envoy.documents import Json, extension, status_is

ADS_CLUSTER = "xds"
METADATA = "tuneyard"
"""Namespace of the scripts' dynamic metadata and of the endpoints' metadata."""


def _metadata(key: str) -> str:
    return f"%DYNAMIC_METADATA({METADATA}:{key})%"


LOG_FORMAT: Json = {
    "time": "%START_TIME%",
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


class AccessLog(StrEnum):
    """Of which requests Envoy's output tells."""

    ALL = "All"
    ERRORS = "Errors"
    """Those with a status of 400 and above, those that did not end as they should, and streams that told an error."""
    NONE = "None"


def _failed() -> Json:
    matcher = {"filter": METADATA, "path": [{"key": "failed"}], "value": {"present_match": True}}
    told = {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}}
    return {"or_filter": {"filters": [status_is("GE", 400), {"response_flag_filter": {}}, told]}}


def stdout_log(of: AccessLog = AccessLog.ALL) -> list[Json]:
    """One JSON line of LOG_FORMAT per request."""
    if of is AccessLog.NONE:
        return []
    log = extension("access", "access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": LOG_FORMAT})
    return [log if of is AccessLog.ALL else {**log, "filter": _failed()}]
