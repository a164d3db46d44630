"""Commands for a rollout, and the table of its phases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import deployment, stamp
from tests.toyworld.rollouts import WHOLE, RolloutWorld, canary, later, reasons, rejected
from tuneyard.api import names
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import MAX_COMMANDS
from tuneyard.planning.rolloutphases import PHASE_IN, TRANSITIONS
from tuneyard.planning.rolloutrecord import record_of

pytestmark = pytest.mark.lasting


def answer(world: RolloutWorld) -> tuple[bool, str]:
    world.settle()
    found = world.status.last_command
    assert found is not None
    return found.accepted, found.message


def test_abort_is_carried_out_once():
    world = canary()
    world.command("abort", "v2")
    assert answer(world) == (True, "v2 is rejected and gets no traffic")
    assert (rejected(world), world.weights) == ([("v2", "Aborted")], {"v1": 100})
    world.spec(WHOLE, retryToken="again")
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}, "the annotation is still there"
    for trouble in (world.lose_status, world.recreate):
        trouble()
        world.settle()
        assert world.weights == {"v1": 95, "v2": 5}


@pytest.mark.parametrize("trouble", ["none", "status lost", "created again", "older operator"])
def test_a_command_that_comes_back_after_another_one_does_not_act_again(trouble: str):
    world = canary()
    world.command("abort", "v2")
    world.settle()
    if trouble == "older operator":
        status = world.now.status
        assert status.rollout is not None
        old = status.model_copy(update={"rollout": status.rollout.model_copy(update={"command_ids": None})})
        world.stored, world.record = world.now.model_copy(update={"status": old}), None
    world.command("retry", "v2", id_="two")
    world.settle()
    assert world.weights == {"v1": 95, "v2": 5}
    {"status lost": world.lose_status, "created again": world.recreate}.get(trouble, world.settle)()
    told = len(reasons(world))
    world.command("abort", "v2")
    words = "a command with the id one was given before: give another id to repeat it"
    assert answer(world) == (False, words)
    assert (world.weights, rejected(world)) == ({"v1": 95, "v2": 5}, [])
    later(world, 1)
    assert reasons(world)[told:].count("CommandRefused") == 1, "it is told once"
    world.command("abort", "v2", id_="three")
    world.settle()
    assert rejected(world) == [("v2", "Aborted")]


def test_the_last_commands_are_remembered_and_no_more():
    world = canary()
    for number in range(MAX_COMMANDS + 1):
        world.command("pause" if number % 2 else "resume", "v2", id_=f"n{number}")
        world.settle()
    world.command("pause", "v2", id_="n1")
    assert answer(world)[0] is False
    assert world.status.command_ids == [*(f"n{n}" for n in range(2, MAX_COMMANDS + 1)), "n1"]
    record = record_of(world.record)
    assert record is not None
    assert record.command_ids == world.status.command_ids


def test_promote_climbs_to_the_spec_weight_and_not_above():
    world = canary({"v1": 60, "v2": 40})
    world.command("promote", "v2")
    assert answer(world) == (True, "v2 gets its spec weight, 40 %")
    assert world.weights == {"v1": 60, "v2": 40}
    assert (world.status.allowed, world.status.step) == ({"v2": 40}, 1)
    later(world, 60)
    assert world.weights == {"v1": 60, "v2": 40}
    world.spec({"v1": 70, "v2": 30})
    world.settle()
    assert world.weights == {"v1": 70, "v2": 30}, "down at once"
    world.spec(WHOLE, bakeTime="1h")
    world.command("promote", "v2", id_="two")
    world.settle()
    assert (world.status.phase, world.weights, world.status.promoted_to) == ("Baking", {"v2": 100}, {"v2": 100})
    world.command("promote", "v2", id_="three")
    world.settle()
    assert (world.status.phase, world.status.stable) == ("Completed", "v2")


STEPS = [{"weight": 5, "hold": "5m"}, {"weight": 25, "hold": "10m"}, {"weight": 50, "hold": "20m"}]


def test_a_weight_that_is_raised_after_a_promotion_is_reached_by_the_steps_that_are_left():
    world = canary({"v1": 60, "v2": 40}, steps=STEPS)
    world.command("promote", "v2")
    world.settle()
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 60, "v2": 40}, "what it was promoted to is held like the step below"
    assert (world.status.position, world.status.promoted_to) == ("1/3", {"v2": 40})
    later(world, 9)
    assert world.weights == {"v1": 60, "v2": 40}
    later(world, 1)
    assert (world.weights, world.status.promoted_to) == ({"v1": 50, "v2": 50}, None)
    later(world, 19)
    assert world.weights == {"v1": 50, "v2": 50}
    later(world, 1)
    assert world.weights == {"v2": 100}


def test_a_promotion_to_all_traffic_skips_also_a_last_step_of_100_that_has_a_hold():
    world = canary(steps=[{"weight": 5, "hold": "5m"}, {"weight": 100, "hold": "60m"}], bakeTime="1h")
    later(world, 5)
    assert (world.status.phase, world.status.position, world.weights) == ("Progressing", "1/2", {"v2": 100})
    world.command("promote", "v2")
    world.settle()
    assert (world.status.phase, world.status.position) == ("Baking", "2/2")
    world.command("promote", "v2", id_="two")
    world.settle()
    assert (world.status.phase, world.status.stable) == ("Completed", "v2")


def test_a_promotion_lowers_nothing_and_is_gone_with_its_candidate():
    world = canary({"v1": 90, "v2": 10})
    later(world, 5)
    assert world.status.allowed == {"v2": 25}, "the second step, and its ceiling in the spec"
    world.command("promote", "v2")
    world.settle()
    assert world.status.allowed == {"v2": 25}
    world.spec({"v1": 60, "v2": 40})
    world.command("promote", "v2", id_="two")
    world.settle()
    assert world.weights == {"v1": 60, "v2": 40}
    world.replace("v2")
    world.settle()
    assert (world.weights, world.status.promoted_to) == ({"v1": 95, "v2": 5}, None)


@pytest.mark.parametrize("gone", ["aborted", "taken out"])
def test_a_promotion_outlives_a_candidate_that_comes_and_goes(gone: str):
    world = canary({"v1": 60, "v2": 40}, steps=STEPS)
    world.command("promote", "v2")
    world.settle()
    world.spec({"v1": 50, "v2": 40, "v3": 10})
    world.settle()
    assert (world.status.candidate, world.status.promoted_to) == ("v3", {"v2": 40})
    if gone == "aborted":
        world.command("abort", "v3", id_="two")
        world.settle()
    world.spec({"v1": 60, "v2": 40}, listed=["v1", "v2", "v3"] if gone == "aborted" else None)
    world.settle()
    assert (world.status.candidate, world.status.position) == ("v2", "1/3")
    assert world.weights == {"v1": 60, "v2": 40}
    world.spec(WHOLE)
    world.settle()
    assert world.weights == {"v1": 60, "v2": 40}
    later(world, 10)
    assert (world.weights, world.status.promoted_to) == ({"v1": 50, "v2": 50}, None)


def test_a_promotion_outlives_a_stable_revision_that_is_not_listed_for_a_while():
    world = canary({"v1": 60, "v2": 40}, steps=STEPS)
    world.command("promote", "v2")
    world.settle()
    world.ready["v2"] = False
    world.spec({"v2": 40, "v3": 60})
    world.settle()
    assert (world.status.phase, world.status.promoted_to) == ("Idle", {"v2": 40})
    world.ready["v2"] = True
    world.spec({"v1": 60, "v2": 40})
    world.settle()
    assert world.weights == {"v1": 60, "v2": 40}


def test_a_promotion_outlives_the_time_in_which_the_model_name_is_another_one_s(monkeypatch: pytest.MonkeyPatch):
    world = canary({"v1": 60, "v2": 40}, steps=STEPS)
    world.command("promote", "v2")
    world.settle()
    real, older = RolloutWorld.situation, deployment("older", model_name="chat", created=-5)
    with monkeypatch.context() as patched:
        patched.setattr(RolloutWorld, "situation", lambda w: replace(real(w), deployments=(w.now, older)))
        world.settle()
        assert world.conditions["Accepted"][0] == "False"
    world.settle()
    assert world.weights == {"v1": 60, "v2": 40}


def test_a_promotion_of_who_was_overtaken_is_not_of_what_takes_its_name():
    world = canary({"v1": 60, "v2": 40}, steps=STEPS)
    world.command("promote", "v2")
    world.settle()
    world.ready["v3"] = True
    world.spec({"v1": 30, "v2": 40, "v3": 30})
    world.settle()
    assert (world.status.candidate, world.status.promoted_to) == ("v3", {"v2": 40})
    world.replace("v2")
    world.settle()
    assert (world.status.allowed, world.status.promoted_to) == ({"v3": 5}, None)


def test_a_promotion_ends_with_a_verdict_and_with_the_weight_in_the_spec():
    world = canary({"v1": 60, "v2": 40}, steps=STEPS)
    for number, end in enumerate(("verdict", "no weight")):
        world.command("promote", "v2", id_=f"promote-{number}")
        world.settle()
        assert world.weights == {"v1": 60, "v2": 40}
        if end == "verdict":
            world.command("abort", "v2", id_="abort")
            world.settle()
            world.command("retry", "v2", id_="retry")
        else:
            world.spec({"v1": 100, "v2": 0})
            world.settle()
            world.spec({"v1": 60, "v2": 40})
        world.settle()
        assert (world.weights, world.status.promoted_to) == ({"v1": 95, "v2": 5}, None)


def test_edited_steps_and_a_promotion():
    world = canary({"v1": 60, "v2": 40})
    world.command("promote", "v2")
    world.settle()
    world.spec({"v1": 60, "v2": 40}, steps=[{"weight": 30, "hold": "1h"}])
    world.settle()
    assert world.weights == {"v1": 60, "v2": 40}
    world.spec({"v1": 60, "v2": 40}, steps=[{"weight": 40, "hold": "1h"}, {"weight": 60}])
    world.settle()
    assert (world.status.position, world.status.promoted_to) == ("0/2", {"v2": 40}), "what a command gave stays"


def test_pause_and_resume():
    world = canary()
    world.command("pause")
    assert answer(world)[0]
    later(world, 60)
    assert (world.status.phase, world.status.step) == ("Paused", 0)
    world.recreate()
    world.settle()
    assert world.status.phase == "Paused", "a forced sync does not resume"
    world.command("resume", "v2", id_="two")
    assert answer(world)[0]
    assert (world.status.phase, world.status.step_started_at) == ("Progressing", stamp(60))


@pytest.mark.parametrize(
    ("action", "revision", "words"),
    [
        ("abort", "v3", "the command means v3, and the candidate is v2"),
        ("abort", None, "name the revision"),
        ("promote", "v1", "the candidate is v2"),
        ("resume", None, "is not paused"),
        ("retry", "v2", "v2 is not rejected"),
        ("retry", "v9", "not in spec.revisions (v1, v2)"),
        ("retry", None, "name the revision"),
        ("explode", "v2", "there is no action explode"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(action: str, revision: str | None, words: str):
    world = canary()
    world.command(action, revision)
    accepted, message = answer(world)
    assert not accepted
    assert words in message
    assert world.weights == {"v1": 95, "v2": 5}
    assert "CommandRefused" in reasons(world)


@pytest.mark.parametrize("action", ["abort", "promote", "pause"])
def test_a_command_is_about_the_contents_that_were_seen(action: str):
    world = canary()
    seen = (world.status.contents or {})["v2"]
    world.replace("v2")
    world.command(action, "v2", contents=seen)
    assert answer(world) == (False, "v2 has other contents now than those that the command means: look at it again")
    assert (world.status.phase, world.weights) == ("Progressing", {"v1": 95, "v2": 5})
    world.command(action, "v2", id_="two", contents=(world.status.contents or {})["v2"])
    assert answer(world)[0]


def test_a_retry_is_about_the_contents_that_were_rejected():
    world = canary()
    world.command("abort", "v2")
    world.settle()
    world.command("retry", "v2", id_="two", contents="0" * 16)
    assert "v2 has other contents now" in answer(world)[1]
    world.command("retry", "v2", id_="three", contents=(world.status.contents or {})["v2"])
    assert answer(world) == (True, "v2 begins again")


def test_nothing_goes_against_a_pause_in_the_spec_and_manual_has_no_steps():
    world = canary(paused=True)
    for number, action in enumerate(("promote", "resume")):
        world.command(action, "v2", id_=str(number))
        assert "spec.rollout.paused" in answer(world)[1]
    manual = RolloutWorld(rollout={})
    manual.ready["v2"] = True
    manual.spec({"v1": 90, "v2": 10})
    for number, action in enumerate(("promote", "pause", "resume")):
        manual.command(action, "v2", id_=str(number))
        assert answer(manual) == (False, "spec.rollout.mode is Manual: weights are the spec's, edit spec.traffic")


def test_a_retry_of_what_still_fails_is_refused():
    world = canary()
    world.broken["v2"] = Reason.LOAD_REFUSED
    world.settle()
    world.command("retry", "v2")
    assert "still fails (LoadRefused" in answer(world)[1]


def test_an_annotation_that_cannot_be_read_is_answered_once():
    world = canary()
    meta = world.now.metadata.model_copy(update={"annotations": {names.ANNOTATION_COMMAND: "abort v2"}})
    world.stored = world.now.model_copy(update={"metadata": meta})
    accepted, message = answer(world)
    assert (accepted, message) == (False, 'write {"id": "...", "action": "...", "revision": "..."}')
    assert world.weights == {"v1": 95, "v2": 5}


def test_the_table_names_each_step_once_and_reaches_every_phase():
    pairs = [(t.source, t.situation) for t in TRANSITIONS]
    assert len(pairs) == len(set(pairs))
    assert {t.target for t in TRANSITIONS} | {"Idle"} == set(PHASE_IN.values())
    assert all(t.source != t.target for t in TRANSITIONS)
