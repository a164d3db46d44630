"""When a cluster speaks TLS to pods, and what the ADS server keeps of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.contract.envoy import engine_key, model, revision
from tuneyard.planning.endpoints import Endpoint
from tuneyard.systems.envoy import ads
from tuneyard.systems.envoy.delta import CLUSTER
from tuneyard.systems.envoy.documents import Json
from tuneyard.systems.envoy.translate import model_resources

AUTHORITY = "-----BEGIN CERTIFICATE-----"
PLAIN, SPEAKING = Endpoint("10.0.0.1:8080", "a"), Endpoint("10.0.0.2:8080", "b", tls=True)


def cluster(*endpoints: Endpoint, expected: bool, pool: str = "base") -> Json:
    """The cluster of a revision whose pods these are."""
    routes = model("chat", replace(revision("v1", 100, pool=pool), endpoints=endpoints))
    (found,) = model_resources(routes, engine_key, authority=AUTHORITY, tls_expected=expected).clusters.values()
    return found


def test_pods_that_come_and_go_leave_the_cluster_as_it_is_where_they_are_to_take_tls() -> None:
    """Else a pool that is scaled to nothing and back would have Envoy build it anew, just when requests wait for it."""
    at_first = cluster(expected=True)
    assert "transport_socket_matches" in at_first
    assert cluster(SPEAKING, expected=True) == cluster(PLAIN, expected=True) == at_first


@pytest.mark.parametrize(("endpoints", "speaks"), [((), False), ((PLAIN,), False), ((PLAIN, SPEAKING), True)])
def test_elsewhere_pods_that_say_it_are_believed(endpoints: tuple[Endpoint, ...], speaks: bool) -> None:
    """While pools roll away from it, gateways know already that it is not wanted any more."""
    assert ("transport_socket_matches" in cluster(*endpoints, expected=False)) == speaks


def test_what_is_kept_for_parsing_does_not_grow_with_pools() -> None:
    ads._parsed.cache_clear()
    documents = [cluster(SPEAKING, expected=True, pool=f"pool-{n}") for n in range(50)]
    messages = [ads._message(CLUSTER, document) for document in documents]
    assert ads._parsed.cache_info().currsize == 1
    assert ads._parsed.cache_info().maxsize is not None
    shown = [str(message) for message in messages]
    assert all(f"pool-{n}.default.tuneyard" in text for n, text in enumerate(shown))


def test_a_cluster_is_the_same_message_however_it_is_parsed() -> None:
    from google.protobuf import json_format

    for document in (cluster(PLAIN, expected=False), cluster(SPEAKING, expected=True)):
        whole = json_format.ParseDict(document, ads._MESSAGES[CLUSTER]())
        assert ads._message(CLUSTER, document) == whole
