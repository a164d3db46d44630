"""Asking for checks beside everything else: what is asked when, who waits for whom, and when it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from tests.contract.operator_process import eventually
from tests.fakes.prometheus import FakePrometheus, number, refused
from tests.toyworld.rollouts import RolloutWorld
from tests.unit.planning.test_promchecks import DRIFT, checked_world
from tuneyard.api import names
from tuneyard.api.evidence import CheckRecord
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.observations import ChildObservation
from tuneyard.planning.promqueries import Evaluation
from tuneyard.planning.settings import PrometheusSettings
from tuneyard.runtime.checking import CONCURRENCY, OF_NAMESPACE, Checking
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key

CHAT = Key(MODEL_DEPLOYMENT, "models", "chat")
QUERY = 'drift{revision="v2"}'


class Scene:
    """Deployments that the tests store, and what asks for their checks."""

    def __init__(self, server: FakePrometheus) -> None:
        self.server = server
        self.deployments: dict[str, ModelDeploymentResource] = {}
        self.evidence: ChildObservation | None = None
        self.told: list[Key] = []
        self.checking = Checking(
            PrometheusSettings(url=server.url),
            lambda _, name: self.deployments.get(name),
            self.told.extend,
            lambda *_: self.evidence,
        )

    def store(self, world: RolloutWorld, name: str = "chat", namespace: str = "models") -> None:
        meta = world.now.metadata.model_copy(update={"name": name})
        self.deployments[name] = world.now.model_copy(update={"metadata": meta})
        self.checking.changed("MODIFIED", {"metadata": {"namespace": namespace, "name": name}})

    def record(self, world: RolloutWorld, counts_from: float, query: str = "q") -> None:
        """Store that evaluations of the check `drift` count from then."""
        assert world.evidence is not None and world.evidence.record is not None
        record = json.loads(world.evidence.record)
        record["checks"] = {"drift": CheckRecord(query=query, counts_from=counts_from).to_dict()}
        self.evidence = replace(world.evidence, record=json.dumps(record))
        labels = {names.LABEL_COMPONENT: names.ROLLOUT_EVIDENCE}
        named = {"namespace": "models", "name": names.rollout_evidence("chat"), "labels": labels}
        self.checking.recorded("MODIFIED", {"metadata": named})

    def known(self, check: str = "drift", name: str = "chat", namespace: str = "models") -> list[Evaluation]:
        return list(self.checking.of(Key(MODEL_DEPLOYMENT, namespace, name)).get(check, ()))


@pytest.fixture
def scene() -> Iterator[Scene]:
    with FakePrometheus() as server:
        server.otherwise = number(0.25)
        scene = Scene(server)
        yield scene
        scene.checking.stop()


@pytest.fixture(scope="module")
def world() -> RolloutWorld:
    return checked_world()


def test_each_check_is_asked_once_an_interval_and_all_that_it_gives_are_known(
    scene: Scene, world: RolloutWorld
) -> None:
    scene.store(world)
    scene.checking.start([CHAT])
    began = time.time()
    eventually(scene.known, "an evaluation")
    (found,) = scene.known()
    assert (found.query, found.value, found.trouble) == (QUERY, 0.25, "")
    assert abs(found.at - began) < 5
    assert scene.told == [CHAT]
    for _ in range(5):
        scene.checking.look(CHAT)
    scene.store(world, "other")
    eventually(lambda: scene.known(name="other"), "another one")
    assert scene.server.asked == [QUERY, QUERY] and len(scene.known()) == 1


@pytest.mark.lasting
def test_it_is_asked_anew_when_evaluations_begin_to_count_and_only_then(scene: Scene) -> None:
    world = checked_world({**DRIFT, "interval": "1h"})
    scene.checking.start([])
    scene.store(world)
    eventually(scene.known, "an evaluation")
    warm = time.time() + 0.5
    scene.record(world, warm)
    eventually(lambda: len(scene.known()) == 2, "another one, an hour early")
    assert scene.known()[1].at >= warm
    for past in (warm, warm - 10.0):
        scene.record(world, past)
    scene.store(world, "other")
    eventually(lambda: scene.known(name="other"), "what came after is done")
    assert len(scene.known()) == 2
    scene.record(world, time.time())
    eventually(lambda: len(scene.known()) == 3, "one of the next step")


def test_an_evaluation_without_a_number_says_why(scene: Scene, world: RolloutWorld) -> None:
    scene.server.otherwise = refused(503, "unavailable", "words of the server")
    scene.checking.start([])
    scene.store(world)
    eventually(scene.known, "an evaluation")
    (found,) = scene.known()
    assert (found.value, found.trouble) == (None, "Prometheus answered with HTTP status 503 (unavailable)")


@pytest.mark.lasting
def test_a_changed_query_is_asked_at_once_and_what_ends_is_forgotten(scene: Scene) -> None:
    world = checked_world()
    scene.checking.start([])
    scene.store(world)
    eventually(scene.known, "an evaluation")
    analysis = world.rollout["analysis"]
    world.spec(world.traffic, analysis={**analysis, "prometheus": [{**DRIFT, "query": "other"}]})
    world.settle()
    scene.store(world)
    eventually(lambda: len(scene.known()) == 2, "the other query")
    assert scene.known()[-1].query == "other"
    world.ready["v2"] = False
    world.wait(1)
    world.settle()
    scene.store(world)
    eventually(lambda: not scene.known(), "it is forgotten")
    del scene.deployments["chat"]
    scene.checking.look(CHAT)
    world.ready["v2"] = True
    world.clock += timedelta(seconds=1)
    world.settle()
    scene.store(world)
    eventually(scene.known, "it begins again")


def test_nothing_is_asked_before_the_start_nor_after_the_end_nor_without_a_server(
    scene: Scene, world: RolloutWorld
) -> None:
    scene.store(world)
    nobody = Checking(PrometheusSettings(), lambda *_: world.now, scene.told.extend)
    nobody.start([CHAT])
    nobody.look(CHAT)
    nobody.stop()
    assert (scene.server.asked, scene.told) == ([], [])
    scene.checking.start([CHAT])
    eventually(scene.known, "an evaluation")
    scene.checking.stop()
    scene.store(world, "later")
    assert scene.server.asked == [QUERY]


@pytest.mark.lasting
def test_who_asks_for_what_takes_long_waits_for_himself(scene: Scene) -> None:
    slow = checked_world(*({**DRIFT, "name": f"slow-{n}", "query": "slow"} for n in range(8)))
    quick = checked_world()
    go_on = threading.Event()
    scene.server.before = lambda query: go_on.wait(8) if query == "slow" else None
    scene.checking.start([])
    try:
        for number_ in range(OF_NAMESPACE - 2):
            scene.store(slow, f"slow-{number_}")
        eventually(lambda: scene.server.asked.count("slow") == OF_NAMESPACE - 2, "each of them has one under way")
        for number_ in range(20):
            scene.store(quick, f"quick-{number_}")
        eventually(lambda: all(scene.known(name=f"quick-{n}") for n in range(20)), "the others are answered")
        assert scene.server.asked.count("slow") == OF_NAMESPACE - 2
    finally:
        go_on.set()


def test_a_namespace_with_many_that_take_long_delays_no_other(scene: Scene, world: RolloutWorld) -> None:
    slow = checked_world({**DRIFT, "query": "slow"})
    go_on = threading.Event()
    scene.server.before = lambda query: go_on.wait(8) if query == "slow" else None
    scene.checking.start([])
    try:
        for number_ in range(2 * CONCURRENCY):
            scene.store(slow, f"slow-{number_}")
        eventually(lambda: scene.server.asked.count("slow") >= OF_NAMESPACE, "as many as may be are under way")
        scene.store(world, "quick", namespace="others")
        eventually(lambda: scene.known(name="quick", namespace="others"), "the other namespace is answered")
        assert not go_on.is_set() and scene.server.asked.count("slow") == OF_NAMESPACE
        for number_ in range(2 * CONCURRENCY):
            scene.deployments.pop(f"slow-{number_}")
    finally:
        go_on.set()


@pytest.mark.slow
def test_fifty_rollouts_with_eight_checks_each(scene: Scene) -> None:
    checks = [{**DRIFT, "name": f"check-{n}", "query": f"check_{n}"} for n in range(8)]
    world = checked_world(*checks)
    scene.checking.start([])
    for number_ in range(50):
        scene.store(world, f"m-{number_}")
    names = [(f"check-{n}", f"m-{m}") for n in range(8) for m in range(50)]
    eventually(lambda: all(scene.known(*name) for name in names), "everything has been evaluated once")
    assert len(scene.server.asked) == 400


def test_an_object_that_nobody_can_make_sense_of_ends_nothing_else(scene: Scene, world: RolloutWorld) -> None:
    def broken(namespace: str, name: str) -> ModelDeploymentResource | None:
        if name == "odd" and threading.current_thread().name == "checks" and scene.known(name="odd"):
            raise ValueError("odd")
        return scene.deployments.get(name)

    scene.checking._deployment = broken
    scene.checking.start([])
    scene.store(world, "odd")
    eventually(lambda: Key(MODEL_DEPLOYMENT, "models", "odd") in scene.told, "it is asked")
    scene.store(world)
    eventually(scene.known, "the other one is evaluated")
