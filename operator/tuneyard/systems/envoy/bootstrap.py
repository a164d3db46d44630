"""The static part of a gateway's Envoy: listener, filter chain, access log, and where its ADS server is.

Rules of the chain, in its order:
1. Envoy itself removes from every request what only the gateway may say (x-model, x-tuneyard-*, x-envoy-*), before any
   filter runs and before a route is looked for;
2. `extract` refuses what a gateway has sent (HOP_HEADER): an endpoint that is a gateway would make a loop without end;
   where clients need keys, it finds whose the request is and sets x-tenant (tenancy.py); where they may have tokens,
   a filter before it has proven those (tokens.py);
   then it finds the model in the body and sets x-model, which chooses the model's own small route table (SRDS);
3. `fault` does nothing but where a route says so: what a rehearsal puts into answers (api/drill.py); nor does `mirror`,
   which hands a copy of the request to the gateway process (mirroring.py);
4. `rewrite` puts the engine's name of the chosen revision into the body, and an adapter's system prompt into its chats,
   byte-exact otherwise, notes how the prompt begins where pods are chosen by that, waits where its adapter
   is loaded only now (it asks the gateway process over a Unix socket of its own), and opens the gate;
5. `gate` (rbac) refuses what no script has opened it for: Envoy passes a request on unmodified when a script fails, so
   that without this a body could reach an engine under the name that the client wrote;
6. `answer` watches the response for the access logs; 7. `router`.
Errors that Envoy answers by itself get OpenAI's shape; those of the scripts have it already (metadata `error`).
Routes and clusters come by delta-ADS over a Unix socket from the gateway process; Envoy does not listen before it has
them. It tells over the same socket what it sends where (loads.py); what becomes of it stands in a file (requestlog.py).
The admin
interface is a Unix socket too: nothing outside the pod reaches /config_dump, which holds engine keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuneyard.api import names
from tuneyard.planning.settings import TracingSettings
from tuneyard.systems.envoy.accesslogs import ADS_CLUSTER, METADATA, stdout_log
from tuneyard.systems.envoy.clientlimits import ClientLimits, limited
from tuneyard.systems.envoy.documents import (
    BODY_LIMIT,
    EXTENSIONS,
    IDLE_TIMEOUT,
    JSON_CONTENT,
    UNLIMITED,
    Json,
    error_body,
    extension,
    lua,
    pipe,
    script,
    set_header,
    static_cluster,
    status_is,
    tcp,
)
from tuneyard.systems.envoy.holding import hold_milliseconds
from tuneyard.systems.envoy.mirroring import mirror_cluster, mirror_filter, mirror_script
from tuneyard.systems.envoy.overload import overload_manager
from tuneyard.systems.envoy.priorities import priority_script
from tuneyard.systems.envoy.requestlog import FLUSHED_MILLISECONDS, request_log
from tuneyard.systems.envoy.tls import Tls, listeners
from tuneyard.systems.envoy.tokens import Tokens, token_clusters, token_filter
from tuneyard.systems.envoy.tracing import request_ids, tracing, tracing_clusters

RUN_DIRECTORY = "/run/tuneyard"
BOOTSTRAP_PATH = f"{RUN_DIRECTORY}/envoy.yaml"
ADS_SOCKET = f"{RUN_DIRECTORY}/ads.sock"
ADMIN_SOCKET = f"{RUN_DIRECTORY}/envoy-admin.sock"
HOLDING_SOCKET = f"{RUN_DIRECTORY}/holding.sock"
MIRROR_SOCKET = f"{RUN_DIRECTORY}/mirror.sock"
REQUEST_LOG = f"{RUN_DIRECTORY}/requests.log"

HOLDING_CLUSTER = "holding"
HOLD_PATH = "/hold"
HOLD_MODEL_HEADER, HOLD_REVISION_HEADER = "x-tuneyard-model", "x-tuneyard-revision"
HOLD_REFUSAL_HEADER, HOLD_RETRY_HEADER = "x-tuneyard-refusal", "x-tuneyard-retry"
"""How `rewrite` asks the gateway process whether a request may go on, and where the answer says why not, and after how
many seconds another one may be answered."""
FEEDBACK_PATH = "/feedback"
ASKING_TENANT_HEADER = "x-tuneyard-tenant"
"""How `extract` passes on to the same process what users thought of answers, and says of each question whose it is."""
HOLD_SECONDS = 60.0
"""How long a request may wait for its adapter where nobody says otherwise."""
NOWHERE = "nowhere"
"""A cluster without endpoints, for shares of traffic that nobody may serve: `rewrite` refuses before it is asked."""
STAT_PREFIX = "gateway"
GATE_HEADER = "x-tuneyard-gate"
HOP_HEADER = "tuneyard-hop"
"""On every request to an engine. Clients may say it too, and are refused: nothing removes it on the way in."""

DRAIN_SECONDS = 5

NO_TENANTS = "local caller_of, permits, within_limits, SPENDS\n"
"""Before `extract` where clients need no keys."""
_NO_TRACES = TracingSettings()
_LIMITS = ClientLimits()
_ADS_SOURCE: Json = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}


_ON_THE_WAY = ("jsontext", "prefix", "systemprompt", "external")
"""What `rewrite` does where a route asks for it."""


def gateway_scripts(
    hold_seconds: float = HOLD_SECONDS,
    tenants: str = NO_TENANTS,
    *,
    count_usage: bool = False,
    priorities: bool = False,
) -> dict[str, str]:
    """The gateway's Lua, by filter name; `hold_seconds`: how long a request may wait for an adapter.

    `tenants`: how `extract` finds whose a request is (tenancy.tenant_script). `count_usage`: every stream is asked for
    its usage. `priorities`: full pools refuse who may wait.
    """
    refusals, patience = script("refusals"), hold_milliseconds(hold_seconds)
    asking = script("usage_request")
    return {
        "extract": refusals
        + tenants
        + asking
        + f"local COUNT_USAGE = {str(count_usage).lower()}\n"
        + script("extract"),
        "mirror": mirror_script(),
        "rewrite": "".join(
            (
                refusals,
                priority_script(priorities),
                asking,
                f"local HOLD_MILLISECONDS = {patience}\n",
                *map(script, (*_ON_THE_WAY, "rewrite")),
            )
        ),
        "answer": script("usage_answer") + script("external_answer") + script("answer"),
    }


def envoy_arguments(config: str = BOOTSTRAP_PATH, *, concurrency: int | None = None) -> list[str]:
    """Arguments of the `envoy` program for this configuration; concurrency None: one worker per CPU it may use."""
    workers = ["--concurrency", str(concurrency)] if concurrency else ["--cpuset-threads"]
    flushed = ("--file-flush-interval-msec", str(FLUSHED_MILLISECONDS))
    return ["-c", config, *workers, "--drain-time-s", str(DRAIN_SECONDS), *flushed]


def _early_removals() -> Json:
    def remove(header: str) -> Json:
        return {"remove": header}

    def remove_prefix(prefix: str) -> Json:
        return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}

    mutations = [
        *(remove(h) for h in (names.MODEL_HEADER, "x-prefix", names.TENANT_HEADER)),
        *(remove_prefix(p) for p in ("x-tuneyard-", "x-envoy-")),
    ]
    return extension(
        "early_removals",
        "http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=mutations,
    )


def _gate() -> Json:
    opened = {"header": {"name": GATE_HEADER, "string_match": {"exact": "open"}}}
    return extension(
        "gate",
        "filters.http.rbac.v3.RBAC",
        rules={
            "action": "ALLOW",
            "policies": {"opened": {"permissions": [opened], "principals": [{"any": True}]}},
        },
    )


def _said_already() -> Json:
    """Bodies of the scripts pass as they are."""
    matcher = {"filter": METADATA, "path": [{"key": "error"}], "value": {"present_match": True}}
    return {
        "filter": {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": False}},
        "body_format_override": {
            "text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"},
            "content_type": "application/json",
        },
    }


def _mapper(
    condition: Json, message: str, type_: str, code: str, *, status: int | None = None, headers: tuple[Json, ...] = ()
) -> Json:
    return {
        "filter": condition,
        **({} if status is None else {"status_code": status}),
        "headers_to_add": [JSON_CONTENT, *headers],
        "body_format_override": {"json_format": error_body(message, type_, code)},
    }


def _local_replies() -> Json:
    """First match wins."""
    invalid, server = "invalid_request_error", "server_error"
    soon = (set_header("retry-after", "5"),)
    busy = "Nothing could take this request at the moment."
    no_route = {"response_flag_filter": {"flags": ["NR"]}}
    return {
        "mappers": [
            _said_already(),
            _mapper(no_route, "The model does not exist.", invalid, "model_not_found", status=404),
            _mapper(
                status_is("EQ", 403), "The gateway could not process the request.", server, "gateway_error", status=500
            ),
            _mapper(status_is("EQ", 404), "Unknown request URL.", invalid, "unknown_url"),
            _mapper(status_is("EQ", 408), "The request did not arrive in time.", invalid, "request_timeout"),
            _mapper(
                status_is("EQ", 413),
                f"The body is over the limit of {BODY_LIMIT // 1024 // 1024} MiB.",
                invalid,
                "request_too_large",
            ),
            # how Envoy ends requests that are still arriving when its memory does (overload.py)
            _mapper(status_is("EQ", 500), busy, server, "unavailable", status=503, headers=soon),
            # Envoy's word for transfer codings that it does not know: the client's mistake
            _mapper(status_is("EQ", 501), "The request is not valid.", invalid, "invalid_request", status=400),
            _mapper(status_is("EQ", 503), busy, server, "unavailable", headers=soon),
            _mapper(status_is("EQ", 504), "The answer did not come in time.", server, "timeout"),
            _mapper(status_is("GE", 500), "The gateway could not process the request.", server, "gateway_error"),
            _mapper(status_is("GE", 400), "The request is not valid.", invalid, "invalid_request"),
        ]
    }


def _connection_manager(
    scripts: Mapping[str, str],
    access_log: list[Json],
    traces: TracingSettings,
    limits: ClientLimits,
    tokens: Tokens | None,
) -> Json:
    return {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": STAT_PREFIX,
        "codec_type": "AUTO",
        "server_name": "tuneyard",
        "use_remote_address": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": IDLE_TIMEOUT,
        **limited(limits),
        "drain_timeout": "5s",
        "early_header_mutation_extensions": [_early_removals()],
        "local_reply_config": _local_replies(),
        "access_log": access_log,
        **request_ids(),
        **tracing(traces, METADATA),
        "scoped_routes": {
            "name": "models",
            "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": names.MODEL_HEADER, "index": 0}}]},
            "rds_config_source": _ADS_SOURCE,
            "scoped_rds": {"scoped_rds_config_source": _ADS_SOURCE},
        },
        "http_filters": [
            *([] if tokens is None else [token_filter(tokens, HOLDING_CLUSTER)]),
            lua("extract", scripts["extract"]),
            # does nothing but where a route says so (a rehearsal)
            extension("fault", "filters.http.fault.v3.HTTPFault"),
            _unrouting(mirror_filter(scripts["mirror"])),
            _unrouting(lua("rewrite", scripts["rewrite"])),
            _gate(),
            _unrouting(lua("answer", scripts["answer"])),
            extension("router", "filters.http.router.v3.Router", suppress_envoy_headers=True),
        ],
    }


def _unrouting(filter_: Json) -> Json:
    """The route stays as chosen whatever headers this filter sets: body and pod must be of one revision."""
    return {**filter_, "typed_config": {**filter_["typed_config"], "clear_route_cache": False}}


def _ads_cluster(socket: str) -> Json:
    options = {
        "@type": EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {
            "http2_protocol_options": {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
        },
    }
    return static_cluster(
        ADS_CLUSTER,
        pipe(socket),
        typed_extension_protocol_options={"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    )


def bootstrap(
    node_id: str,
    *,
    ads_socket: str = ADS_SOCKET,
    port: int = names.GATEWAY_PORT,
    admin_socket: str = ADMIN_SOCKET,
    holding_socket: str = HOLDING_SOCKET,
    mirror_socket: str = MIRROR_SOCKET,
    listen: str = "0.0.0.0",
    memory: int = 0,
    hold_seconds: float = HOLD_SECONDS,
    tenants: str = NO_TENANTS,
    scripts: Mapping[str, str] | None = None,
    access_log: list[Json] | None = None,
    traces: TracingSettings = _NO_TRACES,
    requests: str = REQUEST_LOG,
    count_usage: bool = False,
    tls: Tls | None = None,
    limits: ClientLimits = _LIMITS,
    tokens: Tokens | None = None,
    priorities: bool = False,
) -> Json:
    """The whole bootstrap, as `envoy -c` reads it (JSON or YAML).

    `memory`: bytes that Envoy's container may use, 0 where nobody says. `hold_seconds`: how long a request may wait for
    its adapter to be loaded. `tenants`: how whose a request is is found (tenancy.tenant_script).
    `traces`: where spans go (tracing.py).
    `scripts` replaces scripts by filter name; `access_log` replaces the JSON log on stdout. `requests`: the file that
    the gateway process reads (requestlog.py). `count_usage`: every stream is asked for its usage.
    `tls`: the port for clients who speak TLS; the files that it names (tls.sources) must be there when Envoy starts.
    `limits`: what a client's connection may take (clientlimits.py).
    `tokens`: which are taken in the place of keys. `priorities`: full pools refuse who may wait.
    """
    chain = _connection_manager(
        {
            **gateway_scripts(hold_seconds, tenants, count_usage=count_usage, priorities=priorities),
            **(scripts or {}),
        },
        [*(stdout_log() if access_log is None else access_log), request_log(requests)],
        traces,
        limits,
        tokens,
    )
    listener: Json = {
        "name": "clients",
        "address": tcp(listen, port),
        "per_connection_buffer_limit_bytes": BODY_LIMIT,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": chain}]}],
    }
    holding = static_cluster(HOLDING_CLUSTER, pipe(holding_socket), circuit_breakers=UNLIMITED)
    nowhere: Json = {"name": NOWHERE, "type": "STATIC", "load_assignment": {"cluster_name": NOWHERE}}
    return {
        "node": {"id": node_id, "cluster": "tuneyard-gateway"},
        "admin": {"address": pipe(admin_socket, mode=0o600)},
        "overload_manager": overload_manager(memory),
        "static_resources": {
            "listeners": listeners(listener, tls),
            "clusters": [
                *(_ads_cluster(ads_socket), holding, mirror_cluster(mirror_socket), nowhere),
                *tracing_clusters(traces),
                *token_clusters(tokens),
            ],
        },
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": ADS_CLUSTER}}],
            },
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "grpc_services": [
                    {
                        "envoy_grpc": {
                            "cluster_name": ADS_CLUSTER,
                            # its default grows to 30 s: so long an edit would wait after the process was away
                            "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}},
                        }
                    }
                ],
            },
            "cds_config": _ADS_SOURCE,
        },
    }
