"""What the views say of objects as the API server holds them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.cli import world
from tuneyard.api.documents import PodReport
from tuneyard.api.modeldeployment import Revision
from tuneyard.cli.statuschanges import changes
from tuneyard.cli.statusview import DeploymentView, Read, deployment_view, event_views, overview
from tuneyard.planning.observations import pod_observation


def view(ready: bool = False) -> DeploymentView:
    read = world.read(ready)
    return deployment_view(read.deployments[0], read, world.NOW)


def test_weights_are_those_of_status_and_roles_those_of_the_rollout() -> None:
    v1, v2 = view().revisions
    assert (v1.weight, v1.spec_weight, v1.role, v1.ready_endpoints) == (100, 90, "stable", 2)
    assert (v2.weight, v2.spec_weight, v2.role, v2.withheld) == (
        0,
        10,
        "candidate",
        "NoReadyEndpoint: no pod serves revision v2",
    )


def test_pods_are_those_of_the_deployments_pools_with_every_adapter_it_names() -> None:
    pods = view().pods
    assert [p.name for p in pods] == ["smollm2-pool-5d8c7b9f4-aaaaa", "smollm2-pool-5d8c7b9f4-bbbbb"]
    assert [(a.adapter, a.state, a.reason) for a in pods[0].adapters] == [
        (world.V1, "Loaded", None),
        (world.V2, "Failed", "RankTooHigh"),
    ]
    assert pods[1].adapters[1].state == "Waiting"


def test_an_idle_deployment_is_ready_and_says_why_pods_lack_its_adapters() -> None:
    read = world.read(True)
    idle = read.deployments[0].status.model_copy(update={"idle_since": "2026-03-01T11:59:00Z", "reason": "Idle"})
    deployment = read.deployments[0].model_copy(update={"status": idle})
    pods = [replace(p, report=p.report and p.report.model_copy(update={"adapters": {}})) for p in read.pods]
    view = deployment_view(deployment, replace(read, deployments=[deployment], pods=pods), world.NOW)
    assert (view.ready, view.reason) == (True, "Idle")
    assert {a.state for p in view.pods for a in p.adapters} == {"Idle"}


def test_ready_needs_the_condition_for_the_spec_that_is_there() -> None:
    assert view(ready=True).ready
    assert not view().ready
    old = world.deployment(ready=True, observedGeneration=2)
    seen = deployment_view(old, Read(deployments=[old]), world.NOW)
    assert not seen.ready
    assert seen.stale


def test_unserved_share_is_what_no_revision_gets() -> None:
    nobody = [
        {"revision": r, "specWeight": w, "weight": g, "readyEndpoints": 0}
        for r, w, g in (("v1", 90, 0), ("v2", 10, 10))
    ]
    deployment = world.deployment(traffic=nobody)
    assert deployment_view(deployment, Read(deployments=[deployment]), world.NOW).unserved == 90


def test_a_pod_that_reports_nonsense_counts_as_silent() -> None:
    pod = world.pod("smollm2-pool-x", None)
    pod["metadata"]["annotations"] = {"tuneyard.dev/adapters": '{"adapters": 3}'}
    deployment = world.deployment()
    seen = deployment_view(deployment, Read(deployments=[deployment], pods=[pod_observation(pod)]), world.NOW)
    assert seen.pods[0].state == "Starting"
    assert {a.state for a in seen.pods[0].adapters} == {"Waiting"}


def test_a_pods_problem_is_its_state() -> None:
    waiting = {"name": "engine", "image": "x", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}}
    pod = world.pod("smollm2-pool-x", None, containerStatuses=[waiting])
    deployment = world.deployment()
    seen = deployment_view(deployment, Read(deployments=[deployment], pods=[pod_observation(pod)]), world.NOW)
    assert seen.pods[0].state == "ImagePullFailed"
    assert "no" in (seen.pods[0].problem or "")


@pytest.mark.parametrize(
    "time",
    [
        {"lastTimestamp": "2026-03-01T11:59:00Z"},
        {"eventTime": "2026-03-01T11:59:00.5Z", "lastTimestamp": None},
        {
            "series": {"lastObservedTime": "2026-03-01T11:59:00.123456Z", "count": 4},
            "eventTime": "2020-01-01T00:00:00Z",
        },
    ],
)
def test_events_of_both_apis_have_their_age(time: Any) -> None:
    event = {"type": "Normal", "reason": "R", "message": "m", "involvedObject": {"kind": "K", "name": "n"}, **time}
    (seen,) = event_views([event], world.NOW)
    assert seen.seconds_ago in (59, 60)
    assert seen.count == (4 if "series" in time else 1)


def test_events_newest_last_and_only_the_last_ones() -> None:
    events = [world.event("R", str(n), f"2026-03-01T11:{n:02}:00Z") for n in range(20)]
    assert [e.message for e in event_views(reversed(events), world.NOW)] == [str(n) for n in range(12, 20)]


def test_changes_tell_the_story_of_a_canary_that_becomes_ready() -> None:
    before, after = overview(world.read(), world.NOW), overview(world.read(ready=True), world.NOW)
    name = "models/acme-support"
    assert changes(before, after) == [
        f"{name}: ready",
        f"{name}: revision v1 gets 100 -> 90 % (spec 90 %)",
        f"{name}: revision v2 gets 0 -> 10 % (spec 10 %)",
        f"{name}: pod smollm2-pool-5d8c7b9f4-aaaaa adapter acme-support-v2 Loaded",
        f"{name}: pod smollm2-pool-5d8c7b9f4-bbbbb adapter acme-support-v2 Loaded",
    ]
    assert changes(after, after) == []


def test_the_first_lines_tell_everything_and_the_last_that_it_is_gone() -> None:
    after = overview(world.read(), world.NOW)
    first = changes(None, after)
    assert first[0] == "models/acme-support: not ready (NoReadyEndpoint)"
    assert any("Failed (RankTooHigh: rank 64" in line for line in first)
    gone = after.model_copy(update={"deployments": []})
    assert changes(after, gone) == ["models/acme-support: deleted"]


def test_json_form_is_camel_case() -> None:
    assert view().to_dict()["revisions"][1]["specWeight"] == 10


@pytest.mark.parametrize(
    ("serves_the_base", "shown"),
    [
        (False, {"pool-a": ["acme-support-v1"], "pool-new": []}),
        (True, {"pool-a": ["acme-support-v1"], "pool-b": [], "pool-new": []}),
    ],
)
def test_of_pods_that_share_adapters_those_are_shown_that_have_one(
    serves_the_base: bool, shown: dict[str, list[str]]
) -> None:
    """A pod that has said nothing yet may get one; with a revision of the base alone every pod matters."""
    deployment = world.deployment()
    if serves_the_base:
        plain = Revision(name="plain", base_model="smollm2")
        spec = deployment.spec.model_copy(update={"revisions": [*deployment.spec.revisions, plain]})
        deployment = deployment.model_copy(update={"spec": spec})
    pods = []
    for name, adapters in (("pool-a", [world.V1]), ("pool-b", []), ("pool-new", None)):
        pod = pod_observation(world.pod(name, None))
        if adapters is not None:
            said = {"address": "10.0.0.1:8080", "engine": "Ready", "baseModel": "smollm2", "awaitsShare": False}
            loaded = {a: {"state": "Loaded", "engineName": a} for a in adapters}
            pod = replace(pod, report=PodReport.from_dict({**said, "adapters": loaded}))
        pods.append(pod)
    seen = deployment_view(deployment, Read(deployments=[deployment], pods=pods), world.NOW)
    assert {p.name: [a.adapter for a in p.adapters if a.state != "Waiting"] for p in seen.pods} == shown
    assert all(len(p.adapters) == 1 for p in seen.pods if p.name == "pool-a")
