"""Whatever happens on the way, the operator ends where it would have ended without faults, and stays there.

A history is a list of what users do (apply, delete, edit), of what goes wrong (a crash after any action of a plan, a
view that is several writes old, a lost status, a killed pod, time that passes, parts that do not get their turn), in
any order. Afterwards everything gets its turn again, and then:
- the world is the same as that of a run in which users did the same and nothing ever went wrong;
- every object's next plan is empty: no action, the status as it is, nothing to tell.
The rules of rollout.md hold after every single step.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import BASE, VOLUME, adapter, base_model, deployment, digest, revision
from tests.toyworld.execution import PLANS, Operator
from tests.toyworld.server import MEDDLING, Resource
from tests.toyworld.world import CORRUPT, PARTS, World, different
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.serving import ArtifactCache, HostPath, LoRASettings, Prewarm, ServingSpec
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.plan import Apply


@dataclass(frozen=True)
class Step:
    """One thing that happens; printed as it was drawn, so that a failing history can be read."""

    kind: Literal["edit", "trouble"]
    words: str
    run: Callable[[World, Operator], object] = field(repr=False)


OTHER = "other"
ADAPTERS = {"v1": BASE, "v2": BASE, "v3": BASE, CORRUPT: BASE, "alien": OTHER}
"""By name, the base of each."""
DEPLOYMENTS = ("chat", "rival", "side")
KEYS = [
    ("BaseModel", BASE),
    ("BaseModel", OTHER),
    *(("LoRAAdapter", a) for a in ADAPTERS),
    *(("ModelDeployment", d) for d in DEPLOYMENTS),
]
key = st.sampled_from(KEYS)


def serving(
    replicas: int, max_model_len: int, places: int, copies: int | None = None, *, prewarm: bool = False
) -> ServingSpec:
    return ServingSpec(
        artifact_volumes=[VOLUME],
        cache=ArtifactCache(host_path=HostPath(path="/var/cache/tuneyard"), prewarm=Prewarm() if prewarm else None),
        replicas=replicas,
        max_model_len=max_model_len,
        lora=LoRASettings(max_loras=1, max_cpu_loras=places, copies=copies),
    )


def remote_base(name: str, *, serving: ServingSpec) -> BaseModelResource:
    return base_model(name, source=Source(s3=S3Source(uri=f"s3://models/{name}/")), serving=serving)


ALL_EVERYWHERE = (2, 128, 6)
SPREAD = (3, 128, 4, 2)
"""Pools with room for all adapters, in which every pod has all, and in which two pods of three have each."""


@st.composite
def edited_base(draw: st.DrawFn) -> Step:
    copies = draw(st.sampled_from([None, None, 1, 2]))
    chosen = (draw(st.integers(0, 3)), draw(st.sampled_from([64, 128])), draw(st.integers(1, 4)), copies)
    name, prewarm = draw(st.sampled_from([BASE, BASE, OTHER])), draw(st.booleans())
    base = remote_base(name, serving=serving(*chosen, prewarm=prewarm))
    more = ", fetched beforehand" if prewarm else ""
    words = f"{name}.serving(replicas, max_model_len, places, copies) = {chosen}{more}"
    return Step("edit", words, lambda w, _: w.put(base))


@st.composite
def edited_deployment(draw: st.DrawFn) -> Step:
    """`chat` and `rival` want the same model name; `side` may have pods of its own."""
    name = draw(st.sampled_from(DEPLOYMENTS))
    chosen = draw(st.lists(st.sampled_from([*sorted(ADAPTERS), "missing", None]), min_size=1, max_size=3, unique=True))
    base = draw(st.sampled_from([BASE, BASE, BASE, OTHER]))
    revisions = [revision(a or "plain", a, base=base) for a in chosen]
    cut = draw(st.integers(0, 100)) if len(chosen) > 1 else 100
    traffic = {revisions[0].name: cut, revisions[-1].name: 100 - cut} if len(chosen) > 1 else {revisions[0].name: 100}
    own = serving(1, 64, 4) if name == "side" and draw(st.booleans()) else None
    model = "chat" if name == "rival" else None
    wanted = deployment(name, revisions=revisions, traffic=traffic, serving=own, model_name=model)
    words = f"{name} = {base} {chosen} {traffic}{' own pool' if own else ''}"
    return Step("edit", words, lambda w, _: w.put(wanted))


@st.composite
def put_adapter(draw: st.DrawFn) -> Step:
    name = draw(st.sampled_from(sorted(ADAPTERS)))
    return Step("edit", f"adapter {name}", lambda w, _: w.put(adapter(name, base=ADAPTERS[name])))


@st.composite
def dropped(draw: st.DrawFn) -> Step:
    chosen = draw(key)
    return Step("edit", f"delete {chosen}", lambda w, _: w.drop(*chosen))


@st.composite
def passes(draw: st.DrawFn) -> Step:
    chosen, behind = draw(st.one_of(key, st.just(("BaseModel", BASE)))), draw(st.sampled_from([0, 0, 1, 2, 3]))
    crash = draw(st.one_of(st.none(), st.integers(0, 12)))
    words = f"pass over {chosen}, {behind} writes behind, crash after {crash}"
    return Step(
        "trouble", words, lambda w, o: chosen in w.resources and o.reconcile(chosen, behind=behind, crash_after=crash)
    )


@st.composite
def moved(draw: st.DrawFn) -> Step:
    name, part = draw(st.sampled_from(sorted(PARTS.items())))
    return Step("trouble", name, lambda w, _: part(w))


def calm() -> st.SearchStrategy[Step]:
    """For once everything works: most of what can go wrong needs something that is there."""
    return st.just(Step("trouble", "calm", lambda _, o: o.settle()))


@st.composite
def waited(draw: st.DrawFn) -> Step:
    seconds = draw(st.sampled_from([1.0, 20.0, 31.0, 61.0]))
    return Step("trouble", f"{seconds} s pass", lambda w, _: w.wait(seconds))


@st.composite
def lost_status(draw: st.DrawFn) -> Step:
    chosen = draw(key)
    return Step("trouble", f"status of {chosen} lost", lambda w, _: w.lose_status(*chosen))


@st.composite
def killed_pod(draw: st.DrawFn) -> Step:
    number = draw(st.integers(0, 9))
    return Step("trouble", f"pod {number} killed", lambda w, _: w.kill_pod(number))


@st.composite
def restarted_engine(draw: st.DrawFn) -> Step:
    number = draw(st.integers(0, 9))
    return Step("trouble", f"engine of pod {number} restarts", lambda w, _: w.restart_engine(number))


@st.composite
def meddled(draw: st.DrawFn) -> Step:
    number = draw(st.integers(0, 40))
    return Step("trouble", f"somebody changes child {number}", lambda w, _: w.meddle(number))


@st.composite
def forced_sync(draw: st.DrawFn) -> list[Step]:
    """An object is deleted and created again, with whatever comes between."""
    chosen = draw(st.one_of(key, st.just(("ModelDeployment", "chat"))))
    kept: list[Resource] = []

    def take(world: World, _: Operator) -> None:
        kept[:] = [world.resources[chosen]] if chosen in world.resources else []
        world.drop(*chosen)

    def give_back(world: World, _: Operator) -> None:
        for resource in kept:
            world.put(resource.model_copy(update={"status": type(resource.status)()}))

    first = Step("edit", f"{chosen} deleted by a forced sync", take)
    last = Step("edit", f"{chosen} created again", give_back)
    return [first, *draw(st.lists(passes(), max_size=3)), last]


edits = st.one_of(edited_base(), edited_deployment(), edited_deployment(), put_adapter(), dropped())
troubles = st.one_of(
    passes(),
    passes(),
    passes(),
    passes(),
    moved(),
    moved(),
    moved(),
    waited(),
    lost_status(),
    killed_pod(),
    restarted_engine(),
    meddled(),
    calm(),
)
singles = st.one_of(edits, troubles, troubles, troubles).map(lambda step: [step])
histories = st.lists(st.one_of(singles, singles, singles, singles, singles, singles, forced_sync()), max_size=50).map(
    lambda groups: [step for group in groups for step in group]
)
EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "10"))
"""Histories to try; a few on every change, a thousand when the operator's plans are reworked."""


def begun() -> tuple[World, Operator]:
    """A base, two adapters and a deployment, freshly applied."""
    world = World()
    world.put(remote_base(BASE, serving=serving(1, 64, 4, prewarm=True)))
    for name in ("v1", "v2"):
        world.put(adapter(name))
    world.put(deployment(revisions=[revision("v1", "v1"), revision("v2", "v2")], traffic={"v1": 90, "v2": 10}))
    return world, Operator(world)


def invariants(world: World) -> None:
    """What holds at every moment, however wrong things go."""
    for known in world.of_kind("ModelDeployment"):
        traffic_is_by_the_rules(known.status)
    for known in world.of_kind("LoRAAdapter"):
        assert known.status.digest in (None, digest(known.metadata.name)), "a digest that no pod has read was pinned"
    for (kind, name), child in world.objects.items():
        if kind == "Deployment":
            pool = child.obj["metadata"]["labels"][names.LABEL_POOL]
            for needed in (("ConfigMap", names.pool_plan(pool)), ("Secret", names.pool_key_secret(pool))):
                assert needed in world.objects, f"Deployment {name} without {needed}"
    for gateway in world.gateways:
        for routes in world.routes(gateway).values():
            assert sum(routes.weights.values()) + routes.unserved == 100
            for route in routes.revisions:
                assert not route.weight or route.endpoints, "weight on a revision that no pod serves"


def traffic_is_by_the_rules(status: ModelDeploymentStatus) -> None:
    stable = status.rollout.stable if status.rollout else None
    assert 0 <= sum(t.weight for t in status.traffic) <= 100
    for told in status.traffic:
        assert not told.weight or told.ready_endpoints, "weight on a revision that no pod serves"
        assert told.revision == stable or told.weight <= told.spec_weight, "a candidate above its spec weight"
        assert told.weight >= told.spec_weight or told.withheld, "traffic withheld without a word"


def played(history: list[Step], end: tuple[int, int, int] | tuple[int, int, int, int], *, with_troubles: bool) -> World:
    """The world after a history. It ends with everything there that deployments may name and with places for it: what
    was learned or served before something went is not forgotten, and so would depend on what was seen."""
    world, operator = begun()
    for step in history:
        if step.kind == "trouble" and not with_troubles:
            continue
        step.run(world, operator)
        if not with_troubles:
            operator.settle()
        invariants(world)
    for name in (BASE, OTHER):
        world.put(remote_base(name, serving=serving(*end, prewarm=name == BASE)))
    for name, base in ADAPTERS.items():
        world.put(adapter(name, base=base))
    operator.settle()
    invariants(world)
    return world


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories, st.sampled_from([ALL_EVERYWHERE, SPREAD]))
def test_ends_as_without_faults_and_stays_there(history, end):
    world = played(history, end, with_troubles=True)
    for kind, name in list(world.resources):
        plan = PLANS[kind](world.situation(), name)
        assert plan.actions == ()
        assert plan.events == ()
        assert plan.status == world.resources[kind, name].status
        assert plan.requeue_after is None
    faultless = played(history, end, with_troubles=False)
    assert not different(world.digest(), faultless.digest())


def test_whatever_somebody_changes_is_put_right_by_one_apply_and_not_again():
    world, operator = begun()
    operator.settle()
    wanted, kinds = world.digest(), set()
    for number in range(25):
        kind, name = world.meddle(number) or ("", "")
        first = operator.reconcile(("BaseModel", BASE))
        (action,) = first.actions
        assert isinstance(action, Apply)
        assert (action.object["kind"], action.object["metadata"]["name"]) == (kind, name)
        assert first.status is not None
        if kind == "Deployment":
            assert first.status.to_dict()["progress"].endswith("rolling out"), "the old template counts as complete"
        assert operator.reconcile(("BaseModel", BASE)).actions == ()
        kinds.add(kind)
    assert kinds == set(MEDDLING)
    operator.settle()
    assert not different(world.digest(), wanted)


def test_the_toy_world_does_serve():
    """Guards the property above against a world in which nothing ever works."""
    world, operator = begun()
    operator.settle()
    chat = world.resources["ModelDeployment", "chat"].status.to_dict()
    assert [(t["revision"], t["weight"], t["verified"]) for t in chat["traffic"]] == [
        ("v1", 90, True),
        ("v2", 10, True),
    ]
    assert {c["type"]: c["status"] for c in chat["conditions"]} == {
        "Ready": "True",
        "Accepted": "True",
        "Available": "True",
        "TrafficApplied": "True",
    }


def test_the_toy_world_does_spread():
    """Guards the property above against pools in which every pod has everything."""
    world, operator = begun()
    world.put(base_model(serving=serving(*SPREAD)))
    world.put(adapter("v3"))
    world.put(deployment("side", revisions=[revision("v3", "v3")]))
    operator.settle()
    for _ in range(3):
        copies = Counter(name for pod in world.pods.values() for name in pod.adapters)
        assert copies == {"v1": 2, "v2": 2, "v3": 2}
        assert {a.metadata.name: a.status.loaded for a in world.of_kind("LoRAAdapter")} == dict.fromkeys(copies, "2/2")
        world.kill_pod(1)
        operator.settle()
