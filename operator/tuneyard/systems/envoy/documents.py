"""Pieces of Envoy configuration as JSON that several of this folder's documents use.

Everything here is data for `envoy --mode validate`: field names are Envoy's (snake_case), durations are texts.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

Json = dict[str, Any]

EXTENSIONS = "type.googleapis.com/envoy.extensions."

RETRY_HEADER = "x-tuneyard-retry"
"""Set by a pod's front on an answer that another pod should be asked for; the value says why."""
DRAINING_HEADER = "x-tuneyard-draining"
"""Set by a pod's front on the 503 with which it refuses new requests while its running ones finish."""

GATE_ROUTES = "gate/"
"""How the names of those routes begin that only requests with a gate's token take."""

IDLE_TIMEOUT = "600s"
"""How long a stream may be silent, for example while a long prompt waits in the engine's queue."""
BODY_LIMIT = 8 * 1024 * 1024
"""Bytes of a request's body; 413 above."""


def extension(name: str, type_: str, **config: Any) -> Json:
    """A named extension with its typed configuration; `type_` is the type's name after envoy.extensions."""
    return {"name": name, "typed_config": {"@type": EXTENSIONS + type_, **config}}


@cache
def script(name: str) -> str:
    """The text of one of the Lua files in this folder, without its leading comment lines."""
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def lua(name: str, source: str) -> Json:
    """A Lua filter; its errors are counted in `<scope>.lua.<name>.errors`."""
    return extension(name, "filters.http.lua.v3.Lua", default_source_code={"inline_string": source}, stat_prefix=name)


def set_header(key: str, value: str) -> Json:
    """Set a header, whatever it was."""
    return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


JSON_CONTENT = set_header("content-type", "application/json")


def error_body(message: str, type_: str, code: str | None, param: str | None = None) -> Json:
    """An error in OpenAI's shape, which is what every client library can read."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def error_text(message: str, type_: str, code: str | None, param: str | None = None) -> str:
    """The same as text."""
    return json.dumps(error_body(message, type_, code, param))


def status_is(op: str, status: int) -> Json:
    """A filter of local replies by status, `op` is EQ, GE or LE."""
    comparison = {"op": op, "value": {"default_value": status, "runtime_key": f"tuneyard.status.{op}.{status}"}}
    return {"status_code_filter": {"comparison": comparison}}


def tcp(address: str, port: int) -> Json:
    """A TCP address; `::` takes IPv4 too."""
    more = {"ipv4_compat": True} if address == "::" else {}
    return {"socket_address": {"address": address, "port_value": port, **more}}


def pipe(path: str, mode: int | None = None) -> Json:
    """A Unix socket; `mode` only where Envoy itself makes it."""
    return {"pipe": {"path": path} | ({} if mode is None else {"mode": mode})}


def static_cluster(name: str, address: Json, **settings: Any) -> Json:
    """A cluster of one fixed endpoint."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        **settings,
    }


UNLIMITED = {
    "thresholds": [
        {
            "max_connections": 1_000_000,
            "max_pending_requests": 1_000_000,
            "max_requests": 1_000_000,
            "max_retries": 1_000_000,
        }
    ]
}
"""Circuit breakers out of the way: the engine queues by itself."""
