"""The Envoy in front of every engine: the only way to it from outside its pod.

Rules:
- an allow list by exact path and method; everything else is 404, whatever key comes with it, because engines leave
  loading, unloading and inference routes open beside their key (engines.md, fact 3);
- the engine demands the key itself; the front adds none and knows none;
- while the runtime key `tuneyard.draining` is 100, new inference requests get 503 with `x-tuneyard-draining: 1`;
  running ones finish. Health and metrics are answered until the end;
- while the runtime key `tuneyard.unhealthy` is 100, `GET /health` is 503: the kubelet restarts an engine that is well
  by its own word only;
- an answer that another pod could give (engine gone, stopping or full, adapter unknown) is a 503 with
  `x-tuneyard-retry: <why>`, only ever before the first byte of an answer;
- inference goes by the cluster `engine`, everything else by `engine_probe` (same address), so that
  `cluster.engine.upstream_rq_active` and `cluster.engine.upstream_rq_total` count users' requests alone. Requests that
  were refused while draining are `http.front.downstream_rq_completed`'s business, not the engine's.

Some engines demand no key and answer for any model: then the front does what these leave out (`Guarding`).
Where it has a certificate it takes TLS on the same port, beside plain HTTP (podtls.py).
The configuration is static: no xDS, nothing to be away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tuneyard.api import names
from tuneyard.systems.envoy.documents import (
    BODY_LIMIT,
    DRAINING_HEADER,
    EXTENSIONS,
    IDLE_TIMEOUT,
    JSON_CONTENT,
    RETRY_HEADER,
    UNLIMITED,
    Json,
    error_body,
    error_text,
    extension,
    lua,
    pipe,
    script,
    set_header,
    static_cluster,
    tcp,
)
from tuneyard.systems.envoy.listening import everywhere
from tuneyard.systems.envoy.podtls import taking_both

FRONT_CONFIG_PATH = "/run/tuneyard/front.yaml"
FRONT_MODELS_PATH = "/run/tuneyard/front-models"
FRONT_ADMIN_SOCKET = "/run/tuneyard/front-admin.sock"
DRAINING_KEY = "tuneyard.draining"
"""Runtime key: 100 refuses new inference requests, 0 takes them (POST /runtime_modify?tuneyard.draining=100)."""
UNHEALTHY_KEY = "tuneyard.unhealthy"
"""Runtime key: 100 fails the health checks, 0 leaves them to the engine."""
ACTIVE_REQUESTS_STAT = "cluster.engine.upstream_rq_active"
TOTAL_REQUESTS_STAT = "cluster.engine.upstream_rq_total"

INFERENCE_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
PROBE_PATHS = ("/v1/models", "/health", "/metrics")

_KEEP_ALIVE = "3s"
"""Below the engine's 5 s, so that no request is sent on a connection that the engine is just closing."""


def _match(path: str, method: str, **more: Any) -> Json:
    headers = [{"name": ":method", "string_match": {"exact": method}}]
    return {"path": path, "headers": headers, **more}


def _switched(path: str, method: str, key: str) -> Json:
    """A match that holds while the runtime key is 100."""
    off = {"numerator": 0, "denominator": "HUNDRED"}
    return _match(path, method, runtime_fraction={"default_value": off, "runtime_key": key})


def _refuse_while_draining(path: str) -> Json:
    message = "This pod is leaving and takes no new requests."
    return {
        "match": _switched(path, "POST", DRAINING_KEY),
        "direct_response": {"status": 503, "body": {"inline_string": error_text(message, "server_error", "draining")}},
        "response_headers_to_add": [JSON_CONTENT, set_header(DRAINING_HEADER, "1")],
    }


def _unhealthy() -> Json:
    text = "The agent found that this engine generates nothing any more; it is to be restarted.\n"
    return {
        "match": _switched("/health", "GET", UNHEALTHY_KEY),
        "direct_response": {"status": 503, "body": {"inline_string": text}},
    }


def _allow(path: str, method: str, cluster: str, engine_path: str | None = None) -> Json:
    """`engine_path`: what the engine calls it, where that is something else."""
    rewrite = {"prefix_rewrite": engine_path} if engine_path not in (None, path) else {}
    return {
        "match": _match(path, method),
        "route": {"cluster": cluster, "timeout": "0s", "idle_timeout": IDLE_TIMEOUT, **rewrite},
    }


def _refuse_the_rest() -> Json:
    text = error_text("Unknown request URL.", "invalid_request_error", "unknown_url")
    return {
        "match": {"prefix": "/"},
        "direct_response": {"status": 404, "body": {"inline_string": text}},
        "response_headers_to_add": [JSON_CONTENT],
    }


def _engine_gone() -> Json:
    """Local replies for an engine that refuses connections or ends before it answers."""
    return {
        "filter": {"response_flag_filter": {"flags": ["UF", "UC", "UR", "UH", "UO"]}},
        "status_code": 503,
        "headers_to_add": [JSON_CONTENT, set_header(RETRY_HEADER, "engine-gone")],
        "body_format_override": {
            "json_format": error_body("The engine of this pod does not answer.", "server_error", "engine_gone")
        },
    }


def _unless_successful(filter_: Json) -> Json:
    """The filter, skipped for answers 2xx: they pass without waking a script."""
    skip = {"name": "skip", "typed_config": {"@type": EXTENSIONS + "filters.common.matcher.action.v3.SkipFilter"}}
    status_class = {
        "name": "status_class",
        "typed_config": {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpResponseStatusCodeClassMatchInput"},
    }
    return {
        "name": filter_["name"],
        "typed_config": {
            "@type": EXTENSIONS + "common.matching.v3.ExtensionWithMatcher",
            "extension_config": filter_,
            "xds_matcher": {
                "matcher_tree": {"input": status_class, "exact_match_map": {"map": {"2xx": {"action": skip}}}}
            },
        },
    }


@dataclass(frozen=True)
class Guarding:
    """What the front does for an engine that demands no key and answers for any model (lua/front_models.lua)."""

    models: str = FRONT_MODELS_PATH
    """The file that says what is served and what the engine calls it."""
    health_path: str = "/health"
    """What the engine calls /health."""
    metrics: bool = True
    """Whether it has /metrics; else the front's are none, and who scrapes the pod finds it well."""


def _guarding(guarding: Guarding) -> Json:
    settings = f"local MODELS, KEY = {json.dumps(guarding.models)}, os.getenv('TUNEYARD_ENGINE_KEY')\n"
    return lua("front_models", settings + script("jsontext") + script("front_models"))


def _no_metrics() -> Json:
    return {
        "match": _match("/metrics", "GET"),
        "direct_response": {"status": 200, "body": {"inline_string": "# this engine tells no metrics\n"}},
        "response_headers_to_add": [set_header("content-type", "text/plain; version=0.0.4; charset=utf-8")],
    }


def _connection_manager(guarding: Guarding | None) -> Json:
    health = guarding.health_path if guarding else "/health"
    routes = [
        *(_refuse_while_draining(path) for path in INFERENCE_PATHS),
        *(_allow(path, "POST", "engine") for path in INFERENCE_PATHS),
        _unhealthy(),
        *([_no_metrics()] if guarding and not guarding.metrics else []),
        *(_allow(path, "GET", "engine_probe", health if path == "/health" else path) for path in PROBE_PATHS),
        _refuse_the_rest(),
    ]
    return {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "codec_type": "AUTO",
        "generate_request_id": False,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "stream_idle_timeout": IDLE_TIMEOUT,
        "request_headers_timeout": "10s",
        "local_reply_config": {"mappers": [_engine_gone()]},
        "route_config": {
            "name": "front",
            "virtual_hosts": [{"name": "front", "domains": ["*"], "routes": routes}],
            "request_headers_to_remove": ["x-envoy-expected-rq-timeout-ms"],
        },
        "http_filters": [
            _unless_successful(lua("front_response", script("front_response"))),
            *([_guarding(guarding)] if guarding else []),
            extension("router", "filters.http.router.v3.Router", suppress_envoy_headers=True),
        ],
    }


def _engine(name: str, address: str, port: int, *, reuses: bool) -> Json:
    """`reuses`: connections take more than one request."""
    options = {
        "@type": EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {
            "idle_timeout": _KEEP_ALIVE,
            **({} if reuses else {"max_requests_per_connection": 1}),
        },
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return static_cluster(
        name,
        tcp(address, port),
        circuit_breakers=UNLIMITED,
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )


def front_config(
    *,
    listen: str | None = None,
    port: int = names.FRONT_PORT,
    engine_address: str = "127.0.0.1",
    engine_port: int = names.ENGINE_PORT,
    admin_socket: str = FRONT_ADMIN_SOCKET,
    certificate: str = "",
    guarding: Guarding | None = None,
) -> Json:
    """The whole configuration, as `envoy -c` reads it (JSON or YAML); `listen` None: on all addresses.

    `guarding`: what it does for an engine that does not guard itself; its environment then has TUNEYARD_ENGINE_KEY.
    `certificate`: file that says where the front's certificate is (podtls.front_source), empty: it takes no TLS.
    """
    listener: Json = {
        "name": "front",
        "address": tcp(listen or everywhere(), port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": _connection_manager(guarding)}]}],
        **({"per_connection_buffer_limit_bytes": BODY_LIMIT} if guarding else {}),
    }
    return {
        "node": {"id": "front", "cluster": "tuneyard-front"},
        "admin": {"address": pipe(admin_socket, mode=0o600)},
        "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},
        "static_resources": {
            "listeners": [taking_both(listener, certificate) if certificate else listener],
            "clusters": [
                # llama-server closes a connection after each stream without saying so before
                _engine("engine", engine_address, engine_port, reuses=guarding is None),
                _engine("engine_probe", engine_address, engine_port, reuses=guarding is None),
            ],
        },
    }
