"""The ADS server: keeps the resources of every model and feeds them to Envoy by delta-xDS over a Unix socket.

Rules:
- who may open the socket may read engine keys: it is made with mode 0600, in a directory of the pod's own;
- nothing is answered before the first resources are there: an Envoy that starts waits, rather than serve nothing;
- clusters outlive their last model by LINGER seconds: a request that is being tried again must still find its cluster;
- one Envoy at a time matters: the one that connected last tells what is in force.

All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path

import grpc
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2, scoped_route_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.lua.v3 import lua_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.maglev.v3 import maglev_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.extensions.transport_sockets.tls.v3 import tls_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message

from tuneyard.systems.envoy.delta import CLUSTER, ENDPOINTS, ROUTES, SCOPE, Resource, Session
from tuneyard.systems.envoy.documents import Json
from tuneyard.systems.envoy.listening import make_way, protect
from tuneyard.systems.envoy.translate import ModelResources

LINGER = 15.0
"""Seconds that a cluster outlives the last routes to it."""

_MESSAGES: dict[str, type[Message]] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINTS: endpoint_pb2.ClusterLoadAssignment,
    SCOPE: scoped_route_pb2.ScopedRouteConfiguration,
    ROUTES: route_pb2.RouteConfiguration,
}
_NAMED_INSIDE_ANY = (
    fault_pb2,
    header_mutation_pb2,
    lua_pb2,
    least_request_pb2,
    maglev_pb2,
    previous_hosts_pb2,
    tls_pb2,
    upstream_codec_pb2,
    http_protocol_options_pb2,
)
"""Imported so that their types can be packed by name."""

_OWN_TO_EACH_CLUSTER = ("name", "metadata", "transport_socket_matches", "load_assignment", "transport_socket")
_COMMON = 64
"""Kinds of clusters: by how their pods are chosen."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Envoy pings every 10 s to notice a dead process; by default that counts as abuse and ends the stream.
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # otherwise the window grows to megabytes, all of which may wait here while this process is busy
    ("grpc.http2.bdp_probe", 0),
]

_log = logging.getLogger(__name__)


@lru_cache(_COMMON)
def _parsed(type_url: str, text: str) -> Message:
    return json_format.Parse(text, _MESSAGES[type_url]())


def _message(type_url: str, document: Json) -> Message:
    """The document as its type. What all clusters have in common is parsed once: thousands come at a start."""
    message = _MESSAGES[type_url]()
    if type_url != CLUSTER:
        return json_format.ParseDict(document, message)
    own = {field: document[field] for field in _OWN_TO_EACH_CLUSTER if field in document}
    common = {field: value for field, value in document.items() if field not in own}
    message.CopyFrom(_parsed(type_url, json.dumps(common)))
    return json_format.ParseDict(own, message)


def packed(type_url: str, document: Json, needs: frozenset[str] = frozenset()) -> Resource:
    """A resource from its JSON form; raises json_format.ParseError where it does not fit the type."""
    body = any_pb2.Any()
    body.Pack(_message(type_url, document), "type.googleapis.com/", deterministic=True)
    version = hashlib.sha256(body.value).hexdigest()[:16]
    empty = type_url == ENDPOINTS and not document["endpoints"]
    return Resource(version, body, needs, empty, whole=type_url == CLUSTER and "load_assignment" in document)


class AdsServer:
    """Resources by model, and the Envoys that follow them."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called whenever what is in force may have changed."""
        self._on_change = on_change
        self._store: dict[str, dict[str, Resource]] = {t: {} for t in _MESSAGES}
        self._documents: dict[tuple[str, str], Json] = {}
        self._models: dict[str, ModelResources] = {}
        self._uses: dict[str, int] = {}
        self._streams: dict[int, tuple[Session, asyncio.Event]] = {}
        self._streams_seen = 0
        self._primed = False
        self._server: grpc.aio.Server | None = None
        self.refusals = 0
        """Responses that Envoy refused, ever."""

    # -- resources -----------------------------------------------------------------------------------------------

    def put(self, model: str, resources: ModelResources) -> None:
        """Replace everything that belongs to the model; takes effect with `publish`."""
        before = self._models.get(model, ModelResources())
        self._models[model] = resources
        for name, cluster in resources.clusters.items():
            self._uses[name] = self._uses.get(name, 0) + (name not in before.clusters)
            self._set(CLUSTER, name, cluster)
        for name, assignment in resources.assignments.items():
            self._set(ENDPOINTS, name, assignment)
        for name, scope in resources.scopes.items():
            self._set(SCOPE, name, scope)
        for name, routes in resources.routes.items():
            self._set(ROUTES, name, routes, resources.needs)
        self._withdraw(before, resources)

    def drop(self, model: str) -> None:
        """Withdraw everything that belongs to the model; takes effect with `publish`."""
        before = self._models.pop(model, None)
        if before is not None:
            self._withdraw(before, ModelResources())

    def has(self, model: str) -> bool:
        """Whether the model has resources."""
        return model in self._models

    def _set(self, type_url: str, name: str, document: Json, needs: frozenset[str] = frozenset()) -> None:
        if self._documents.get((type_url, name)) != document or name not in self._store[type_url]:
            self._store[type_url][name] = packed(type_url, document, needs)
            self._documents[type_url, name] = document

    def _withdraw(self, before: ModelResources, after: ModelResources) -> None:
        for type_url, gone in (
            (SCOPE, before.scopes.keys() - after.scopes.keys()),
            (ROUTES, before.routes.keys() - after.routes.keys()),
        ):
            for name in gone:
                self._remove(type_url, name)
        loop = asyncio.get_running_loop()
        for name in before.clusters.keys() - after.clusters.keys():
            self._uses[name] -= 1
            loop.call_later(LINGER, self._remove_unused, name)

    def _remove_unused(self, cluster: str) -> None:
        if self._uses.get(cluster) == 0:
            del self._uses[cluster]
            self._remove(CLUSTER, cluster)
            self._remove(ENDPOINTS, cluster)
            self.publish()

    def _remove(self, type_url: str, name: str) -> None:
        self._store[type_url].pop(name, None)
        self._documents.pop((type_url, name), None)

    def publish(self) -> None:
        """Send what has changed to the Envoys that are connected, and answer those that wait for the first time."""
        self._primed = True
        for _, wake in self._streams.values():
            wake.set()

    # -- what is in force ----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether an Envoy is connected."""
        return bool(self._streams)

    @property
    def complete(self) -> bool:
        """Whether the Envoy that connected last works with all routes as they are now."""
        newest = self._newest()
        return newest is not None and newest.complete

    @property
    def settled(self) -> bool:
        """Whether it works with all routes that it does not refuse."""
        newest = self._newest()
        return newest is not None and newest.settled

    def in_force(self, model: str) -> bool:
        """Whether the Envoy that connected last works with this model's routes as they are now."""
        newest, wanted = self._newest(), self._store[ROUTES].get(model)
        if newest is None:
            return False
        return newest.acknowledged(ROUTES, model) == (wanted.version if wanted else None)

    def _newest(self) -> Session | None:
        return self._streams[max(self._streams)][0] if self._streams else None

    # -- serving -------------------------------------------------------------------------------------------------

    async def start(self, socket: Path, *services: Callable[[grpc.aio.Server], None]) -> None:
        """Listen; a socket that an earlier process left is replaced. `services` add others to the server."""
        make_way(socket)
        self._server = grpc.aio.server(options=_OPTIONS)
        ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(_Servicer(self.serve), self._server)
        for add in services:
            add(self._server)
        self._server.add_insecure_port(f"unix:{socket}")
        await self._server.start()
        protect(socket)

    async def stop(self) -> None:
        """End the streams; Envoy keeps what it has."""
        if self._server is not None:
            await self._server.stop(grace=0.2)

    async def serve(
        self, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """One ADS stream, until Envoy ends it."""
        session, wake = Session(self._store), asyncio.Event()
        self._streams_seen += 1
        number = self._streams_seen
        self._streams[number] = (session, wake)
        ended = asyncio.Event()
        reader = asyncio.create_task(self._read(requests, session, wake, ended))
        _log.info("Envoy is connected (stream %d)", number)
        try:
            while not ended.is_set():
                wake.clear()
                if self._primed:
                    # all at once: the store may change while one is being sent
                    for response in list(session.responses()):
                        yield response
                await wake.wait()
        finally:
            reader.cancel()
            del self._streams[number]
            _log.info("Envoy is gone (stream %d)", number)
            self._on_change()

    async def _read(
        self,
        requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
        session: Session,
        wake: asyncio.Event,
        ended: asyncio.Event,
    ) -> None:
        try:
            async for request in requests:
                refused = len(session.refusals)
                acknowledged = session.receive(request)
                self.refusals += len(session.refusals) - refused
                del session.refusals[:-10]
                wake.set()
                if acknowledged:
                    self._on_change()
        finally:
            ended.set()
            wake.set()


class _Servicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Names the method as gRPC does."""

    def __init__(self, serve: Callable[..., AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]]) -> None:
        self._serve = serve

    async def DeltaAggregatedResources(  # noqa: N802
        self, request_iterator: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest], _context: object
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Envoy's stream."""
        async for response in self._serve(request_iterator):
            yield response
