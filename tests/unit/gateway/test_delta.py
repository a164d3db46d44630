"""One Envoy's side of delta-ADS, as requests in and responses out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from tuneyard.systems.envoy.delta import CLUSTER, ENDPOINTS, ROUTES, SCOPE, Resource, Session

Store = dict[str, dict[str, Resource]]


def resource(version: str, *needs: str) -> Resource:
    return Resource(version, AnyMessage(type_url="t", value=version.encode()), frozenset(needs))


def empty(version: str) -> Resource:
    return replace(resource(version), empty=True)


def store_of(*models: str, version: str = "1") -> Store:
    return {
        CLUSTER: {f"c-{m}": resource("1") for m in models},
        ENDPOINTS: {f"c-{m}": resource("1") for m in models},
        SCOPE: {m: resource("1") for m in models},
        ROUTES: {m: resource(version, f"c-{m}") for m in models},
    }


class Client:
    """As Envoy behaves: subscribes to what it is told of, acknowledges everything, unless it refuses."""

    def __init__(self, store: Store) -> None:
        self.session = Session(store)
        self.has: dict[str, dict[str, str]] = {t: {} for t in (CLUSTER, ENDPOINTS, SCOPE, ROUTES)}
        self.refuses: set[tuple[str, str]] = set()
        self.told: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []

    def say(self, type_url: str, **fields: Any) -> None:
        error = fields.pop("error", None)
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, **fields)
        if error:
            request.error_detail.message = error
        self.session.receive(request)

    def connect(self) -> None:
        for type_url in (CLUSTER, SCOPE):
            self.say(type_url, initial_resource_versions=self.has[type_url])
        for type_url in (ENDPOINTS, ROUTES):
            if self.has[type_url]:
                names = list(self.has[type_url])
                self.say(type_url, resource_names_subscribe=names, initial_resource_versions=self.has[type_url])

    def turn(self) -> bool:
        """Take what is sent now; False when nothing is."""
        responses = list(self.session.responses())
        for response in responses:
            self._take(response)
        return bool(responses)

    def _take(self, response: discovery_pb2.DeltaDiscoveryResponse) -> None:
        type_url, names = response.type_url, [r.name for r in response.resources]
        self.told.append((type_url.rsplit(".", 1)[1], tuple(sorted(names)), tuple(response.removed_resources)))
        if any((type_url, n) in self.refuses for n in names):
            self.say(type_url, response_nonce=response.nonce, error=f"no: {names}")
            return
        self.has[type_url].update({r.name: r.version for r in response.resources})
        follow = {CLUSTER: ENDPOINTS, SCOPE: ROUTES}.get(type_url)
        if follow:
            new = [n for n in names if n not in self.has[follow]]
            if new:
                self.say(follow, resource_names_subscribe=new)
            for name in response.removed_resources:
                self.has[type_url].pop(name, None)
                self.has[follow].pop(name, None)
                self.say(follow, resource_names_unsubscribe=[name])
        self.say(type_url, response_nonce=response.nonce)

    def settle(self) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
        self.told = []
        for _ in range(50):
            if not self.turn():
                return self.told
        raise AssertionError(f"it never ends: {self.told[-5:]}")


def connected(store: Store) -> Client:
    client = Client(store)
    client.connect()
    client.settle()
    return client


def test_from_nothing_in_warming_order() -> None:
    client = Client(store_of("a", "b"))
    client.connect()
    assert not client.session.settled
    assert client.settle() == [
        ("Cluster", ("c-a", "c-b"), ()),
        ("ScopedRouteConfiguration", ("a", "b"), ()),
        ("ClusterLoadAssignment", ("c-a", "c-b"), ()),
        ("RouteConfiguration", ("a", "b"), ()),
    ]
    assert client.session.complete
    assert client.settle() == []


def test_only_what_changed_is_sent() -> None:
    store = store_of("a", "b")
    client = connected(store)
    store[ROUTES]["a"] = resource("2", "c-a")
    assert not client.session.complete
    assert client.settle() == [("RouteConfiguration", ("a",), ())]
    assert client.session.acknowledged(ROUTES, "a") == "2"
    store[ENDPOINTS]["c-b"] = resource("2")
    assert client.settle() == [("ClusterLoadAssignment", ("c-b",), ())]


def test_routes_wait_for_their_clusters_and_clusters_for_their_routes() -> None:
    store = store_of("a")
    client = connected(store)
    store[CLUSTER] = {"c-new": resource("1")}
    store[ENDPOINTS] = {"c-new": resource("1")}
    store[ROUTES]["a"] = resource("2", "c-new")
    assert client.settle() == [
        ("Cluster", ("c-new",), ()),
        ("ClusterLoadAssignment", ("c-new",), ()),
        ("RouteConfiguration", ("a",), ()),
        ("Cluster", (), ("c-a",)),
    ]


def test_the_last_endpoint_goes_after_the_routes() -> None:
    """Between the two a request would find a cluster without a pod."""
    store = store_of("a", "b")
    client = connected(store)
    store[ENDPOINTS]["c-a"] = empty("2")
    store[ROUTES]["a"] = resource("2", "c-a", "c-b")
    store[ENDPOINTS]["c-b"] = resource("2")
    assert client.settle() == [
        ("ClusterLoadAssignment", ("c-b",), ()),
        ("RouteConfiguration", ("a",), ()),
        ("ClusterLoadAssignment", ("c-a",), ()),
    ]


def test_the_last_endpoint_waits_for_no_routes_that_stay_or_are_refused() -> None:
    store = store_of("a", "b")
    client = connected(store)
    store[ENDPOINTS]["c-a"] = empty("2")
    store[ROUTES]["b"] = resource("2", "c-b")
    assert client.settle()[0] == ("ClusterLoadAssignment", ("c-a",), ())
    client.refuses.add((ROUTES, "b"))
    store[ENDPOINTS]["c-b"] = empty("2")
    store[ROUTES]["b"] = resource("3", "c-b")
    client.settle()
    assert client.has[ENDPOINTS] == {"c-a": "2", "c-b": "2"}


def test_a_cluster_may_begin_without_endpoints_while_routes_wait_for_it() -> None:
    store = store_of("a")
    client = connected(store)
    store[CLUSTER]["c-new"] = resource("1")
    store[ENDPOINTS] |= {"c-new": empty("1"), "c-a": empty("2")}
    store[ROUTES]["a"] = resource("2", "c-a", "c-new")
    client.settle()
    assert client.session.complete
    assert client.has[ENDPOINTS] == {"c-a": "2", "c-new": "1"}


def test_routes_stay_back_while_a_cluster_is_refused() -> None:
    store = store_of("a")
    client = connected(store)
    client.refuses.add((CLUSTER, "c-bad"))
    store[CLUSTER]["c-bad"] = store[ENDPOINTS]["c-bad"] = resource("1")
    store[ROUTES]["a"] = resource("2", "c-a", "c-bad")
    assert client.settle() == [("Cluster", ("c-bad",), ())]
    assert client.session.refusals == ["no: ['c-bad']"]
    assert client.session.acknowledged(ROUTES, "a") == "1"
    before = client.session.settled
    store[ROUTES]["a"] = resource("3", "c-a")
    after = client.session.settled
    assert (before, after) == (True, False)
    client.settle()
    assert client.session.acknowledged(ROUTES, "a") == "3"


def test_one_bad_resource_holds_up_no_other() -> None:
    store = store_of("a", "b", "c")
    client = connected(store)
    client.refuses.add((ROUTES, "b"))
    for name in "abc":
        store[ROUTES][name] = resource("2", f"c-{name}")
    client.settle()
    assert {n: client.session.acknowledged(ROUTES, n) for n in "abc"} == {"a": "2", "b": "1", "c": "2"}
    assert not client.session.complete
    assert client.session.settled
    # the refused version is not sent over and over, another one is
    assert client.settle() == []
    client.refuses.clear()
    store[ROUTES]["b"] = resource("3", "c-b")
    client.settle()
    assert client.session.complete


def test_a_model_goes() -> None:
    store = store_of("a", "b")
    client = connected(store)
    for type_url, name in ((SCOPE, "b"), (ROUTES, "b"), (CLUSTER, "c-b"), (ENDPOINTS, "c-b")):
        del store[type_url][name]
    assert client.settle() == [("ScopedRouteConfiguration", (), ("b",)), ("Cluster", (), ("c-b",))]
    assert client.session.acknowledged(ROUTES, "b") is None
    assert client.session.complete


def test_a_new_process_sends_only_the_difference() -> None:
    store = store_of("a", "b")
    before = connected(store)
    store[ROUTES]["a"] = resource("2", "c-a")
    del store[SCOPE]["b"], store[ROUTES]["b"], store[CLUSTER]["c-b"], store[ENDPOINTS]["c-b"]
    client = Client(store)
    client.has = before.has
    client.connect()
    assert client.session.acknowledged(ROUTES, "a") == "1"
    assert sorted(client.settle()) == [
        ("Cluster", (), ("c-b",)),
        ("RouteConfiguration", ("a",), ()),
        ("ScopedRouteConfiguration", (), ("b",)),
    ]
    assert client.session.complete


def test_a_changed_cluster_gets_its_endpoints_again() -> None:
    store = store_of("a")
    client = connected(store)
    store[CLUSTER]["c-a"] = resource("2")
    assert client.settle() == [("Cluster", ("c-a",), ()), ("ClusterLoadAssignment", ("c-a",), ())]


def test_a_name_that_does_not_exist_is_told_once() -> None:
    store = store_of("a")
    client = connected(store)
    client.say(ROUTES, resource_names_subscribe=["nope"])
    assert client.settle() == [("RouteConfiguration", (), ("nope",))]
    store[CLUSTER]["c-nope"] = store[ENDPOINTS]["c-nope"] = resource("1")
    store[ROUTES]["nope"] = resource("1", "c-nope")
    assert client.settle()[-1] == ("RouteConfiguration", ("nope",), ())
