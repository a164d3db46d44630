"""Which keys a change wakes: enough that nothing is missed, and no more than reads it."""

from __future__ import annotations

import json

import pytest
from kubernetes.client.configuration import Configuration

from tests.unit.runtime.wakeful import NS, Object, Scene, adapter, base, deployment
from tuneyard.api import names
from tuneyard.api.documents import PLAN_KEY
from tuneyard.planning.children import ANNOTATION_GROWN
from tuneyard.planning.observations import RECORD_KEY, PoolPlaces
from tuneyard.runtime.gather import Reads, credentials_of
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key
from tuneyard.runtime.places import Places
from tuneyard.systems.kube.client import Api
from tuneyard.systems.kube.watching import Change


@pytest.fixture
def scene() -> Scene:
    """One base with two adapters, a deployment that uses both, and one that uses the base alone."""
    scene = Scene()
    scene.base("base")
    scene.adapter("one")
    scene.adapter("two")
    scene.deployment("m", {"v0": ("base", None), "v1": ("base", "one"), "v2": ("base", "two")})
    scene.deployment("plain", {"v0": ("base", None)})
    return scene


def test_a_deployment_wakes_itself_its_base_and_its_adapters(scene: Scene) -> None:
    assert scene.deployment("new", {"v1": ("base", "one")}) == {base("base"), adapter("one")}
    assert scene.itself == {deployment("new")}


def test_a_weight_edit_wakes_nobody_else(scene: Scene) -> None:
    assert scene.deployment("plain", {"v0": ("base", None)}, "MODIFIED", generation=2, traffic=[]) == set()
    assert scene.itself == {deployment("plain")}


def test_a_deployment_that_idles_or_wakes_wakes_its_base_and_its_adapters(scene: Scene) -> None:
    for status in ({"idleSince": "2026-01-01T00:00:00Z"}, {"wakingSince": "2026-01-01T00:01:00Z"}, {}):
        woken = scene.deployment("chat", {"v1": ("base", "one")}, "MODIFIED", status=status)
        assert {base("base"), adapter("one")} <= woken, status
    assert scene.deployment("chat", {"v1": ("base", "one")}, "MODIFIED", status={"reason": "Applying"}) == set()


def test_only_who_is_newly_asked_to_make_room_is_woken(scene: Scene) -> None:
    """A full pool asks others all the time, and thousands may share its base."""

    def asks(*deployments: str) -> set[Key]:
        base = {
            "metadata": {"name": "base", "generation": 1},
            "spec": {"source": {"volume": {"name": "v", "path": "base"}}},
            "status": {"pools": [{"name": "base", "makesRoom": list(deployments)}]},
        }
        return scene.tell(scene.world.base_models.informer, "MODIFIED", base)

    asks()
    assert asks("m") == {deployment("m")}
    assert asks("m", "plain") == {deployment("plain")}
    assert asks("plain") == set()
    assert asks("plain", "m") == {deployment("m")}


def test_what_a_deployment_no_longer_names_is_woken_too(scene: Scene) -> None:
    woken = scene.deployment("m", {"v0": ("base", None), "v2": ("base", "two")}, "MODIFIED", generation=2)
    assert woken == {base("base"), adapter("one"), adapter("two")}


def test_a_deployment_that_goes_wakes_what_it_named(scene: Scene) -> None:
    assert scene.deployment("m", {"v0": ("base", None)}, "DELETED") == {base("base"), adapter("one"), adapter("two")}


def test_whoever_claims_the_same_model_name_is_woken(scene: Scene) -> None:
    assert deployment("m") in scene.deployment("other", {"v0": ("base", None)}, modelName="m")
    renamed = scene.deployment("other", {"v0": ("base", None)}, "MODIFIED", generation=2, modelName="else")
    assert deployment("m") in renamed


def test_adapters_without_a_place_are_woken_when_references_change(scene: Scene) -> None:
    full = {"conditions": [{"type": "Loaded", "status": "False", "reason": "PoolFull", "lastTransitionTime": "t"}]}
    scene.adapter("two", change="MODIFIED", status=full)
    assert adapter("two") in scene.deployment("new", {"v1": ("base", "one")})


def test_an_adapter_wakes_its_base_and_who_names_it(scene: Scene) -> None:
    told = {"digest": "sha256:" + "0" * 64}
    assert scene.adapter("one", change="MODIFIED", status=told) == {base("base"), deployment("m")}


def test_who_uses_an_adapter_is_nothing_that_others_read(scene: Scene) -> None:
    assert scene.adapter("one", change="MODIFIED", status={"usedBy": ["m", "n"]}) == set()


def test_a_revision_that_takes_over_wakes_its_adapter_once(scene: Scene) -> None:
    def told(status: Object) -> set[Key]:
        return scene.deployment("chat", {"v1": ("base", "one"), "v2": ("base", "two")}, "MODIFIED", status=status)

    told({})
    assert told({"rollout": {"stable": "v1"}}) == set()
    assert told({"rollout": {"stable": "v1", "stableSince": "2026-01-01T12:00:00Z"}}) == {adapter("one")}
    assert told({"rollout": {"stable": "v1", "stableSince": "2026-01-01T12:00:00Z", "weight": 5}}) == set()
    assert told({"rollout": {"stable": "v2", "stableSince": "2026-01-02T12:00:00Z"}}) == {adapter("two")}
    assert told({"rollout": "nobody can read it"}) == set()


def test_a_revision_without_an_adapter_that_takes_over_wakes_its_base_once(scene: Scene) -> None:
    status = {"rollout": {"stable": "v0", "stableSince": "2026-01-01T12:00:00Z"}}
    assert scene.deployment("plain", {"v0": ("base", None)}, "MODIFIED", status=status) == {base("base")}
    assert scene.deployment("plain", {"v0": ("base", None)}, "MODIFIED", status=status) == set()


def test_a_parent_that_comes_wakes_what_was_trained_from_it(scene: Scene) -> None:
    scene.adapter("child", parent="parent")
    scene.adapter("stranger", parent="some words")
    assert scene.adapter("parent") == {base("base"), adapter("child")}


def test_a_base_wakes_its_adapters_and_deployments_and_on_coming_its_siblings(scene: Scene) -> None:
    assert scene.base("base", "MODIFIED", generation=2) == {
        adapter("one"),
        adapter("two"),
        deployment("m"),
        deployment("plain"),
    }
    assert scene.base("second") == {base("base")}


def test_a_missing_base_that_comes_wakes_who_waits_for_it() -> None:
    scene = Scene()
    scene.adapter("one")
    scene.deployment("m", {"v1": ("base", "one")})
    assert scene.base("base") == {adapter("one"), deployment("m")}


def test_a_new_pod_wakes_its_base_the_users_of_its_pool_and_the_adapters_it_has(scene: Scene) -> None:
    users = {base("base"), deployment("m"), deployment("plain")}
    assert scene.pod("p", {}) == users
    assert scene.pod("q", {"one": {"state": "Loading"}}) == {*users, adapter("one")}
    assert scene.pod("q", {"one": {"state": "Loading"}}, "DELETED") == {*users, adapter("one")}


def test_what_adapters_do_not_read_of_a_pod_does_not_wake_them(scene: Scene) -> None:
    loaded = {"one": {"state": "Loaded"}}
    scene.pod("p", loaded)
    for changed in ({"engine": "Draining"}, {"engine": "Draining", "spec": {"nodeName": "n"}}):
        woken = scene.pod("p", loaded, "MODIFIED", **changed)
        assert woken == {base("base"), deployment("m"), deployment("plain")}


def test_a_problem_of_a_pod_and_its_end_wake_all_adapters(scene: Scene) -> None:
    everyone = {adapter("one"), adapter("two")}
    waiting = {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    scene.pod("well", {})
    assert scene.pod("sick", {}, status={"containerStatuses": [waiting]}) >= everyone
    assert scene.pod("new", {}) >= everyone, "a newer template may be what counts now"
    assert scene.pod("sick", {}, "MODIFIED") >= everyone
    assert not scene.pod("well", {}, "DELETED") & everyone


def test_a_pod_that_says_the_same_wakes_nobody(scene: Scene) -> None:
    scene.pod("p", {})
    assert scene.pod("p", {}, "MODIFIED") == set()


def test_a_pod_with_one_more_adapter_wakes_only_who_has_to_do_with_it(scene: Scene) -> None:
    scene.pod("p", {})
    woken = scene.pod("p", {"one": {"state": "Loading"}}, "MODIFIED")
    assert woken == {base("base"), adapter("one"), deployment("m")}


def test_a_pod_that_goes_wakes_everybody_of_its_pool(scene: Scene) -> None:
    scene.pod("p", {})
    assert deployment("plain") in scene.pod("p", {}, "DELETED")


def test_a_pod_of_another_pool_does_not_wake_who_uses_the_shared_one(scene: Scene) -> None:
    assert deployment("plain") not in scene.pod("p", {}, pool="base-own")


def test_a_child_wakes_its_base_and_one_that_is_shared_wakes_all(scene: Scene) -> None:
    scene.base("second")
    informer = scene.world.children["v1", "ConfigMap"].informer
    labels = {names.LABEL_BASE_MODEL: "base"}
    assert scene.tell(informer, "DELETED", {"metadata": {"name": "plan", "labels": labels}}) == {base("base")}
    account = scene.world.children["v1", "ServiceAccount"].informer
    assert scene.tell(account, "DELETED", {"metadata": {"name": "agent"}}) == {base("base"), base("second")}


def plan_of(
    scene: Scene, *adapters: str, copies: int | None = None, source: Object | None = None, **grown: int
) -> set[Key]:
    """The pool's plan as it holds these adapters now, some with more copies; returns who was woken."""
    source = source or {"volume": {"name": "v", "path": "p"}}
    plan = {"pool": "base", "baseModel": "base", "maxRank": 8, "copies": copies}
    listed = [{"name": a, "source": source, "copies": grown.get(a)} for a in adapters]
    labels = {names.LABEL_BASE_MODEL: "base", names.LABEL_POOL: "base", names.LABEL_MANAGED_BY: names.MANAGED_BY}
    metadata = {
        "name": "base-plan",
        "labels": labels,
        "annotations": {ANNOTATION_GROWN: json.dumps({a: str(number) for a, number in grown.items()})},
    }
    item = {"metadata": metadata, "data": {PLAN_KEY: json.dumps({**plan, "adapters": listed})}}
    return scene.tell(scene.world.children["v1", "ConfigMap"].informer, "MODIFIED", item)


def test_a_plan_wakes_who_came_who_went_and_who_waits_for_a_place(scene: Scene) -> None:
    scene.adapter("unused")
    assert plan_of(scene, "one") == {base("base"), adapter("one"), adapter("two")}
    assert plan_of(scene, "one") == {base("base")}
    assert plan_of(scene, "two") == {base("base"), adapter("one"), adapter("two")}
    assert plan_of(scene, "one", "two") == {base("base"), adapter("one")}
    everybody = {base("base"), adapter("one"), adapter("two"), adapter("unused")}
    assert plan_of(scene, "one", "two", copies=2) == everybody, "each has another number to reach"
    assert plan_of(scene, "one", "two", copies=2) == {base("base")}
    assert plan_of(scene, "one", "two", copies=2, one=3) == {base("base"), adapter("one")}
    assert plan_of(scene, "one", "two", copies=2, one=4) == {base("base"), adapter("one")}
    assert plan_of(scene, "one", "two", copies=2, two=3) == {base("base"), adapter("one"), adapter("two")}


def test_agents_may_read_the_secret_of_an_adapter_that_is_gone_while_a_plan_has_it(scene: Scene) -> None:
    """`kubectl replace --force`: its pods are told to fetch it until it is back."""
    reads = Reads(scene.world, Api(Configuration(host="http://127.0.0.1:1")))

    def credentials() -> frozenset[str]:
        return credentials_of(reads, NS, reads.siblings(NS))

    def planned(*adapters: str) -> None:
        plan_of(scene, *adapters, source={"s3": {"uri": "s3://bucket/one/", "credentials": {"name": "keys"}}})

    planned("one")
    assert credentials() == frozenset(), "of one that is there its own source counts"
    scene.adapter("one", change="DELETED")
    assert credentials() == {"keys"}
    planned()
    assert credentials() == frozenset()
    planned("unnamed")
    assert credentials() == frozenset(), "nobody names it"


def test_who_has_a_place_is_worked_out_once_per_change_that_decides_it(scene: Scene) -> None:
    reads = Reads(scene.world, Api(Configuration(host="http://127.0.0.1:1")))
    found = scene.world.base_models.get(NS, "base")
    assert found is not None

    def places() -> object:
        return reads.places(found)

    known = places()
    assert places() is known
    scene.adapter("one", change="MODIFIED", status={"usedBy": ["m"], "digest": "sha256:" + "0" * 64})
    scene.base("base", "MODIFIED")
    scene.deployment("plain", {"v0": ("base", None)}, "MODIFIED", generation=2, traffic=[])
    assert places() is known, "no status and no weight decides it"
    for change in (
        lambda: scene.adapter("three"),
        lambda: scene.adapter("three", change="DELETED"),
        lambda: scene.deployment("new", {"v1": ("base", "one")}),
        lambda: scene.base("base", "MODIFIED", generation=2),
        lambda: scene.base("base", "MODIFIED", generation=2, status={"pools": [{"name": "base", "wantedReplicas": 3}]}),
        lambda: plan_of(scene, "one"),
    ):
        before = places()
        change()
        assert places() is not before


def test_a_place_that_was_worked_out_during_a_change_is_not_kept() -> None:
    places = Places()
    other = PoolPlaces("base", NS, 1, frozenset(), {})

    def meanwhile() -> tuple[PoolPlaces, ...]:
        places.changed([base("base")])
        return (other,)

    assert places.of(base("base"), meanwhile) == (other,)
    assert places.of(base("base"), lambda: ()) == ()


def test_the_echo_of_an_own_status_wakes_nobody_and_another_one_does(scene: Scene) -> None:
    stored = scene.world.raw(deployment("plain"))
    assert stored is not None
    status: Object = {"observedGeneration": 1}
    scene.wakes.writing({**stored, "kind": MODEL_DEPLOYMENT}, status)
    echo = {**stored, "status": status}
    scene.tell(scene.world.deployments.informer, "MODIFIED", echo)
    assert scene.itself == set()
    scene.tell(scene.world.deployments.informer, "MODIFIED", {**stored, "status": {}})
    assert scene.itself == {deployment("plain")}


def test_a_deployment_that_cannot_be_read_holds_every_base_back_until_it_can(scene: Scene) -> None:
    broken = {"metadata": {"name": "broken", "generation": 1}, "spec": {"revisions": "none"}}
    assert base("base") in scene.tell(scene.world.deployments.informer, "ADDED", broken)
    assert scene.itself == {deployment("broken")}
    assert base("base") in scene.tell(scene.world.deployments.informer, "DELETED", broken)


def test_a_status_that_cannot_be_read_makes_nobody_blind(scene: Scene) -> None:
    assert scene.adapter("three", status={"sizeBytes": "many"}) == {base("base")}
    found = scene.world.adapters.get(NS, "three")
    assert found is not None
    assert found.status.size_bytes is None


def test_namespaces_that_are_not_watched_are_left_alone() -> None:
    scene = Scene(watchNamespaces=["another"])
    assert scene.base("base") == set()
    assert scene.deployment("m", {"v0": ("base", None)}) == set()
    assert scene.itself == set()
    assert scene.wakes.everything() == []


def record(scene: Scene, name: str, change: Change = "MODIFIED") -> set[Key]:
    """What outlives the ModelDeployment of this name has changed."""
    labels = {names.LABEL_COMPONENT: names.ROLLOUT_RECORD}
    data = {RECORD_KEY: json.dumps({"deployment": name})}
    item = {"metadata": {"name": names.rollout_record(name), "labels": labels}, "data": data}
    return scene.tell(scene.world.children["v1", "ConfigMap"].informer, change, item)


def test_a_record_wakes_its_deployment_alone_also_one_that_is_gone(scene: Scene) -> None:
    assert record(scene, "m") == {deployment("m")}
    assert record(scene, "gone") == {deployment("gone")}
    assert scene.world.child_index.of((NS, "")) == (), "it is no child of any pool"


@pytest.mark.parametrize("component", [names.ROLLOUT_EVIDENCE, names.GATE, names.GATE_REPORTS])
def test_what_only_the_operator_s_own_passes_read_wakes_nobody(scene: Scene, component: str) -> None:
    labels = {names.LABEL_COMPONENT: component}
    item = {"metadata": {"name": names.rollout_evidence("m"), "labels": labels}, "data": {RECORD_KEY: "{}"}}
    assert scene.tell(scene.world.children["v1", "ConfigMap"].informer, "MODIFIED", item) == set()
    assert scene.world.child_index.of((NS, "")) == (), "it is no child of any pool"


def test_a_command_beside_the_status_that_was_just_written_is_no_echo(scene: Scene) -> None:
    status = {"reason": "Ready"}
    found: Object = {"name": "m", "generation": 1}
    item: Object = {"apiVersion": names.API_VERSION, "kind": MODEL_DEPLOYMENT, "metadata": found}
    informer = scene.world.deployments.informer
    scene.tell(informer, "MODIFIED", item)
    scene.wakes.writing(item, status)
    scene.tell(informer, "MODIFIED", {**item, "status": status})
    assert scene.itself == set()
    commanded = {**found, "annotations": {names.ANNOTATION_COMMAND: "{}"}}
    scene.tell(informer, "MODIFIED", {**item, "metadata": commanded, "status": status})
    assert scene.itself == {deployment("m")}


def test_who_drifts_is_told_for_the_metrics_and_forgotten_with_the_object() -> None:
    scene = Scene(watchNamespaces=[NS])

    def told(name: str, word: str, change: Change = "ADDED") -> None:
        status = {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Drifting", "status": word}]}
        scene.deployment(name, {"v0": ("base", None)}, change, status=status)

    told("m", "True")
    told("n", "False")
    scene.deployment("unwatched", {"v0": ("base", None)})
    assert sorted(scene.world.drifts()) == [(NS, "m", True), (NS, "n", False)]
    told("m", "True", "DELETED")
    assert scene.world.drifts() == [(NS, "n", False)]
