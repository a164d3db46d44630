"""Whatever happens on the way, a base is built once, and is served as what it became.

A history has crashes after any action, views that are several writes old, lost statuses, failing and evicted pods,
Jobs that somebody deletes, inputs that go and come. Afterwards everything gets its turn again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.builders import BASE, VOLUME, adapter, base_model, deployment, digest, revision
from tests.toyworld.building import BuildWorld
from tests.toyworld.execution import PLANS, Operator
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus
from tuneyard.api.build import BaseSource
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.plan import Apply

MERGED = "merged"
Happens = Callable[[BuildWorld, Operator], object]
EXAMPLES = int(os.environ.get("TUNEYARD_EXAMPLES", "4"))


def merged(name: str = MERGED) -> BaseModelResource:
    build = {
        "output": {"volume": {"claimName": "models", "path": "built"}},
        "steps": [{"merge": {"baseModel": BASE, "adapter": "v1"}}, {"quantize": {"scheme": "FP8"}}],
    }
    return base_model(name, source=BaseSource.from_dict({"build": build}), serving=ServingSpec(replicas=1))


def begun() -> tuple[BuildWorld, Operator]:
    """A base and an adapter that are served, one that is built of them, and a deployment that wants that."""
    world = BuildWorld()
    world.put(base_model(serving=ServingSpec(artifact_volumes=[VOLUME])))
    world.put(adapter("v1"))
    world.put(deployment(revisions=[revision("v1", "v1")]))
    world.put(merged())
    world.put(deployment("side", revisions=[revision("m", base=MERGED)]))
    return world, Operator(world)


def status_of(world: BuildWorld, name: str) -> BaseModelStatus:
    status = world.resources["BaseModel", name].status
    assert isinstance(status, BaseModelStatus)
    return status


def build_of(world: BuildWorld, name: str = MERGED) -> BuildStatus:
    build = status_of(world, name).build
    assert build is not None
    return build


def passes(behind: int, crash: int | None, name: str) -> Happens:
    return lambda world, operator: (
        operator.reconcile(("BaseModel", name), behind=behind, crash_after=crash)
        if ("BaseModel", name) in world.resources
        else None
    )


def faulty(fault: Any) -> Happens:
    return lambda world, _: world.faults.append(fault)


def settled(world: BuildWorld, operator: Operator) -> None:
    """For once everything works, and who is told that a build has failed deletes its Job: the next attempt is due in an
    hour, or in a day."""
    world.faults.clear()
    world.put(adapter("v1"))
    if status_of(world, MERGED).build is not None and build_of(world).state == "Failed":
        world.lose_jobs()
    operator.settle()


def waited(seconds: float) -> Happens:
    return lambda world, _: world.wait(seconds)


troubles: st.SearchStrategy[tuple[str, Happens]] = st.one_of(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(0, 6)), st.sampled_from([MERGED, MERGED, BASE])).map(
        lambda t: (f"pass {t}", passes(*t))
    ),
    st.sampled_from(["fails", "final", "evicted", "silent"]).map(lambda f: (f"a pod {f}", faulty(f))),
    st.sampled_from([1.0, 30.0, 4000.0, 90_000.0]).map(lambda s: (f"{s} s pass", waited(s))),
    st.sampled_from(
        [
            ("pods move", lambda w, _: w.move_pods()),
            ("all settles", settled),
            ("the status is lost", lambda w, _: w.lose_status("BaseModel", MERGED)),
            ("that of the input is lost", lambda w, _: w.lose_status("BaseModel", BASE)),
            ("all Jobs are deleted", lambda w, _: w.lose_jobs()),
            ("the adapter goes", lambda w, _: w.drop("LoRAAdapter", "v1")),
            ("the adapter comes", lambda w, _: w.put(adapter("v1"))),
            ("garbage is collected", lambda w, _: w.collect_garbage()),
            ("somebody meddles", lambda w, _: w.meddle(7)),
        ]
    ),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(troubles, max_size=30))
def test_it_is_built_once_and_served(history):
    world, operator = begun()
    for _, happens in history:
        happens(world, operator)
        no_pool_before_it_is_built(world)
    settled(world, operator)
    status, build = status_of(world, MERGED), build_of(world)
    assert build.succeeded, build
    assert status.digest == digest(build.key or "")
    assert world.made == {build.key: 1}, "the same was built twice, or something else"
    ready = {c.type: c.status for c in status.conditions}
    assert (ready["Ready"], ready["Built"]) == ("True", "True")
    plan = PLANS["BaseModel"](world.situation(), MERGED)
    assert (plan.actions, plan.events, plan.status, plan.requeue_after) == ((), (), status, None)


def no_pool_before_it_is_built(world: BuildWorld) -> None:
    """Its pods would find nothing where the result will be."""
    pool = world.objects.get(("Deployment", f"{MERGED}-pool"))
    assert pool is None or world.outputs, "a pool of what nobody has built"


def test_the_pool_mounts_the_claim_that_it_was_built_onto():
    world, operator = begun()
    operator.settle()
    key = build_of(world).key
    spec = world.objects["Deployment", f"{MERGED}-pool"].obj["spec"]["template"]["spec"]
    (volume,) = [v for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    verify = spec["initContainers"][0]
    assert verify["args"][verify["args"].index("--path") + 1] == f"/artifacts/tuneyard-built/built/{key}"
    assert [c for c in verify["volumeMounts"] if c["name"] == volume["name"]] == [
        {"name": volume["name"], "mountPath": "/artifacts/tuneyard-built", "readOnly": True}
    ]


def test_the_same_steps_of_the_same_inputs_are_made_once_in_a_namespace():
    world, operator = begun()
    operator.settle()
    world.put(merged("again"))
    operator.settle()
    assert build_of(world, MERGED).key == build_of(world, "again").key
    assert status_of(world, MERGED).digest == status_of(world, "again").digest
    assert world.made == {build_of(world).key: 1}


def test_what_serves_goes_on_when_its_status_is_lost():
    world, operator = begun()
    operator.settle()
    world.lose_status("BaseModel", MERGED)
    pool = world.objects["Deployment", f"{MERGED}-pool"]
    for _ in range(3):
        plan = operator.reconcile(("BaseModel", MERGED))
        assert [a.object["kind"] for a in plan.actions if isinstance(a, Apply)] in (["Job"], [])
    assert world.objects["Deployment", f"{MERGED}-pool"] is pool
    status = status_of(world, MERGED)
    assert status.replicas == "1/1"
    assert {c.type: c.status for c in status.conditions}["Available"] == "True"
