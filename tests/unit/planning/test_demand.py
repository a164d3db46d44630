"""What several gateways say, as one."""

from __future__ import annotations

from tuneyard.api.documents import DemandReport, DeploymentDemand, RevisionDemand
from tuneyard.planning.demand import DemandView


def said(gateway: str, waiting: int = 0, idle: float = 0.0, **in_flight: float) -> DemandReport:
    revisions = {name: RevisionDemand(requests=1, in_flight=number) for name, number in in_flight.items()}
    of_it = DeploymentDemand(idle_seconds=idle, waiting=waiting, revisions=revisions)
    return DemandReport(gateway=gateway, version=1, deployments={"team/chat": of_it})


def test_requests_of_all_gateways_add_up() -> None:
    view = DemandView((said("a", waiting=1, v1=2.5), said("b", waiting=2, v1=1.0, v2=4.0)), expected=2)
    assert view.in_flight("team", "chat", "v1") == 3.5
    assert view.in_flight("team", "chat", "v2") == 4.0
    assert view.in_flight("team", "chat", "v3") == view.in_flight("other", "chat", "v1") == 0
    assert view.waiting("team", "chat") == 3
    assert list(view.asked()) == [("team", "chat")]


def test_who_waits_adds_up_by_revision() -> None:
    waits = DeploymentDemand(waiting=3, revisions={"v1": RevisionDemand(waiting=1), "v2": RevisionDemand(waiting=2)})
    one, two = (DemandReport(gateway=name, version=1, deployments={"team/chat": waits}) for name in "ab")
    view = DemandView((one, two, said("c", v1=1.0)), expected=3)
    assert [view.held("team", "chat", name) for name in ("v1", "v2", "v3")] == [2, 4, 0]


def test_it_is_idle_for_as_long_as_every_gateway_has_seen_it_idle() -> None:
    assert DemandView((said("a", idle=50), said("b", idle=20)), expected=2).idle_seconds("team", "chat") == 20


def test_nobody_knows_for_how_long_while_one_gateway_is_silent_or_does_not_know_it() -> None:
    other = DemandReport(gateway="b", version=1)
    assert DemandView((said("a", idle=50),), expected=2).idle_seconds("team", "chat") is None
    assert DemandView((said("a", idle=50), other), expected=2).idle_seconds("team", "chat") is None
    assert DemandView().idle_seconds("team", "chat") is None
    assert DemandView((said("a", waiting=2, v1=3),), expected=2).waiting("team", "chat") == 2


def test_it_is_known_when_every_gateway_has_answered() -> None:
    assert DemandView((said("a"), said("b")), expected=2).known
    assert not DemandView((said("a"),), expected=2).known
    assert not DemandView().known
