"""Routes -> xDS resources, as JSON that reads like Envoy's documentation.

Rules:
- a cluster is one revision with one contents (pool, engine name, base's digest, a rehearsal's fault), whose pods are
  chosen in one way: all are in its name, so that a change of any of them is another cluster, warmed before the routes
  that need it, key and engine name always go to pods that take them, and each answer says which contents gave it;
- a model is one ScopedRouteConfiguration and one RouteConfiguration, both of its name; `-` is the list of models;
- no dots in cluster names (they would break apart in Prometheus);
- an answer is tried again on another pod only while no byte of it was sent on: connection refused or reset, or a front
  that says so by header. Nothing is tried again because of a status alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tuneyard.api import names
from tuneyard.api.drill import Fault
from tuneyard.planning.endpoints import Endpoint
from tuneyard.planning.routes import ModelRoutes, RevisionRoute
from tuneyard.planning.stickiness import places, runs
from tuneyard.planning.systemprompt import message_of
from tuneyard.systems.envoy.accesslogs import METADATA
from tuneyard.systems.envoy.balancing import balanced, balancing_mark, by_prefix, contents_in, from_users, hashed_by
from tuneyard.systems.envoy.bootstrap import GATE_HEADER, HOP_HEADER, NOWHERE
from tuneyard.systems.envoy.deadlines import tried
from tuneyard.systems.envoy.documents import (
    DRAINING_HEADER,
    EXTENSIONS,
    GATE_ROUTES,
    JSON_CONTENT,
    RETRY_HEADER,
    Json,
    error_text,
    set_header,
)
from tuneyard.systems.envoy.external import TELLTALES, credentials, external_cluster, sent_out, untraced
from tuneyard.systems.envoy.holding import held, silence_of
from tuneyard.systems.envoy.mirroring import copying
from tuneyard.systems.envoy.outside import SYSTEM_CA
from tuneyard.systems.envoy.podtls import spoken_to, to_pods

LIST = "-"
"""Scope of requests that lead to no model."""
WEIGHTS_ROUTE = "weights"
"""Name of the routes that choose the revision, by chance or by user; on every other one the request has named it."""

EngineKey = Callable[[str, str], str]
"""The engine key of (namespace, pool)."""
GateToken = Callable[[str, str], str]
"""The token of the gates of (namespace, ModelDeployment)."""

_CLIENT_CREDENTIALS = ("cookie", "x-api-key", "api-key")
"""Besides authorization, which is replaced: what clients may have meant for somebody else."""


@dataclass(frozen=True)
class ModelResources:
    """The xDS resources of one model, each by its name."""

    scopes: dict[str, Json] = field(default_factory=dict)
    routes: dict[str, Json] = field(default_factory=dict)
    clusters: dict[str, Json] = field(default_factory=dict)
    assignments: dict[str, Json] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    """Clusters that the routes name: those must be warm before the routes are sent."""


def cluster_name(model: ModelRoutes, revision: RevisionRoute) -> str:
    """Name of a revision's cluster."""
    answers = f"{model.namespace}/{model.deployment}/{revision.name}/{revision.contents}"
    return f"{answers}{balancing_mark(model.affinity)}".replace(".", "~")


class Served(NamedTuple):
    """Whose a cluster is."""

    deployment: str
    """`namespace/name` of the ModelDeployment."""
    revision: str
    contents: str
    """See RevisionRoute.contents."""


def served_by(cluster: str) -> Served | None:
    """Whose the cluster of this name is; None for one that is no revision's."""
    parts = cluster.replace("~", ".").split("/")
    return Served(f"{parts[0]}/{parts[1]}", parts[2], contents_in(parts[3])) if len(parts) == 4 else None


def _cluster(name: str, model: ModelRoutes, revision: RevisionRoute, tls: Json, authorities: str) -> Json:
    options = {
        "@type": EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"idle_timeout": "60s"},
        "explicit_http_config": {"http_protocol_options": {}},
        **({} if revision.external is None else {"http_filters": untraced()}),
    }
    thresholds = {
        "max_connections": 100_000,
        "max_pending_requests": 100_000,
        "max_requests": 100_000,
        "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 100},
    }
    cluster = {
        "name": name,
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}},
        "load_balancing_policy": {"policies": [{"typed_extension_config": balanced(model.affinity)}]},
        "circuit_breakers": {"thresholds": [thresholds]},
        "outlier_detection": _ejections(),
        **_LOST_NODES,
        **tls,
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "metadata": {"filter_metadata": {METADATA: _told_of(model, revision)}},
    }
    if revision.external is None:
        return cluster
    of_pods = ("eds_cluster_config", "load_balancing_policy", "outlier_detection", "transport_socket_matches")
    common = {field: value for field, value in cluster.items() if field not in of_pods}
    return common | external_cluster(name, revision.external, authorities)


def _told_of(model: ModelRoutes, revision: RevisionRoute) -> Json:
    """What the access log says of a request to this cluster."""
    told = {"deployment": f"{model.namespace}/{model.deployment}", "revision": revision.name, "pool": revision.pool}
    if revision.external is not None:
        return {"deployment": told["deployment"], "revision": revision.name, "external": revision.external.authority}
    if revision.digest and revision.adapter:
        told |= {"adapter": revision.adapter, "adapter_digest": revision.digest}
        if revision.base_model and revision.base_digest:
            told |= {"base_model": revision.base_model, "base_digest": revision.base_digest}
    elif revision.digest and revision.engine_name:  # engines know a base by its object's name
        told |= {"base_model": revision.engine_name, "base_digest": revision.digest}
    return told


_IPPROTO_TCP, _TCP_USER_TIMEOUT = 6, 18

_LOST_NODES: Json = {
    # asks a silent peer after 5 s, then every 3 s
    "upstream_connection_options": {
        "tcp_keepalive": {"keepalive_time": 5, "keepalive_interval": 3, "keepalive_probes": 3}
    },
    # and nothing that was sent stays without an acknowledgement for longer (milliseconds)
    "upstream_bind_config": {
        "socket_options": [
            {
                "description": "TCP_USER_TIMEOUT",
                "level": _IPPROTO_TCP,
                "name": _TCP_USER_TIMEOUT,
                "int_value": 15_000,
                "state": "STATE_PREBIND",
            }
        ]
    },
}
"""A node that is lost closes no connection: without this a request on a kept one hangs until its idle timeout.

The kernel of the pod answers for an engine that is only slow. One that takes no bytes for so long counts as lost too:
the request is tried on another pod.
"""


def _ejections() -> Json:
    """Only pods whose connections fail or break are left out for a while, and never more than half of them.

    An engine's own errors never eject: one tenant's bad requests would take pods from the others.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 3,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "2s",
        "max_ejection_time": "10s",
        "max_ejection_percent": 50,
    }


def _lb_endpoint(endpoint: Endpoint) -> Json:
    host, _, port = endpoint.address.rpartition(":")
    return {
        "endpoint": {"address": {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}},
        "metadata": {"filter_metadata": {METADATA: {"pod": endpoint.pod}, **spoken_to(endpoint)}},
    }


def _assignment(name: str, endpoints: Iterable[Endpoint]) -> Json:
    found = [_lb_endpoint(e) for e in endpoints]
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": found}] if found else []}


def _rewriting(**context: str) -> Json:
    """What the script `rewrite` is told on this route."""
    return {"rewrite": {"@type": EXTENSIONS + "filters.http.lua.v3.LuaPerRoute", "filter_context": context}}


def _to_revision(model: ModelRoutes, revision: RevisionRoute, key: EngineKey, *, gate: bool = False) -> Json:
    """What is done to a request that goes to this revision, on a weighted cluster or on a route."""
    told, external = held(model, revision), revision.external
    if revision.engine_name is None or (external is not None and external.access.problem):
        return {"typed_per_filter_config": _rewriting(refusal="unserved", **told)}
    if revision.fault is not None and revision.fault.errors:
        told |= {"errors": str(revision.fault.errors)}
    if revision.prompt is not None:
        always = "AlwaysInChats" if gate else "Always"
        told |= {"system": message_of(revision.prompt), "apply": always if revision.prompt.always else "IfAbsent"}
    if "errors" in told or "system" in told:  # whose the answers are that it gives no engine
        told |= {"cluster": cluster_name(model, revision)}
    if by_prefix(model.affinity) and external is None:
        told |= {"affinity": "prefix"}
    if external is not None:
        told |= sent_out(external)
        identifies = credentials(external)
    else:
        told |= {"pool": f"{model.namespace}/{revision.pool}"}
        identifies = [set_header("authorization", "Bearer " + key(model.namespace, revision.pool))]
    return {
        "typed_per_filter_config": {**_rewriting(engine=revision.engine_name, **told), **_faulty(revision.fault)},
        "request_headers_to_add": identifies,
        **_answering(revision),
    }


def _faulty(fault: Fault | None) -> Json:
    """What the filter `fault` does to requests for this revision: a rehearsal's delay. Its errors are `rewrite`'s."""
    if fault is None or not fault.delay_ms:
        return {}
    delay = {"fixed_delay": f"{fault.delay_ms / 1000:.3f}s", "percentage": {"numerator": 100}}
    return {"fault": {"@type": EXTENSIONS + "filters.http.fault.v3.HTTPFault", "delay": delay}}


def _answering(revision: RevisionRoute) -> Json:
    """Headers by which an answer can be traced; what no bytes are known for, no engine may say of itself."""
    added = [set_header(names.REVISION_HEADER, revision.name)]
    removed = {names.ADAPTER_HEADER, names.BASE_HEADER, *(TELLTALES if revision.external else ())}
    if revision.digest:
        header = names.ADAPTER_HEADER if revision.adapter else names.BASE_HEADER
        added.append(set_header(header, f"{revision.adapter or revision.engine_name}@{revision.digest}"))
        removed.remove(header)
    return {"response_headers_to_add": added, "response_headers_to_remove": sorted(removed)}


def _by_weight(model: ModelRoutes, key: EngineKey) -> list[Json]:
    """By chance, and before that, where users stay, by user."""
    to = {r.name: _mirrored(model, r, _to_revision(model, r, key)) for r in model.revisions if r.weight}
    clusters = {r.name: cluster_name(model, r) for r in model.revisions}

    def entry(name: str | None, weight: int) -> Json:
        if name is None:
            refused = _rewriting(refusal="unserved")
            return {"name": NOWHERE, "weight": weight, "typed_per_filter_config": refused}
        return {"name": clusters[name], "weight": weight, **to[name]}

    weights = [*model.weights.items(), (None, model.unserved)]
    by_chance = _weighted(model, [entry(name, weight) for name, weight in weights if weight])
    if model.sticky_by is None:
        return [by_chance]
    owners = runs(places(f"{model.namespace}/{model.deployment}", model.stable, model.weights))
    return [_weighted(model, [entry(name, weight) for name, weight in owners], model.sticky_by), by_chance]


def _weighted(model: ModelRoutes, clusters: list[Json], user: str | None = None) -> Json:
    """A route that chooses among these, by chance or by the header that says whose a request is."""
    if user is None:
        return {
            "name": WEIGHTS_ROUTE,
            "match": {"prefix": "/v1/"},
            "route": {"weighted_clusters": {"clusters": clusters}, **tried(model.timeout, silence_of(model))},
        }
    weighted = {"clusters": clusters, "use_hash_policy": True}
    return {
        "name": WEIGHTS_ROUTE,
        "match": {"prefix": "/v1/", "headers": [from_users(user)]},
        "route": {
            "weighted_clusters": weighted,
            "hash_policy": hashed_by(user),
            **tried(model.timeout, silence_of(model)),
        },
    }


def _mirrored(model: ModelRoutes, revision: RevisionRoute, does: Json) -> Json:
    """The same, with copies for another revision. Of what is held or refused none is made."""
    mirror = model.mirror
    if mirror is None or not mirror.active or mirror.revision == revision.name:
        return does
    if revision.held or revision.engine_name is None:
        return does
    filters = does["typed_per_filter_config"] | copying(model.model, revision.name, mirror.revision, mirror.percent)
    return does | {"typed_per_filter_config": filters}


def _to_named(model: ModelRoutes, key: EngineKey, kind: str, *shown: Json) -> list[Json]:
    """A route to each revision, for requests that name it; `shown`: the other headers that they need."""
    return [
        {
            "name": f"{kind}{revision.name}",
            "match": {
                "prefix": "/v1/",
                "headers": [{"name": names.REVISION_HEADER, "string_match": {"exact": revision.name}}, *shown],
            },
            "route": {"cluster": cluster_name(model, revision), **tried(model.timeout, silence_of(model))},
            **_to_revision(model, revision, key, gate=kind == GATE_ROUTES),
        }
        for revision in model.revisions
    ]


def _by_header(model: ModelRoutes, key: EngineKey) -> list[Json]:
    """Routes for requests that name a revision; one that does not exist is refused rather than replaced."""
    named = {"name": names.REVISION_HEADER, "present_match": True}
    return [*_to_named(model, key, "revision/"), _unknown_revision(named)]


def _unknown_revision(shown: Json) -> Json:
    return {
        "name": "revision/-",
        "match": {"prefix": "/v1/", "headers": [shown]},
        "route": {"cluster": NOWHERE},
        "typed_per_filter_config": _rewriting(refusal="revision"),
    }


def _by_gate(model: ModelRoutes, key: EngineKey, token: str) -> list[Json]:
    """Routes for gates, whose token stands for the right to name a revision; without it they do not exist.

    It stands for nothing else: with it a request never gets what chance or a user's place would give it.
    """
    shown = {"name": names.GATE_TOKEN_HEADER, "string_match": {"exact": token}}
    return [*_to_named(model, key, GATE_ROUTES, shown), _unknown_revision(shown)]


def _described(model: ModelRoutes) -> Json:
    return {"id": model.model, "object": "model", "created": model.created, "owned_by": "tuneyard"}


def _answer(name: str, path: str, status: int, text: str) -> Json:
    return {
        "name": name,
        "match": {"path": path},
        "direct_response": {"status": status, "body": {"inline_string": text}},
        "response_headers_to_add": [JSON_CONTENT],
    }


def _route_configuration(name: str, routes: list[Json]) -> Json:
    return {
        "name": name,
        "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
        "request_headers_to_add": [set_header(HOP_HEADER, "1")],
        # x-model and what gates say of themselves stay: access logs read them
        "request_headers_to_remove": [
            names.REVISION_HEADER,
            names.GATE_TOKEN_HEADER,
            GATE_HEADER,
            *_CLIENT_CREDENTIALS,
        ],
        "response_headers_to_remove": [RETRY_HEADER, DRAINING_HEADER],
    }


def _scope(name: str) -> Json:
    return {"name": name, "route_configuration_name": name, "key": {"fragments": [{"string_key": name}]}}


def model_resources(
    model: ModelRoutes,
    key: EngineKey,
    gate_token: GateToken | None = None,
    *,
    authority: str = "",
    tls_expected: bool = False,
    authorities: str = SYSTEM_CA,
) -> ModelResources:
    """The resources of one model; `authority` in PEM: who has signed the certificates of its pods, if they take TLS.

    `authorities`: the file with those who sign certificates of external APIs.
    """

    def tls(revision: RevisionRoute) -> Json:
        return to_pods(model.namespace, revision.pool, revision.endpoints, authority, tls_expected)

    gates = _by_gate(model, key, gate_token(model.namespace, model.deployment)) if model.gated and gate_token else []
    routes = [
        _answer("model", "/v1/models/-", 200, json.dumps(_described(model))),
        *gates,
        *(_by_header(model, key) if model.allow_revision_header else ()),
        *_by_weight(model, key),
    ]
    clusters = {cluster_name(model, r): r for r in model.revisions}
    return ModelResources(
        scopes={model.model: _scope(model.model)},
        routes={model.model: _route_configuration(model.model, routes)},
        clusters={name: _cluster(name, model, r, tls(r), authorities) for name, r in clusters.items()},
        assignments={name: _assignment(name, r.endpoints) for name, r in clusters.items() if r.external is None},
        needs=frozenset(clusters),
    )


def list_resources(models: Iterable[ModelRoutes]) -> ModelResources:
    """The answer to GET /v1/models: every model that is routed, ready or not.

    A model that is not ready answers 503 with retry-after, so that a client can tell it from one that does not exist;
    the list changes only with the set of models, not with every pod that comes and goes.
    """
    listed = {"object": "list", "data": [_described(m) for m in sorted(models, key=lambda m: m.model)]}
    unknown = error_text("Unknown request URL.", "invalid_request_error", "unknown_url")
    refuse = {**_answer("unknown", "", 404, unknown), "match": {"prefix": "/"}}
    configuration = _route_configuration(LIST, [_answer("models", "/v1/models", 200, json.dumps(listed)), refuse])
    configuration["max_direct_response_body_size_bytes"] = 64 * 1024 * 1024
    return ModelResources(scopes={LIST: _scope(LIST)}, routes={LIST: configuration})
