from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import BASE, adapter, base_model, deployment, digest, loaded, pinned, pod, revision
from tuneyard.api.documents import AdapterReport
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.endpoints import is_address, ready_endpoints
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.pools import pool_of


def reported(one: PodObservation, **fields: object) -> PodObservation:
    assert one.report is not None
    return replace(one, report=one.report.model_copy(update=fields))


CHAT = deployment(revisions=[revision("v1", "v1"), revision("plain")])
GOOD = pod("a", "v1")
ADDRESS = GOOD.report.address if GOOD.report else ""


def found(*pods: PodObservation) -> dict[str, list[str]]:
    return ready_endpoints(CHAT, [pinned("v1")], [base_model()], pods)


def test_a_ready_pod_with_the_adapter_serves_both() -> None:
    assert found(GOOD) == {"v1": [ADDRESS], "plain": [ADDRESS]}


@pytest.mark.parametrize(
    "bad",
    [
        replace(GOOD, deleted=True, ready=False),
        replace(GOOD, namespace="other"),
        replace(GOOD, pool="other"),
        replace(GOOD, report=None),
        reported(GOOD, engine="Starting"),
        reported(GOOD, engine="Draining"),
        reported(GOOD, base_model="other"),
        reported(GOOD, address="gateway.internal:80"),
    ],
)
def test_a_pod_that_counts_for_nothing(bad: PodObservation) -> None:
    assert found(bad) == {"v1": [], "plain": []}


def test_a_pod_that_leaves_serves_what_no_other_pod_does() -> None:
    leaving = replace(GOOD, deleted=True)
    assert found(leaving) == {"v1": [ADDRESS], "plain": [ADDRESS]}
    assert found(reported(leaving, engine="Draining")) == {"v1": [], "plain": []}
    without, other = pod("b"), pod("b", "v1")
    assert other.report is not None
    assert found(leaving, without) == {"v1": [ADDRESS], "plain": [other.report.address]}
    assert found(leaving, other) == {"v1": [other.report.address], "plain": [other.report.address]}


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"v1": AdapterReport(state="Loading")},
        {"v1": AdapterReport(state="Failed", reason="RankTooHigh")},
        {"v1": loaded("v1", digest=digest("other bytes"))},
        {"v1": AdapterReport(state="Loaded")},
    ],
)
def test_a_pod_that_serves_the_base_alone(said: dict[str, AdapterReport]) -> None:
    assert found(reported(GOOD, adapters=said)) == {"v1": [], "plain": [ADDRESS]}


def test_missing_objects() -> None:
    assert ready_endpoints(CHAT, [], [base_model()], [GOOD]) == {"v1": [], "plain": [ADDRESS]}
    assert ready_endpoints(CHAT, [adapter("v1")], [base_model()], [GOOD])["v1"] == []
    assert ready_endpoints(CHAT, [pinned("v1", base="other")], [base_model()], [GOOD])["v1"] == []
    assert ready_endpoints(CHAT, [pinned("v1", namespace="other")], [base_model()], [GOOD])["v1"] == []
    assert ready_endpoints(CHAT, [pinned("v1")], [], [GOOD]) == {"v1": [], "plain": []}
    assert ready_endpoints(CHAT, [adapter("v1", digest=digest("v1"))], [base_model()], [GOOD])["v1"] == [ADDRESS]


def test_pools_are_not_mixed() -> None:
    own = deployment(
        revisions=[revision("v1", "v1"), revision("v2", "v1", serving=ServingSpec(replicas=2))],
        serving=ServingSpec(replicas=1),
    )
    pools = [pool_of(own, r) for r in own.spec.revisions]
    assert len({*pools, BASE}) == 3
    pods = [pod(name, "v1", pool=pool) for name, pool in zip("abc", [*pools, BASE], strict=True)]
    addresses = [p.report.address for p in pods if p.report]
    ready = ready_endpoints(own, [pinned("v1")], [base_model()], pods)
    assert ready == {"v1": [addresses[0]], "v2": [addresses[1]]}


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("10.0.0.1:8080", True),
        ("100.64.0.1:8080", True),
        ("240.0.0.1:8080", True),
        ("[fd00::1]:8080", True),
        ("[2600:1f18::1]:8080", True),
        ("fd00::1:8080", False),
        ("[10.0.0.1]:8080", False),
        ("10.0.0.1", False),
        ("10.0.0.1:", False),
        ("10.0.0.1:80", False),
        ("10.0.0.1:18080", False),
        ("10.0.0.1:08080", False),
        ("10.0.0.1:٨٠٨٠", False),
        ("10.0.0.1:-8080", False),
        ("10.0.0:8080", False),
        ("localhost:8080", False),
        ("127.0.0.1:8080", False),
        ("127.1.2.3:8080", False),
        ("[::1]:8080", False),
        ("[::ffff:127.0.0.1]:8080", False),
        ("[::ffff:10.0.0.1]:8080", False),
        ("[64:ff9b::7f00:1]:8080", False),
        ("169.254.169.254:8080", False),
        ("[fe80::1]:8080", False),
        ("[fd00::1%eth0]:8080", False),
        ("0.0.0.0:8080", False),
        ("[::]:8080", False),
        ("224.0.0.1:8080", False),
        ("[ff02::1]:8080", False),
        ("255.255.255.255:8080", False),
        ("", False),
    ],
)
def test_addresses(text: str, good: bool) -> None:
    assert is_address(text) is good
