"""Names that come to stand for other contents: positions, the stable revision, and what pods say of the former ones."""

from __future__ import annotations

import pytest

from tests.builders import adapter, digest, failed, loaded, stamp
from tests.toyworld.rollouts import WHOLE, RolloutWorld, canary, finished, hashes, later, rejected
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import Outcome, RolloutStatus
from tuneyard.planning.podreport import failed_with, source_mark
from tuneyard.planning.rolloutcontents import in_force, still_about, with_contents
from tuneyard.planning.rolloutrecord import record_of


def test_other_contents_under_the_candidates_name_begin_at_the_first_step():
    world = canary()
    later(world, 5)
    later(world, 4)
    assert (world.status.step, world.weights) == (1, {"v1": 75, "v2": 25})
    world.replace("v2")
    plan = world.reconcile()
    assert plan.status_first, "what it loses is written before anything else"
    world.settle()
    assert (world.status.step, world.status.step_started_at, world.weights) == (0, stamp(9), {"v1": 95, "v2": 5})
    later(world, 4)
    assert world.weights == {"v1": 95, "v2": 5}, "the hold of the former ones does not count for it"
    later(world, 1)
    assert world.weights == {"v1": 75, "v2": 25}


@pytest.mark.parametrize("old_gateways", [True, False])
def test_a_hold_begins_when_gateways_serve_these_contents(old_gateways: bool):
    world = canary()
    world.old_gateways = old_gateways
    later(world, 4)
    world.replace("v2")
    world.reconcile()
    world.reconcile()
    assert world.weights == {"v1": 95, "v2": 5}
    verified = {t.revision: t.verified for t in world.now.status.traffic}
    assert verified == {"v1": True, "v2": old_gateways}, "gateways still serve the former ones this weight"
    assert world.status.step_started_at == (stamp(4) if old_gateways else None)
    world.wait(1)
    world.settle()
    assert world.status.step_started_at == stamp(4 if old_gateways else 5)


def test_a_deadline_that_ran_for_other_contents_begins_anew():
    world = RolloutWorld()
    world.spec(WHOLE)
    world.settle()
    later(world, 19)
    world.editions["v2"] = 1
    world.settle()
    later(world, 2)
    assert (world.status.waiting_since, world.status.verdicts) == (stamp(19), None)


def test_what_takes_the_name_of_a_former_stable_revision_has_not_been_stable():
    world = finished()
    world.replace("v1")
    world.spec({"v1": 99, "v2": 1})
    world.settle()
    assert (world.status.stable, world.status.candidate, world.weights) == ("v2", "v1", {"v1": 5, "v2": 95})


def stable_in_record(world: RolloutWorld) -> str | None:
    record = record_of(world.record)
    return record.stable.content_hash if record is not None and record.stable is not None else None


def test_what_takes_the_name_of_the_stable_revision_is_a_candidate_of_who_was_stable_before():
    world = finished()
    former = hashes(world)["v2"]
    world.replace("v2")
    plan = world.reconcile()
    assert plan.status_first, "what it loses is written before anything else"
    assert stable_in_record(world) == former, "it outlives the status"
    world.settle()
    assert stable_in_record(world) == hashes(world)["v1"]
    assert (world.status.stable, world.status.candidate, world.weights) == ("v1", "v2", {"v1": 95, "v2": 5})
    assert hashes(world)["v2"] not in [o.content_hash for o in world.status.history or ()]
    del world.editions["v2"], world.fetched["v2"]
    world.settle()
    assert hashes(world)["v2"] == former
    assert (world.status.stable, world.weights) == ("v2", {"v2": 100}), "what has been stable needs no steps"


@pytest.mark.parametrize(
    ("history", "ready", "stable"),
    [
        ("a+ b+ c+", "v1 v2", "v2"),  # the last one that is there
        ("a+ b+ c+", "v1", "v1"),
        ("a+ b+ c+ b-", "v1 v2", "v1"),  # rejected since
        ("a+ b- b+ c+", "v1 v2", "v2"),
        ("a+ b+ c+", "", "v3"),  # nobody else can serve
        ("c+", "v1 v2", "v3"),  # nobody else ever was
    ],
)
def test_who_is_stable_when_the_stable_name_stands_for_other_contents(history: str, ready: str, stable: str):
    lines = [
        Outcome(revision="v9", content_hash=o[0], outcome="Stable" if o[1] == "+" else "Rejected", at=stamp(0))
        for o in history.split()
    ]
    status = RolloutStatus(stable="v3", candidate="v2", step=1, contents={"v2": "b", "v3": "c"}, history=lines)
    left = still_about(status, {"v1": "a", "v2": "b", "v3": "x"}, ready.split())
    assert left is not None
    assert left.stable == stable
    assert (left.candidate, left.step) == ((None, None) if stable == "v2" else ("v2", 1))
    assert left.contents == {"v2": "b"}


def test_gateways_do_not_wait_for_the_operator_with_other_contents():
    world = canary()
    later(world, 5)
    later(world, 4)
    assert world.routes().weights == {"v1": 75, "v2": 25}
    world.replace("v2")
    assert world.routes().weights == {"v1": 100, "v2": 0}, "it was allowed nothing yet"
    world = finished()
    world.replace("v2")
    assert world.routes().weights == {"v1": 100, "v2": 0}, "it has not been stable"
    world.ready["v1"] = False
    assert world.routes().weights == {"v1": 0, "v2": 100}, "nobody else can serve"


def test_gateways_allow_other_contents_never_more_than_is_stored():
    world = canary()
    world.command("abort", "v2")
    world.settle()
    world.replace("v2")
    assert world.routes().weights == {"v1": 100, "v2": 0}
    world = canary({"v1": 90, "v2": 10}, mode="Manual")
    world.command("abort", "v2")
    world.settle()
    assert world.status.allowed == {"v2": 0}
    world.replace("v2")
    assert world.routes().weights == {"v1": 100, "v2": 0}


@pytest.mark.parametrize("allowed", [{"v1": 100, "v2": 25}, {"v1": 100, "v2": 0}, {"v2": 25}, None])
@pytest.mark.parametrize("progressive", [True, False])
@pytest.mark.parametrize("now", [{"v1": "x", "v2": "x"}, {"v1": "a", "v2": "x"}, {"v1": None}, {}])
def test_what_is_in_force_is_never_more_than_what_is_stored(
    allowed: dict[str, int] | None, progressive: bool, now: dict[str, str | None]
):
    status = RolloutStatus(stable="v3", candidate="v2", allowed=allowed, contents={"v1": "a", "v2": "b"})
    found = in_force(status, now, {"v1", "v2", "v3"}, progressive=progressive).allowed or {}
    for name, limit in (allowed or {}).items():
        assert found.get(name, 0 if progressive else 101) <= limit
    assert all(found[n] == 0 for n, limit in (allowed or {}).items() if not limit)
    assert found.keys() <= (allowed or {}).keys()


@pytest.mark.parametrize("mode", ["Manual", "Progressive"])
def test_what_takes_the_name_of_a_revision_that_is_alone_serves(mode: str):
    world = RolloutWorld()
    world.spec({"v1": 100}, mode=mode)
    world.settle()
    world.replace("v1")
    world.settle()
    assert (world.status.stable, world.weights, world.routes().unserved) == ("v1", {"v1": 100}, 0)
    assert (world.status.contents or {})["v1"] == hashes(world)["v1"]


def test_a_candidate_does_not_get_everything_since_stable_s_contents_are_other_ones():
    world = canary()
    world.replace("v1")
    world.settle()
    assert (world.status.stable, world.status.candidate, world.weights) == ("v1", "v2", {"v1": 95, "v2": 5})
    world = finished()
    world.ready["v1"] = False
    world.settle()
    world.replace("v2")
    world.settle()
    assert (world.status.stable, world.weights) == ("v2", {"v2": 100}), "v1 has no pod: nobody else can serve"


def test_manual_weights_stand_whoever_was_stable():
    world = finished()
    world.spec({"v1": 10, "v2": 90}, mode="Manual")
    world.settle()
    world.replace("v2")
    world.settle()
    assert world.weights == {"v1": 10, "v2": 90}


def test_what_takes_the_name_of_a_candidate_that_was_overtaken_begins_anew_too():
    world = canary({"v1": 50, "v2": 50})
    later(world, 5)
    world.ready["v3"] = True
    world.spec({"v1": 40, "v2": 30, "v3": 30})
    world.settle()
    assert (world.status.candidate, world.status.allowed) == ("v3", {"v2": 25, "v3": 5})
    world.replace("v2")
    world.settle()
    assert world.status.allowed == {"v3": 5}


def test_a_position_of_an_older_operator_is_about_what_has_the_name_now():
    world = canary()
    later(world, 5)
    stored = world.now.status
    assert stored.rollout is not None
    rollout = stored.rollout.model_copy(update={"contents": None})
    world.stored = world.now.model_copy(update={"status": stored.model_copy(update={"rollout": rollout})})
    world.replace("v2")
    world.settle()
    assert world.weights == {"v1": 75, "v2": 25}
    world.replace("v2")
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}, "from then on it is known"


@pytest.mark.parametrize(
    ("now", "allowed", "candidate", "contents"),
    [
        ({"v1": "a", "v2": "b"}, {"v1": 100, "v2": 25}, "v2", {"v1": "a", "v2": "b"}),
        ({"v1": "a", "v2": None}, {"v1": 100, "v2": 25}, "v2", {"v1": "a", "v2": "b"}),
        ({"v1": "a"}, {"v1": 100, "v2": 25}, "v2", {"v1": "a", "v2": "b"}),
        ({"v1": "x", "v2": "b"}, {"v2": 25}, "v2", {"v2": "b"}),
        ({"v1": "a", "v2": "x"}, {"v1": 100}, None, {"v1": "a"}),
        ({"v1": "x", "v2": "x"}, None, None, None),
    ],
)
def test_whose_position_it_is(
    now: dict[str, str | None], allowed: dict[str, int] | None, candidate: str | None, contents: dict[str, str] | None
) -> None:
    status = RolloutStatus(
        stable="v0", candidate="v2", step=1, allowed={"v1": 100, "v2": 25}, paused=True, contents={"v1": "a", "v2": "b"}
    )
    left = still_about(status, now)
    assert left is not None
    assert (left.allowed, left.candidate, left.contents) == (allowed, candidate, contents)
    assert (left.stable, left.paused, left.step) == ("v0", True, 1 if candidate else None)
    again = with_contents(left.model_copy(update={"candidate": "v2", "allowed": {"v1": 9}}), left, now)
    assert again.contents == ({n: h for n in ("v1", "v2") if (h := now.get(n) or (contents or {}).get(n))} or None)
    assert still_about(None, now) is None


@pytest.mark.parametrize("reason", [Reason.DIGEST_MISMATCH, Reason.LOAD_REFUSED])
def test_what_pods_say_of_former_contents_is_no_verdict_on_those_that_have_the_name_now(reason: Reason):
    world = RolloutWorld()
    world.broken["v2"] = reason
    world.spec(WHOLE)
    world.settle()
    assert rejected(world) == [("v2", reason.value)]
    world.editions["v2"] = 1
    world.settle()
    assert rejected(world) == [], "the pods have not heard of the new ones"
    world.fetched["v2"] = 1
    world.settle()
    assert rejected(world) == [("v2", reason.value)], "and now they have"


@pytest.mark.parametrize(
    ("source", "wished", "counts"),
    [
        (None, None, True),  # an older agent
        ("mine", None, True),
        ("mine", digest("v2"), True),
        ("mine", digest("other"), False),
        ("other", digest("v2"), False),
        ("other", None, False),
    ],
)
def test_whose_failure_a_pod_tells(source: str | None, wished: str | None, counts: bool):
    mine = adapter("v2", digest=digest("v2"))
    mark = source_mark(mine.spec.source) if source == "mine" else source
    said = failed("LoadRefused").model_copy(update={"source": mark, "wished": wished})
    assert failed_with(said, mine) is counts
    assert not failed_with(loaded("v2"), mine)
