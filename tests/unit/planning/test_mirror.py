"""When requests are mirrored, in routes and in status alike, and what is said where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import NAMESPACE, Situation, base_model, deployment, pinned, pod, revision
from tuneyard.api.external import ExternalSpec
from tuneyard.api.mirror import MirrorSpec, MirrorStatus
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus, Revision
from tuneyard.api.rollout import RolloutStatus
from tuneyard.cli.mirrorview import mirror_summary
from tuneyard.planning.mirror import MirrorRoute, mirror_route, mirror_status
from tuneyard.planning.modeldeployment import plan_modeldeployment
from tuneyard.planning.routes import model_routes
from tuneyard.systems.envoy.translate import model_resources

ADAPTERS = (pinned("v1"), pinned("v3"))
REVISIONS = [revision("v1", "v1"), revision("v3", "v3")]


def mirrored(percent: int = 10, to: str = "v3", allowed: dict[str, int] | None = None, **spec: int):
    """v1 with all the traffic, and a mirror."""
    made = deployment(
        revisions=REVISIONS,
        traffic={"v1": 100, "v3": 0},
        status=ModelDeploymentStatus(rollout=RolloutStatus(stable="v1", allowed=allowed)),
    )
    mirror = MirrorSpec(revision=to, percent=percent, **spec)
    return made.model_copy(update={"spec": made.spec.model_copy(update={"mirror": mirror})})


def copied_by(made: ModelDeploymentResource, *pods: object) -> dict[str, dict[str, str]]:
    """What the script is told on the weighted clusters, by revision."""
    routes = model_routes(made, ADAPTERS, [base_model()], pods)  # type: ignore[arg-type]
    (configuration,) = model_resources(routes, lambda *_: "key").routes.values()
    route = configuration["virtual_hosts"][0]["routes"][-1]
    clusters = route["route"]["weighted_clusters"]["clusters"]
    filters = {c["name"].split("/")[2]: c["typed_per_filter_config"] for c in clusters if "/" in c["name"]}
    return {name: f["mirror"]["filter_context"] for name, f in filters.items() if "mirror" in f}


@pytest.mark.parametrize(
    ("made", "ready", "percent", "message"),
    [
        (mirrored(), {"v1": 1, "v3": 1}, 10, None),
        (mirrored(), {"v1": 1, "v3": 0}, 0, "no pod serves v3"),
        (mirrored(), {"v1": 1}, 0, "no pod serves v3"),
        (mirrored(), {"v3": 1}, 10, None),
        (mirrored(allowed={"v3": 0}), {"v1": 1, "v3": 1}, 0, "the rollout keeps every request from v3"),
        (mirrored(allowed={"v3": 5}), {"v1": 1, "v3": 1}, 10, None),
        (mirrored(to="v9"), {"v1": 1, "v9": 1}, 0, "spec.mirror names no revision of this deployment"),
    ],
)
def test_it_is_on_where_a_pod_may_take_copies(
    made: ModelDeploymentResource, ready: dict[str, int], percent: int, message: str | None
) -> None:
    assert made.spec.mirror is not None
    allowed = made.status.rollout.allowed if made.status.rollout else None
    to = made.spec.mirror.revision
    assert mirror_status(made.spec, ready, allowed) == MirrorStatus(revision=to, percent=percent, message=message)
    assert mirror_route(made.spec, ready, allowed) == MirrorRoute(to, 10, 16, active=message is None)


def test_no_copy_leaves_the_cluster() -> None:
    """Should the API server not have refused it: what gateways know of an external revision looks like a ready pod."""
    made = mirrored()
    api = ExternalSpec(url="https://api.example/v1", model="m")
    revisions = [made.spec.revisions[0], Revision(name="v3", external=api)]
    made = made.model_copy(update={"spec": made.spec.model_copy(update={"revisions": revisions})})
    routes = model_routes(made, ADAPTERS, [base_model()], [pod("a", "v1")])
    assert routes.mirror == MirrorRoute("v3", 10, 16, active=False)
    assert copied_by(made, pod("a", "v1")) == {}


def test_without_a_mirror_there_is_none() -> None:
    made = deployment(revisions=REVISIONS)
    assert mirror_status(made.spec, {"v1": 1, "v3": 1}, None) is None
    assert mirror_route(made.spec, {"v1": 1, "v3": 1}, None) is None
    assert copied_by(made, pod("a", "v1", "v3")) == {}


def test_routes_copy_for_everybody_but_the_mirrored_one_and_only_while_a_pod_has_it() -> None:
    context = {"model": "chat", "revision": "v1", "mirrored": "v3", "percent": "10"}
    assert copied_by(mirrored(), pod("a", "v1", "v3")) == {"v1": context}
    assert copied_by(mirrored(), pod("a", "v1")) == {}
    assert copied_by(mirrored(), pod("a", "v1"), pod("b", "v3", engine="Draining")) == {}
    shared = mirrored()
    shared = shared.model_copy(update={"spec": shared.spec.model_copy(update={"traffic": mixed()})})
    assert copied_by(shared, pod("a", "v1", "v3")) == {"v1": context}


def mixed() -> object:
    return deployment(revisions=REVISIONS, traffic={"v1": 60, "v3": 40}).spec.traffic


def test_what_is_held_is_not_copied() -> None:
    """A request that waits for its adapter could be refused still, and is late anyway."""
    routes = model_routes(mirrored(), ADAPTERS, [base_model()], [pod("a", "v1", "v3")])
    waiting = replace(routes, revisions=tuple(replace(r, held=r.name == "v1") for r in routes.revisions))
    (configuration,) = model_resources(waiting, lambda *_: "key").routes.values()
    assert "filter_context" in str(configuration)
    assert "mirrored" not in str(configuration)


def test_the_status_says_it_and_nothing_of_weights_changes() -> None:
    made = mirrored()
    situation = Situation(bases=(base_model(),), adapters=ADAPTERS, deployments=(made,), pods=(pod("a", "v1", "v3"),))
    status = plan_modeldeployment(situation.deployment()).status
    assert isinstance(status, ModelDeploymentStatus)
    assert status.mirror == MirrorStatus(revision="v3", percent=10)
    plain = made.model_copy(update={"spec": made.spec.model_copy(update={"mirror": None})})
    without = plan_modeldeployment(replace(situation, deployments=(plain,)).deployment()).status
    assert without == status.model_copy(update={"mirror": None})
    assert made.metadata.namespace == NAMESPACE


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (MirrorStatus(revision="v3", percent=10), "mirror: v3 gets copies of 10 % of the requests"),
        (
            MirrorStatus(revision="v3", percent=0, message="no pod serves v3"),
            "mirror: no copies for v3: no pod serves v3",
        ),
        (None, None),
    ],
)
def test_the_line_in_the_status(told: MirrorStatus | None, words: str | None) -> None:
    made = mirrored()
    made = made.model_copy(update={"status": made.status.model_copy(update={"mirror": told})})
    assert mirror_summary(made) == words
