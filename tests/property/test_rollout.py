"""The rules of rollout.md over random histories: edits, pods that come and go, verdicts, commands, lost status, time.

Whatever happens and in whichever order operator and gateways look: no candidate above its spec weight or above its
step, no weight without pods, nothing for who has a verdict, and a verdict that outlives everything but what clears it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.toyworld.gates import QUALITY, SPEED, measured
from tests.toyworld.rollouts import GATEWAYS, RolloutWorld, hashes
from tuneyard.api.gatereports import EvaluationNumbers, GateReport
from tuneyard.api.reasons import Reason

NAMES = ["v1", "v2", "v3"]
EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "25"))


@dataclass(frozen=True)
class Step:
    """What happens next."""

    words: str
    run: Callable[[RolloutWorld], object] = field(repr=False)


def edit(weights: list[int], listed: int) -> Step:
    names = NAMES[:listed]
    cut = sorted(min(w, 100) for w in weights[: listed - 1])
    shares = [b - a for a, b in zip([0, *cut], [*cut, 100], strict=True)]
    traffic = dict(zip(names, shares, strict=True))
    return Step(f"traffic {traffic}", lambda w: w.spec(traffic))


weight = st.sampled_from([0, 0, 1, 5, 10, 50, 99, 100])
edits = st.builds(edit, st.lists(weight, min_size=2, max_size=2), st.integers(2, 3))
tokens = st.sampled_from(["", "a", "b"]).map(
    lambda t: Step(f"token {t!r}", lambda w: w.spec(w.traffic, retryToken=t or None))
)
pauses = st.booleans().map(lambda p: Step(f"paused {p}", lambda w: w.spec(w.traffic, paused=p or None)))
modes = st.sampled_from(["Manual", "Progressive"]).map(lambda m: Step(f"mode {m}", lambda w: w.spec(w.traffic, mode=m)))
bakes = st.sampled_from(["0s", "30m"]).map(lambda b: Step(f"bake {b}", lambda w: w.spec(w.traffic, bakeTime=b)))
pods = st.tuples(st.sampled_from(NAMES), st.booleans()).map(
    lambda p: Step(f"{p[0]} ready {p[1]}", lambda w: w.ready.update({p[0]: p[1]}))
)
breaks = st.sampled_from(NAMES[1:]).map(
    lambda n: Step(f"{n} cannot be loaded", lambda w: w.broken.update({n: Reason.LOAD_REFUSED}))
)
mends = st.sampled_from(NAMES[1:]).map(lambda n: Step(f"{n} can be loaded", lambda w: w.broken.pop(n, None)))
replacements = st.sampled_from(NAMES).map(lambda n: Step(f"{n} replaced", lambda w: w.replace(n)))
commands = st.tuples(
    st.sampled_from(["abort", "promote", "pause", "resume", "retry"]), st.sampled_from(NAMES), st.integers(0, 99)
).map(lambda c: Step(f"{c[0]} {c[1]}", lambda w: w.command(c[0], c[1], id_=str(c[2]))))
losses = st.sampled_from(
    [Step("status lost", RolloutWorld.lose_status), Step("deleted and created again", RolloutWorld.recreate)]
)
waits = st.sampled_from([0.5, 5, 10, 21, 61]).map(lambda m: Step(f"{m} min pass", lambda w: w.wait(m)))
passes = st.booleans().map(lambda c: Step("a pass" + " that crashes" * c, lambda w: w.reconcile(crash=c)))
looks = st.sampled_from(GATEWAYS).map(lambda g: Step(f"{g} looks", lambda w: w.gateway(g)))
reports: list[GateReport | str] = [measured(100), measured(200), GateReport(cannot_run="no judge"), "no report"]
endings = st.sampled_from(reports).map(lambda r: Step(f"gates end with {r!r}"[:60], lambda w: w.gates.end(r)))
lost_jobs = st.just(Step("all Jobs are gone", lambda w: w.gates.lose()))
gate_edits = st.sampled_from([[], [SPEED], [SPEED, QUALITY]]).map(
    lambda g: Step(f"{len(g)} gates", lambda w: w.spec(w.traffic, gates=g))
)
calm = st.just(Step("calm", RolloutWorld.settle))
anything = st.one_of(
    edits, edits, pods, pods, breaks, mends, commands, losses, waits, waits, passes, passes, looks, calm, calm, tokens,
    pauses, modes, bakes, endings, replacements, lost_jobs, gate_edits,
)  # fmt: skip


def rules_hold(world: RolloutWorld) -> None:
    """What is true of the status, and of a gateway that has seen just this status, at every moment."""
    routes, spec, status = world.routes(), world.now.spec, world.status
    assert sum(routes.weights.values()) + routes.unserved == 100
    stable = status.stable if status.stable in routes.weights else None
    for route in routes.revisions:
        assert not route.weight or route.endpoints, f"weight on {route.name}, which no pod serves"
        if stable is None or route.name == stable:
            continue
        assert spec.progressive or route.weight <= spec.weight_of(route.name) or spec.weight_of(route.name) == 100
        if spec.progressive:
            assert route.weight <= spec.weight_of(route.name), "a candidate above its spec weight"
            assert route.weight <= (status.allowed or {}).get(route.name, 0), "a candidate above its step"
    for name, limit in (status.allowed or {}).items():
        assert limit or not routes.weights.get(name, 0), "a rejected revision gets traffic"
    if world.now.status.rollout is None and spec.progressive:
        # the oldest of those that traffic names was stable, or nobody was
        named = {t.revision for t in spec.traffic}
        oldest = next(r.name for r in spec.revisions if r.name in named)
        whole = [n for n, w in routes.weights.items() if w and spec.weight_of(n) == 100]
        assert whole in ([], [oldest]), "the spec weight without a position"


def nobody_starves(world: RolloutWorld) -> None:
    """At rest, with stable there to fall back to, whoever could serve has what the spec gives it."""
    spec, status, routes = world.now.spec, world.status, world.routes()
    if not spec.progressive or status.paused or world.rollout.get("paused") or not world.ready.get(status.stable or ""):
        return
    rejected = {v.content_hash for v in status.verdicts or ()}
    for route in routes.revisions:
        if route.endpoints and route.name != status.stable and hashes(world)[route.name] not in rejected:
            assert route.weight == spec.weight_of(route.name), f"{route.name} waits for nothing"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(anything, max_size=40))
def test_the_rules_hold_at_every_moment_and_all_comes_to_rest(history):
    world = RolloutWorld()
    for step in history:
        before = {v.content_hash for v in world.status.verdicts or ()}
        stored = world.now.status.rollout
        step.run(world)
        rules_hold(world)
        now = {v.content_hash for v in world.status.verdicts or ()}
        if step.words in ("calm", "a pass") and stored is not None:
            cleared = "retry" in str(world.now.metadata.annotations) or world.rollout.get("retryToken")
            listed = {h for n, h in hashes(world).items() if n != world.status.stable}
            assert cleared or (before & listed) <= now, "a verdict went by itself"
            whose = {
                *(world.status.allowed or {}),
                *(n for n in hashes(world) if n in (world.status.stable, world.status.candidate)),
            }
            known = {n: h for n, h in (world.status.contents or {}).items() if n in hashes(world)}
            assert known == {n: hashes(world)[n] for n in whose} or not whose, "a position of other contents"
    world.settle()
    rules_hold(world)
    # what every gate passes with: one that cannot run is tried again for ever, and should be
    whole = measured(100).model_copy(update={"evaluation": EvaluationNumbers(prompts=5, scores={"exactMatch": 1.0})})
    for _ in range(80):
        world.gates.end(whole)
        if world.plan.requeue_after is None:
            break
        world.wait(world.plan.requeue_after / 60)
        world.settle()
        rules_hold(world)
    assert world.plan.requeue_after is None, "time goes on asking for passes"
    nobody_starves(world)
    last = world.reconcile()
    assert (last.actions, last.events) == ((), ())
    assert last.status == world.now.status


shares = st.lists(st.sampled_from([1, 5, 10, 25, 30, 50]), min_size=2, max_size=2)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(shares, st.sampled_from([0.5, 6, 61])), min_size=1, max_size=4))
def test_of_several_candidates_none_starves(splits):
    world = RolloutWorld()
    world.ready |= {"v2": True, "v3": True}
    for (two, three), minutes in splits:
        world.spec({"v1": 100 - two - three, "v2": two, "v3": three})
        world.settle()
        world.wait(minutes)
    for _ in range(40):
        world.settle()
        rules_hold(world)
        if world.plan.requeue_after is None:
            break
        assert world.conditions["Ready"][0] == "False", "somebody waits"
        world.wait(world.plan.requeue_after / 60)
    nobody_starves(world)
    assert {"v1": 0, **world.weights} == {"v1": 100 - two - three, "v2": two, "v3": three}


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(pods, losses, waits, passes, looks, calm, pauses, bakes, mends), max_size=30))
def test_a_rejected_revision_stays_off_whatever_is_lost(history):
    world = RolloutWorld()
    world.broken["v2"] = Reason.LOAD_REFUSED
    world.spec({"v1": 0, "v2": 100})
    world.settle()
    del world.broken["v2"]
    world.ready["v2"] = True
    for step in history:
        step.run(world)
        for name in GATEWAYS:
            world.gateway(name)
            assert world.views[name].weights["v2"] == 0
    world.settle()
    assert [v.revision for v in world.status.verdicts or ()] == ["v2"]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(pods, losses, waits, passes, looks), max_size=25))
def test_a_good_candidate_takes_over_in_the_end(history):
    world = RolloutWorld(rollout={"mode": "Progressive", "steps": [{"weight": 5, "hold": "5m"}, {"weight": 50}]})
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100})
    for step in history:
        step.run(world)
    world.ready |= {"v1": True, "v2": True}
    for _ in range(10):
        world.settle()
        world.wait(6)
    rejected = [v.reason for v in world.status.verdicts or ()]
    assert world.status.stable == "v2" or rejected == ["ProgressDeadlineExceeded"]


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(pods, losses, waits, waits, passes, looks, calm, pauses, bakes, lost_jobs), max_size=40))
def test_who_has_not_passed_its_gates_gets_nothing_and_no_verdict_from_one_that_cannot_run(history):
    world = RolloutWorld(rollout={"mode": "Progressive", "steps": [{"weight": 5}], "progressDeadline": "1000h"})
    world.ready["v2"] = True
    world.spec({"v1": 0, "v2": 100}, gates=[SPEED, QUALITY])
    empty = GateReport(evaluation=EvaluationNumbers(prompts=1))
    cannot: list[GateReport | str] = [GateReport(cannot_run="no judge"), "no report", empty]
    for number, step in enumerate(history):
        step.run(world)
        world.gates.end(cannot[number % 3])
        for name in GATEWAYS:
            world.gateway(name)
            assert world.views[name].weights["v2"] == 0
        assert not world.status.verdicts
    world.settle()
    assert world.status.stable == "v1"
    assert world.gates.results == []
