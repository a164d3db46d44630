"""One Envoy's side of delta-ADS, as a machine without input or output: requests in, responses out.

Rules:
- only what differs from what this Envoy has is sent; versions are content hashes, so that a gateway process that was
  started again finds an Envoy that tells its versions up to date;
- routes wait until every cluster they need is known to and warm in this Envoy (its CDS and its EDS acknowledged):
  Envoy accepts a route to a cluster it lacks, and answers 503 on it;
- a cluster is withdrawn only when no routes that this Envoy has, or was sent, need it;
- a cluster that is sent again needs its endpoints again, or it never gets warm;
- the last endpoint of a cluster goes only after the routes: new ones give its weight to others, and a request that came
  between the two would find a cluster without a pod. A pod that leaves waits for its clients, one that died costs the
  request no more than before;
- what Envoy refuses (NACK) is not sent again in that version; what it had before stays in force. A refused response of
  several resources is sent again one by one, so that one bad resource holds up no other;
- removal of endpoints and of routes is never said: both go with their cluster or scope.

`acknowledged` tells what is really in force, which is what gateways report to the operator.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

_TYPES = "type.googleapis.com/envoy.config."
CLUSTER = _TYPES + "cluster.v3.Cluster"
ENDPOINTS = _TYPES + "endpoint.v3.ClusterLoadAssignment"
SCOPE = _TYPES + "route.v3.ScopedRouteConfiguration"
ROUTES = _TYPES + "route.v3.RouteConfiguration"
ORDER = (CLUSTER, ENDPOINTS, SCOPE, ROUTES)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resource:
    """One resource, packed; `needs` are the clusters that must be warm before it is sent."""

    version: str
    body: AnyMessage = field(repr=False)
    needs: frozenset[str] = frozenset()
    empty: bool = False
    """Of endpoints: whether there are none."""
    whole: bool = False
    """Of a cluster: it says itself where it leads, and gets no endpoints."""


Store = Mapping[str, Mapping[str, Resource]]
"""By type URL, then by name."""


@dataclass
class _Known:
    """What is known of one type on one Envoy."""

    wildcard: bool = False
    answered: bool = False
    """Whether anything was sent of this type; Envoy's start waits for it, even where there is nothing."""
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)
    """Version last sent, or told by Envoy when it connected."""
    acknowledged: dict[str, str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    """Names that were asked for, do not exist, and were told so."""


@dataclass(frozen=True)
class _Outstanding:
    type_url: str
    versions: Mapping[str, str]
    removed: tuple[str, ...]


class Session:
    """The state of one ADS stream."""

    def __init__(self, store: Store) -> None:
        """`store` is read at every turn; its owner changes it and then asks for `responses`."""
        self._store = store
        self._known: dict[str, _Known] = {}
        self._outstanding: dict[str, _Outstanding] = {}
        self._alone: set[tuple[str, str]] = set()
        self._refused_versions: dict[tuple[str, str], str] = {}
        """What this Envoy will not take, by type and name: the version that it refused."""
        self._nonce = 0
        self._route_needs: dict[str, frozenset[str]] = {}
        """Clusters that the routes which this Envoy has, or may have, need."""
        self.refusals: list[str] = []
        """What Envoy said of refused responses, newest last."""

    # -- in ------------------------------------------------------------------------------------------------------

    def receive(self, request: discovery_pb2.DeltaDiscoveryRequest) -> bool:
        """Take a request; returns whether what is in force may be something else now."""
        type_url = request.type_url
        first = type_url not in self._known
        known = self._known.setdefault(type_url, _Known())
        if first:
            known.wildcard = not request.resource_names_subscribe or "*" in request.resource_names_subscribe
            known.sent = dict(request.initial_resource_versions)
            known.acknowledged = dict(request.initial_resource_versions)
            if type_url == ROUTES:
                self._remember_needs(known.sent)
        for name in request.resource_names_subscribe:
            if name == "*":
                known.wildcard = True
                continue
            known.names.add(name)
            if not first:
                # asked for again: Envoy has dropped it, or wants it for a new watcher
                known.sent.pop(name, None)
            known.absent.discard(name)
        for name in request.resource_names_unsubscribe:
            self._forget(type_url, known, name)
        return self._settle(request) or bool(request.resource_names_unsubscribe)

    def _remember_needs(self, names: Iterable[str]) -> None:
        """Routes from an earlier life of the gateway process: they need what their newest form needs, at least."""
        for name in names:
            resource = self._store.get(ROUTES, {}).get(name)
            if resource is not None:
                self._route_needs[name] = resource.needs

    def _forget(self, type_url: str, known: _Known, name: str) -> None:
        known.names.discard(name)
        known.absent.discard(name)
        known.sent.pop(name, None)
        known.acknowledged.pop(name, None)
        if type_url == ROUTES:
            self._route_needs.pop(name, None)

    def _settle(self, request: discovery_pb2.DeltaDiscoveryRequest) -> bool:
        """Take the acknowledgement or refusal that the request may be."""
        answered = self._outstanding.pop(request.response_nonce, None)
        if answered is None:
            return False
        known = self._known[answered.type_url]
        if request.HasField("error_detail"):
            self._refused(answered, request.error_detail.message)
            return False
        for name, version in answered.versions.items():
            known.acknowledged[name] = version
            resource = self._store.get(answered.type_url, {}).get(name)
            if answered.type_url == ROUTES and resource is not None and resource.version == version:
                self._route_needs[name] = resource.needs
        for name in answered.removed:
            known.acknowledged.pop(name, None)
        return True

    def _refused(self, answered: _Outstanding, message: str) -> None:
        self.refusals.append(message)
        _log.error("Envoy refused %s of %s: %s", sorted(answered.versions), answered.type_url, message)
        if len(answered.versions) < 2:
            self._refused_versions.update({(answered.type_url, n): v for n, v in answered.versions.items()})
            return
        known = self._known[answered.type_url]
        for name, version in answered.versions.items():
            if known.sent.get(name) == version:
                del known.sent[name]
                self._alone.add((answered.type_url, name))

    # -- out -----------------------------------------------------------------------------------------------------

    def responses(self) -> Iterator[discovery_pb2.DeltaDiscoveryResponse]:
        """What is to be sent now, in order."""
        for type_url in ORDER:
            if type_url in self._known:
                yield from self._of_type(type_url)

    def _of_type(self, type_url: str) -> Iterator[discovery_pb2.DeltaDiscoveryResponse]:
        known, store = self._known[type_url], self._store.get(type_url, {})
        wanted = store.keys() if known.wildcard else [n for n in known.names if n in store]
        changed = [n for n in wanted if known.sent.get(n) != store[n].version]
        if type_url == ROUTES:
            changed = [n for n in changed if all(self.is_warm(c) for c in store[n].needs)]
        elif type_url == ENDPOINTS:
            changed = self._without_what_routes_still_use(changed)
        removed = self._removable(type_url, known, store)
        together = [n for n in changed if (type_url, n) not in self._alone]
        if together or removed or self._owes_nothing(known):
            known.answered = True
            yield self._response(type_url, together, removed)
        for name in changed:
            if (type_url, name) in self._alone:
                self._alone.discard((type_url, name))
                yield self._response(type_url, [name], [])

    def _owes_nothing(self, known: _Known) -> bool:
        """Whether to say that there is nothing of a kind: Envoy opens its listener only after the first answer.

        Not before there are routes: until then the store is not filled yet.
        """
        return known.wildcard and not known.answered and bool(self._store.get(ROUTES))

    def _without_what_routes_still_use(self, changed: list[str]) -> list[str]:
        """Leave out assignments that lost their last endpoint, while this Envoy has routes to them that will change."""
        endpoints, store = self._known[ENDPOINTS], self._store[ENDPOINTS]
        emptied = {n for n in changed if store[n].empty and n in endpoints.acknowledged}
        if not emptied:
            return changed
        routes = self._known.get(ROUTES, _Known()).acknowledged
        awaited = (
            name
            for name, resource in self._store.get(ROUTES, {}).items()
            if routes.get(name, resource.version) != resource.version and not self._is_refused(name, resource)
        )
        used = frozenset[str]().union(*(self._route_needs.get(name, frozenset()) for name in awaited))
        return [n for n in changed if n not in emptied or n not in used]

    def is_warm(self, cluster: str) -> bool:
        """Whether this Envoy has the cluster and its endpoints."""
        clusters, endpoints = self._known.get(CLUSTER), self._known.get(ENDPOINTS)
        if not clusters or cluster not in clusters.acknowledged:
            return False
        resource = self._store.get(CLUSTER, {}).get(cluster)
        if resource is not None and resource.whole:
            return True
        return bool(endpoints and cluster in endpoints.acknowledged)

    def _removable(self, type_url: str, known: _Known, store: Mapping[str, Resource]) -> list[str]:
        if type_url == CLUSTER:
            needed = frozenset().union(*self._route_needs.values()) if self._route_needs else frozenset()
            return [n for n in known.sent if n not in store and n not in needed]
        if type_url == SCOPE:
            return [n for n in known.sent if n not in store]
        # a name that does not exist is told once, or its subscriber waits for ever
        absent = [n for n in known.names if n not in store and n not in known.sent and n not in known.absent]
        known.absent.update(absent)
        return absent

    def _response(self, type_url: str, changed: list[str], removed: list[str]) -> discovery_pb2.DeltaDiscoveryResponse:
        known, store = self._known[type_url], self._store.get(type_url, {})
        self._nonce += 1
        nonce = str(self._nonce)
        for name in changed:
            if type_url == CLUSTER and name in known.sent:
                self._resend_endpoints(name)
            if type_url == ROUTES:
                self._route_needs[name] = self._route_needs.get(name, frozenset()) | store[name].needs
            known.sent[name] = store[name].version
            known.absent.discard(name)
        for name in removed:
            known.sent.pop(name, None)
        versions = {n: store[n].version for n in changed}
        self._outstanding[nonce] = _Outstanding(type_url, versions, tuple(removed))
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=type_url,
            nonce=nonce,
            system_version_info=nonce,
            resources=[
                discovery_pb2.Resource(name=n, version=store[n].version, resource=store[n].body) for n in changed
            ],
            removed_resources=removed,
        )

    def _resend_endpoints(self, cluster: str) -> None:
        endpoints = self._known.get(ENDPOINTS)
        if endpoints is not None:
            endpoints.sent.pop(cluster, None)

    # -- what is in force ----------------------------------------------------------------------------------------

    def acknowledged(self, type_url: str, name: str) -> str | None:
        """Version of the resource that this Envoy works with, None where it has none."""
        known = self._known.get(type_url)
        return known.acknowledged.get(name) if known else None

    @property
    def complete(self) -> bool:
        """Whether this Envoy works with every route of the store, as it is now."""
        routes = self._store.get(ROUTES, {})
        return bool(routes) and all(self.acknowledged(ROUTES, n) == r.version for n, r in routes.items())

    @property
    def settled(self) -> bool:
        """Whether this Envoy works with every route that it is willing to take.

        One model that it refuses must not keep a gateway from serving all others.
        """
        routes = self._store.get(ROUTES, {})
        return bool(routes) and all(
            self.acknowledged(ROUTES, n) == r.version or self._is_refused(n, r) for n, r in routes.items()
        )

    def _is_refused(self, name: str, routes: Resource) -> bool:
        asked = [(ROUTES, name), *((t, c) for c in routes.needs for t in (CLUSTER, ENDPOINTS))]
        wanted = {(t, n): self._store.get(t, {}).get(n) for t, n in asked}
        return any(r is not None and self._refused_versions.get(key) == r.version for key, r in wanted.items())
