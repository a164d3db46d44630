"""What a gateway knows, change by change; every step is also compared with the routes of everything at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import BASE, base_model, deployment, digest, loaded, pinned, pod, revision, stamp
from tests.builders import adapter as unpinned
from tuneyard.api import names
from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.documents import AdapterReport, Transfer
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.rollout import Outcome, RolloutSpec, RolloutStatus
from tuneyard.api.routing import Routing
from tuneyard.api.serving import ServingSpec
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.gateway.world import World
from tuneyard.planning.contents import hash_of
from tuneyard.planning.handover import LAST_RESORT_SECONDS
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.routes import GRACE, ModelRoutes

TWO = [revision("v1", "v1"), revision("v2", "v2")]


def raw(resource: ApiModel) -> dict[str, Any]:
    return resource.to_dict()


def raw_pod(one: PodObservation) -> dict[str, Any]:
    annotations = {names.ANNOTATION_ADAPTERS: one.report.model_dump_json(by_alias=True)} if one.report else {}
    return {
        "metadata": {
            "name": one.name,
            "namespace": one.namespace,
            "labels": {names.LABEL_POOL: one.pool},
            "annotations": annotations,
        }
    }


def world_of(*deployments: ApiModel) -> World:
    world = World()
    world.put("base", raw(base_model()), 0)
    world.put("adapter", raw(pinned("v1")), 0)
    world.put("adapter", raw(pinned("v2")), 0)
    world.put("pod", raw_pod(pod("a", "v1", "v2")), 0)
    for one in deployments:
        world.put("deployment", raw(one), 0)
    return world


def routes(world: World, model: str = "chat", now: float = 0) -> ModelRoutes:
    found = world.routes(model, now)
    assert found is not None
    return found


def canary(v1: int = 90, **fields: Any) -> ApiModel:
    return deployment(revisions=TWO, traffic={"v1": v1, "v2": 100 - v1}, **fields)


def test_a_pod_that_leaves_serves_what_nobody_else_has_for_a_while() -> None:
    """A gateway sees no more of a pod than its metadata: one whose node is dead says nothing for ever."""
    world = world_of(canary())
    before = routes(world)
    leaving = raw_pod(pod("a", "v1", "v2"))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    world.put("pod", leaving, 100)
    assert routes(world) == before
    assert world.put("pod", raw_pod(pod("b", "v1")), 101) == {"chat"}
    first, second = ([e.pod for e in r.endpoints] for r in routes(world).revisions)
    assert (first, second) == (["b"], ["a"])
    world.put("pod", leaving, 110)
    assert world.next_expiry() == 100 + LAST_RESORT_SECONDS, "it began when it was first seen to leave"
    assert world.expire(100 + LAST_RESORT_SECONDS - 0.1) == set()
    assert world.expire(100 + LAST_RESORT_SECONDS) == {"chat"}
    assert [len(r.endpoints) for r in routes(world).revisions] == [1, 0]
    assert world.put("pod", leaving, 150) == set(), "and has ended"
    assert world.next_expiry() is None
    world.remove("pod", ("team", "a"), 160)
    world.put("pod", leaving, 170)
    assert [len(r.endpoints) for r in routes(world).revisions] == [1, 1], "another one of that name"


def test_a_change_touches_the_models_that_it_can_change() -> None:
    world = World()
    other = deployment("other", revisions=[revision("r", "o", base="big")])
    assert world.put("deployment", raw(canary()), 0) == {"chat"}
    assert world.put("deployment", raw(other), 0) == {"other"}
    assert world.put("adapter", raw(pinned("v1")), 0) == {"chat"}
    assert world.put("adapter", raw(pinned("v1")), 0) == set()
    assert world.put("adapter", raw(pinned("o", base="big")), 0) == {"other"}
    assert world.put("adapter", raw(pinned("nobodys")), 0) == set()
    assert world.put("base", raw(base_model()), 0) == {"chat"}
    assert world.put("base", raw(base_model()), 0) == set()
    sleepy = base_model(serving=ServingSpec(scale_to_zero_after="1h"))
    assert world.put("base", raw(sleepy), 0) == {"chat"}, "its requests may have to wait from now on"
    assert world.put("base", raw(sleepy), 0) == set()
    assert world.put("pod", raw_pod(pod("a", "v1")), 0) == {"chat"}
    assert world.put("pod", raw_pod(pod("a", "v1")), 0) == set()
    assert world.put("pod", raw_pod(pod("b", pool="big", base="big")), 0) == {"other"}
    assert world.put("pod", raw_pod(pod("b", pool=BASE)), 0) == {"chat", "other"}
    assert world.remove("pod", ("team", "a"), 0) == {"chat"}
    assert world.put("deployment", raw(canary(model_name="renamed")), 0) == {"chat", "renamed"}
    assert world.namespaces() == {"team"}


def test_a_bases_digest_touches_every_model_of_the_base() -> None:
    """What an adapter's revision is, for those that judge its answers, has its base's digest in it."""
    plain = deployment("plain", revisions=[revision("v1", None)])
    world = world_of(canary(), plain)
    assert routes(world, "plain").revisions[0].digest is None
    before = routes(world).contents
    read = base_model(status=BaseModelStatus(digest=digest("base")))
    assert world.put("base", raw(read), 0) == {"chat", "plain"}
    assert routes(world, "plain").revisions[0].digest == digest("base")
    assert [r.base_digest for r in routes(world).revisions] == [digest("base")] * 2
    assert not before.items() & routes(world).contents.items()
    ready = read.model_copy(update={"status": read.status.model_copy(update={"replicas": "1/1"})})
    assert world.put("base", raw(ready), 0) == set()
    assert [r.digest for r in routes(world).revisions] == [digest("v1"), digest("v2")]
    assert world.put("base", raw(base_model(path="elsewhere", status=read.status)), 0) == {"chat", "plain"}


def test_a_report_touches_the_models_of_the_adapters_that_changed_in_it() -> None:
    one, two = (deployment(name, revisions=[revision("r", name)]) for name in ("one", "two"))
    world = world_of(one, two, deployment("plain", revisions=[revision("r")]))
    everyone = {"one", "two", "plain"}
    for name in ("one", "two"):
        world.put("adapter", raw(pinned(name)), 0)

    def report(*adapters: str, **fields: Any) -> set[str]:
        said = pod("a", *adapters)
        assert said.report is not None
        return world.put("pod", raw_pod(replace(said, report=said.report.model_copy(update=fields))), 0)

    assert report("one") == {"one"}
    assert routes(world, "one").weights == {"r": 100}
    assert report("one", "two") == {"two"}
    assert routes(world, "two").weights == {"r": 100}
    assert report("one", "two", "nobodys") == set()
    assert report("two", adapters={"one": AdapterReport(state="Loading"), "two": loaded("two")}) == {"one"}
    assert routes(world, "one").unserved == 100
    assert report("one", "two") == {"one"}
    other_bytes = {"one": loaded("one", digest=digest("other")), "two": loaded("two")}
    assert report("one", "two", adapters=other_bytes) == {"one"}
    assert report("one", "two") == {"one"}
    for fields in ({"engine": "Draining"}, {"address": "10.0.0.9:8080"}, {"base_model": "other"}):
        assert report("one", "two", **fields) == everyone
        assert report("one", "two") == everyone
    assert world.put("pod", raw_pod(replace(pod("a"), report=None)), 0) == everyone
    assert report("one", "two") == everyone
    leaving = raw_pod(pod("a", "one", "two"))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert world.put("pod", leaving, 0) == everyone
    assert world.expire(LAST_RESORT_SECONDS) == everyone
    assert world.remove("pod", ("team", "a"), LAST_RESORT_SECONDS) == set(), "nobody was sent to it any more"
    for done in range(3):
        transfer = Transfer(done_bytes=done, total_bytes=9)
        assert report("one", "two", engine="Starting", base_transfer=transfer) == set()
    assert report("one", "two") == everyone


def test_a_report_costs_what_it_changes() -> None:
    """The time that a report takes does not grow with the deployments that it does not concern."""
    world = world_of(*(deployment(f"m{n}", revisions=[revision("r", f"a{n}")]) for n in range(300)))
    adapters = [f"a{n}" for n in range(300)]
    world.put("adapter", raw(pinned("a0")), 0)
    world.put("pod", raw_pod(pod("a", *adapters[1:])), 0)
    known = world._deployments.present = _Counting(world._deployments.present)
    assert world.put("pod", raw_pod(pod("a", *adapters)), 0) == {"m0"}
    assert routes(world, "m0").weights == {"r": 100}
    assert known.looked_at < 10


class _Counting(dict[Any, Any]):
    """Counts what is looked at; going through all of it is looking at each."""

    looked_at = 0

    def __getitem__(self, key: Any) -> Any:
        self.looked_at += 1
        return super().__getitem__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self.looked_at += 1
        return super().get(key, default)

    def __iter__(self) -> Any:
        self.looked_at += len(self)
        return super().__iter__()

    def keys(self) -> Any:
        self.looked_at += len(self)
        return super().keys()


def test_weights_follow_spec_status_and_pods() -> None:
    world = world_of(canary())
    assert routes(world).weights == {"v1": 90, "v2": 10}
    world.put("pod", raw_pod(pod("a", "v1")), 0)
    assert routes(world).weights == {"v1": 100, "v2": 0}
    world.put("pod", raw_pod(pod("b", "v2")), 0)
    status = ModelDeploymentStatus(rollout=RolloutStatus(stable="v1", allowed={"v2": 3}))
    world.put("deployment", raw(canary(v1=50, status=status)), 0)
    assert routes(world).weights == {"v1": 97, "v2": 3}
    world.remove("pod", ("team", "a"), 0)
    assert (routes(world).weights, routes(world).unserved) == ({"v1": 0, "v2": 3}, 97)


def test_the_header_is_allowed_by_the_deployment() -> None:
    allowed = deployment().spec.model_copy(update={"routing": Routing(allow_revision_header=True)})
    world = world_of(deployment(), deployment("open").model_copy(update={"spec": allowed}))
    assert not routes(world).allow_revision_header
    assert routes(world, "open").allow_revision_header


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d["spec"].pop("revisions"),
        lambda d: d["spec"].update(traffic=[{"revision": "v1", "weight": 60}]),
        lambda d: d["spec"].update(traffic=[{"revision": "nope", "weight": 100}]),
        lambda d: d["spec"].update(traffic="all"),
    ],
)
def test_an_unreadable_deployment_keeps_its_last_good_routes(spoil: Any) -> None:
    world = world_of(canary())
    before = routes(world)
    broken = raw(canary())
    spoil(broken)
    assert world.put("deployment", broken, 0) == set()
    assert routes(world) == before
    world.put("pod", raw_pod(pod("a", "v1")), 0)
    assert routes(world).weights == {"v1": 100, "v2": 0}


def test_an_unreadable_report_counts_as_none() -> None:
    world = world_of(canary())
    broken = raw_pod(pod("a"))
    for text in ("", "{}", "[1]", '{"address": 1}'):
        broken["metadata"]["annotations"][names.ANNOTATION_ADAPTERS] = text
        world.put("pod", broken, 0)
        assert routes(world).unserved == 100


def test_what_vanished_counts_for_a_while() -> None:
    world = world_of(canary())
    before = routes(world)
    for kind, name in (("deployment", "chat"), ("adapter", "v1"), ("base", BASE)):
        assert world.remove(kind, ("team", name), 100) == set()  # type: ignore[arg-type]
    assert world.next_expiry() == 100 + GRACE
    assert world.expire(100 + GRACE - 0.1) == set()
    assert routes(world, now=100 + GRACE - 0.1) == before
    assert world.expire(100 + GRACE) == {"chat"}
    assert world.routes("chat", 100 + GRACE) is None
    assert world.models() == set()
    assert world.next_expiry() is None


def test_what_is_created_again_goes_on() -> None:
    world = world_of(canary())
    world.remove("deployment", ("team", "chat"), 100)
    world.remove("adapter", ("team", "v1"), 100)
    world.put("deployment", raw(canary(v1=80, uid="new")), 101)
    world.put("adapter", raw(unpinned("v1")), 101)
    # the digest stood in the status of the one that is gone
    assert routes(world, now=101).weights == {"v1": 80, "v2": 20}
    assert routes(world, now=101).uid == "new"
    world.put("adapter", raw(pinned("v1")), 105)
    assert world.expire(200) == set()
    assert routes(world, now=200).weights == {"v1": 80, "v2": 20}


def test_an_evaluation_that_is_added_or_lost_changes_no_route() -> None:
    """A forced sync creates an adapter again without the entries that others had added."""
    world = world_of(canary())
    judged = raw(pinned("v1"))
    judged["spec"]["lineage"] = {"evals": [{"name": "nightly", "score": 0.8}]}
    assert world.put("adapter", judged, 0) == set()
    world.remove("adapter", ("team", "v1"), 100)
    world.put("adapter", raw(unpinned("v1")), 101)
    assert routes(world, now=101).weights == {"v1": 90, "v2": 10}


def test_an_adapter_that_comes_back_with_another_system_prompt_is_served_with_that() -> None:
    world = world_of(deployment())
    before = routes(world).revisions[0]
    raw_adapter = raw(unpinned("v1"))
    raw_adapter["spec"]["systemPrompt"] = {"text": "Be brief.", "apply": "Always"}
    assert world.put("adapter", raw_adapter, 1) == {"chat"}
    after = routes(world, now=2).revisions[0]
    assert (after.digest, after.prompt) == (before.digest, SystemPrompt(text="Be brief.", apply="Always"))
    assert after.contents != before.contents


def test_a_digest_is_not_borrowed_for_ever_nor_by_another_adapter() -> None:
    world = world_of(canary())
    world.remove("adapter", ("team", "v1"), 100)
    world.put("adapter", raw(unpinned("v1")), 101)
    world.put("adapter", raw(unpinned("v1", labels={"touched": "again"})), 105)
    assert routes(world, now=105).weights["v1"] == 90
    assert world.expire(101 + GRACE) == {"chat"}
    assert routes(world, now=120).weights["v1"] == 0
    world.put("adapter", raw(pinned("v1")), 121)
    world.remove("adapter", ("team", "v1"), 130)
    world.put("adapter", raw(unpinned("v1", volume="elsewhere")), 131)
    assert routes(world, now=131).weights["v1"] == 0


def test_other_bytes_under_the_same_name_are_another_engine_name() -> None:
    world = world_of(canary(status=ModelDeploymentStatus(rollout=RolloutStatus(stable="v1"))))
    assert world.put("adapter", raw(unpinned("v1", digest=digest("changed"))), 0) == {"chat"}
    assert routes(world).weights == {"v1": 0, "v2": 10}
    world.put("pod", raw_pod(pod("a", "v2", reports={"v1": loaded("v1", digest=digest("changed"))})), 0)
    assert routes(world).weights == {"v1": 90, "v2": 10}


def test_the_owner_of_a_name_keeps_it_while_it_lingers() -> None:
    world = world_of(canary(created=0), deployment("later", model_name="chat", created=5))
    assert routes(world).deployment == "chat"
    world.remove("deployment", ("team", "chat"), 100)
    assert routes(world, now=101).deployment == "chat"
    assert world.expire(100 + GRACE) == {"chat"}
    assert routes(world, now=111).deployment == "later"


def test_it_is_written_down_and_read_back() -> None:
    world = world_of(canary(), deployment("other", revisions=[revision("plain")]))
    world.put("pod", {**raw_pod(pod("b")), "spec": {"secret": "not kept"}}, 0)
    lines = world.lines()
    assert "not kept" not in "".join(lines)
    later = World()
    assert later.restore(lines, 50) == {"chat", "other"}
    for model in ("chat", "other"):
        assert later.routes(model, 50) == world.routes(model, 0)
    assert sorted(later.lines()) == sorted(lines)
    with pytest.raises(ValueError, match="secret"):
        World().restore(['{"kind": "secret", "object": {}}'], 0)


def test_a_rehearsal_goes_on_where_the_api_server_is_away() -> None:
    world = world_of()
    one = raw(canary())
    fault = {names.ANNOTATION_DRILL: '{"revision": "v2", "errors": 50}'}
    one["metadata"]["annotations"] = {**fault, "example.com/other": "not kept"}
    world.put("deployment", one, 0)
    assert [r.name for r in routes(world).revisions if r.fault] == ["v2"]
    assert "not kept" not in "".join(world.lines())
    later = World()
    later.restore(world.lines(), 50)
    assert routes(later, now=50) == routes(world)


def test_a_list_replaces_what_was_remembered() -> None:
    world = world_of(canary(), deployment("gone"))
    world.put("pod", raw_pod(pod("b", "v1")), 0)
    assert world.forget_others("deployment", None, [("team", "chat")], 60) == set()
    assert world.forget_others("pod", "other", [], 60) == set()
    assert world.forget_others("pod", "team", [("team", "b")], 60) == {"chat", "gone"}
    assert world.forget_others("adapter", "team", [("team", "v1"), ("team", "v2")], 60) == set()
    assert world.expire(60 + GRACE) == {"gone"}
    assert world.models() == {"chat"}


def test_an_object_that_is_created_again_keeps_who_was_stable_and_who_was_rejected():
    status = ModelDeploymentStatus(rollout=RolloutStatus(stable="v1", allowed={"v2": 0}))
    world = world_of(canary(0, status=status))
    assert routes(world).weights == {"v1": 100, "v2": 0}
    world.remove("deployment", ("team", "chat"), 1)
    world.put("deployment", raw(canary(0, uid="another")), 2)
    assert routes(world, now=3).weights == {"v1": 100, "v2": 0}
    told = ModelDeploymentStatus(rollout=RolloutStatus(stable="v1"))
    world.put("deployment", raw(canary(0, uid="another", status=told)), 4)
    assert routes(world, now=5).weights == {"v1": 0, "v2": 100}, "what the operator says holds"


def test_a_position_is_not_kept_without_its_status():
    rollout = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 25}]})
    status = ModelDeploymentStatus(rollout=RolloutStatus(stable="v1", allowed={"v2": 25}))
    world = world_of(canary(0, rollout=rollout, status=status))
    assert routes(world).weights == {"v1": 75, "v2": 25}
    world.put("deployment", raw(canary(0, rollout=rollout)), 2)
    assert routes(world, now=3).weights == {"v1": 100, "v2": 0}


def test_an_object_that_is_created_again_keeps_whose_contents_were_stable():
    rollout = RolloutSpec.from_dict({"mode": "Progressive", "steps": [{"weight": 25}]})
    old = {r.name: hash_of(r, base_model(), pinned(r.name), None) or "" for r in TWO}
    history = [Outcome(revision=n, content_hash=h, outcome="Stable", at=stamp(0)) for n, h in old.items()]
    told = RolloutStatus(stable="v2", allowed={"v1": 100}, contents=old, history=history)
    world = world_of(canary(0, rollout=rollout, status=ModelDeploymentStatus(rollout=told)))
    assert routes(world).weights == {"v1": 0, "v2": 100}
    world.put("deployment", raw(canary(0, rollout=rollout)), 2)
    assert routes(world, now=3).weights == {"v1": 0, "v2": 100}
    other = pod("a", "v1", reports={"v2": loaded("v2", digest=digest("changed"))})
    world.put("adapter", raw(unpinned("v2", digest=digest("changed"))), 4)
    world.put("pod", raw_pod(other), 4)
    assert routes(world, now=5).weights == {"v1": 100, "v2": 0}
