"""Rollouts with a running operator and a real API server: steps, verdicts that outlive the object, commands once.

The gateway here confirms whatever the shared function gives for the object as it is stored, as a real one does.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    Object,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
    operating,
)
from tests.contract.test_status import environment
from tuneyard.api import names
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.traffic import effective
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE, ApiError

pytestmark = pytest.mark.apiserver

DIGESTS = {"one": "sha256:" + "ab" * 32, "two": "sha256:" + "cd" * 32, "three": "sha256:" + "ef" * 32}
ADAPTERS: dict[str, str | None] = {"v1": "one", "v2": "two", "v3": "three"}
QUICK = {"mode": "Progressive", "steps": [{"weight": 5, "hold": "1s"}, {"weight": 50, "hold": "1s"}]}
SLOW = {"mode": "Progressive", "steps": [{"weight": 5, "hold": "1h"}, {"weight": 50}]}


@dataclass
class Scene:
    """One deployment `m` in a namespace of its own, and a gateway that follows it."""

    cluster: Cluster
    gateway: FakeGateway
    operator: OperatorProcess
    weights: list[dict[str, int]]

    def apply(self, weights: dict[str, int], rollout: Object | None) -> None:
        spec = deployment_spec("base", weights, ADAPTERS)
        self.cluster.apply("ModelDeployment", "m", {**spec, **({"rollout": rollout} if rollout else {})})

    def begin(self, rollout: Object = SLOW) -> None:
        """A base, all adapters on its pod, and v1 stable at 100 %."""
        self.cluster.apply("BaseModel", "base", BASE_SPEC)
        for name, digest in DIGESTS.items():
            self.cluster.apply("LoRAAdapter", name, {**adapter_spec("base"), "digest": digest})
        self.apply({"v1": 100}, rollout)
        eventually(lambda: self.cluster.child("apps/v1:deployments/base-pool"), "the pool's Deployment")
        self.cluster.pod("pod-0", "base")
        self.cluster.verified("pod-0", "sha256:" + "00" * 32)
        self.report(*DIGESTS)
        self.until(lambda r: r.get("stable") == "v1" and r.get("phase") == "Completed", "v1 is stable")

    def follow(self) -> Object:
        """The gateway sees the object and serves what it allows; returns its status.rollout."""
        try:
            stored = self.cluster.get("ModelDeployment", "m")
        except ApiError:
            return {}
        found = ModelDeploymentResource.from_dict(stored)
        ready = {t.revision: t.ready_endpoints for t in found.status.traffic}
        rollout = found.status.rollout or RolloutStatus()
        served = dict(effective(found.spec, ready, stable=rollout.stable, allowed=rollout.allowed).weights)
        told = self.gateway.deployments.get(f"{self.cluster.namespace}/m", {})
        if told.get("weights") != served or told.get("uid") != found.metadata.uid:
            self.gateway.applied(stored, served)
            self.weights.append(served)
        status: Object = (stored.get("status") or {}).get("rollout") or {}
        return status

    def until(self, holds: Any, what: str, within: float = 20.0) -> Object:
        found: Object = eventually(
            lambda: r if holds(r := self.follow()) else None, lambda: f"{what}: {self.follow()}", within
        )
        return found

    def command(self, action: str, revision: str, id_: str) -> None:
        text = json.dumps({"id": id_, "action": action, "revision": revision})
        body = {"metadata": {"annotations": {names.ANNOTATION_COMMAND: text}}}
        self.cluster.api.request("PATCH", self.cluster.path("modeldeployments", "m"), body=body, content_type=MERGE)

    def lose_status(self) -> bool:
        """Write an empty status, as a restored etcd would hold it; False where the operator was faster."""
        try:
            objects.apply_status(self.cluster.api, self.cluster.get("ModelDeployment", "m"), {"conditions": []})
        except ApiError as error:
            if error.conflict:
                return False
            raise
        return True

    def report(self, *adapters: str) -> None:
        self.cluster.report("pod-0", "base", {a: DIGESTS[a] for a in adapters})

    def record(self) -> Object:
        """What outlives the object."""
        found = self.cluster.child("configmaps/m-verdicts")
        return json.loads(found["data"]["record.json"]) if found else {}

    def rejects(self, revision: str) -> Any:
        return lambda r: [v["revision"] for v in r.get("verdicts") or ()] == [revision] and r["phase"] == "RolledBack"


@pytest.fixture(scope="module")
def running(
    operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeGateway, OperatorProcess]]:
    with operating(operator_apiserver, tmp_path_factory.mktemp("operator")) as running:
        yield running


@pytest.fixture
def scene(
    operator_apiserver: ApiServer, running: tuple[FakeGateway, OperatorProcess], request: pytest.FixtureRequest
) -> Iterator[Scene]:
    cluster = Cluster.of(operator_apiserver, request)
    scene = Scene(cluster, *running, weights=[])
    scene.begin()
    yield scene
    cluster.delete("ModelDeployment", "m")


def events(scene: Scene) -> set[str]:
    found = objects.listed(scene.cluster.api, "events.k8s.io/v1", "Event", scene.cluster.namespace)
    return {e["reason"] for e in found}


def test_steps_in_their_order_until_the_candidate_is_stable(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, QUICK)
    scene.until(lambda r: r.get("stable") == "v2", "v2 takes over")
    climbed = [w.get("v2", 0) for w in scene.weights]
    assert [w for n, w in enumerate(climbed) if w and w != climbed[n - 1]] == [5, 50, 100]
    assert {"StepCompleted", "Promoted"} <= eventually(
        lambda: events(scene) if "Promoted" in events(scene) else None, "events"
    )
    shown = scene.cluster.server.kubectl("get", "mdep", "m", "-n", scene.cluster.namespace, "-o", "wide").stdout
    assert "STEP" in shown
    assert "Completed" in shown


def test_what_prometheus_reads_of_a_rejection(scene: Scene) -> None:
    def told() -> dict[str, float]:
        """Series of this deployment by name and by what distinguishes them, as the running operator shows them."""
        of = f'namespace="{scene.cluster.namespace}"'
        lines = [line for line in scene.operator.ask("/metrics")[1].splitlines() if of in line]
        found = (re.fullmatch(r"tuneyard_(\w+)\{(.*)\} (\S+)", line) for line in lines)
        parts = ((m[1], re.findall(r'(?:revision|phase|outcome|role|reason)="(\w+)"', m[2]), m[3]) for m in found if m)
        return {" ".join([name, *values]): float(number) for name, values, number in parts}

    before = told()
    assert (before["rollout_phase Completed"], before["revision_role v1 stable"]) == (1, 1)
    assert before["rollout_outcomes_total Rejected"] == 0
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.until(lambda r: r.get("weight") == 5, "5 %")
    climbing = told()
    assert [climbing[f"revision_{w} v2"] for w in ("spec_weight", "weight", "allowed_weight")] == [100, 5, 5]
    scene.command("abort", "v2", "one-abort")
    scene.until(scene.rejects("v2"), "rejected")
    after = eventually(lambda: t if "stalled CandidateRejected" in (t := told()) else None, lambda: str(told()))
    assert after["revision_allowed_weight v2"] == 0
    assert after["rollout_outcomes_total Rejected"] == 1
    assert time.time() - after["rollout_verdict_timestamp_seconds Aborted v2"] < 60
    assert "rollout_phase Completed" not in after, "what was the case has no series"


def test_a_verdict_outlives_the_object_and_a_restart(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.until(lambda r: r.get("weight") == 5, "5 %")
    scene.command("abort", "v2", "one")
    rollout = scene.until(scene.rejects("v2"), "v2 is rejected")
    assert rollout["allowed"] == {"v2": 0}
    assert rollout["lastCommand"]["accepted"] is True
    eventually(lambda: scene.record().get("verdicts"), "the record")
    for _ in range(2):
        scene.cluster.delete("ModelDeployment", "m")
        scene.apply({"v1": 0, "v2": 100}, SLOW)
        rollout = scene.until(scene.rejects("v2"), "still rejected, and no command was carried out anew")
        assert rollout["lastCommand"]["id"] == "one"
    eventually(scene.lose_status, "nobody wrote meanwhile")
    scene.until(scene.rejects("v2"), "also when only the status is lost")
    scene.operator.kill()
    assert scene.lose_status()
    scene.operator.start()
    rollout = scene.until(scene.rejects("v2"), "an operator that begins knows it from the record alone")
    assert rollout["lastCommand"]["id"] == "one"
    scene.operator.kill()
    scene.cluster.delete("ModelDeployment", "m")
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.operator.start()
    rollout = scene.until(scene.rejects("v2"), "also of an object that came while there was no operator")
    assert (rollout["stable"], rollout["lastCommand"]["id"]) == ("v1", "one")
    assert not any(w.get("v2") for w in scene.weights[-3:])
    scene.apply({"v1": 0, "v2": 100}, {**SLOW, "retryToken": "once more"})
    scene.until(lambda r: r.get("weight") == 5 and not r.get("verdicts"), "tried once more")
    eventually(lambda: scene.record().get("verdicts") == [], "and the record follows")


def test_the_record_of_a_deployment_that_is_gone_is_marked_and_taken_up_again(scene: Scene) -> None:
    eventually(lambda: scene.record().get("stable"), "the record")
    scene.cluster.delete("ModelDeployment", "m")

    def marks() -> Object:
        found = scene.cluster.child("configmaps/m-verdicts") or {"metadata": {}}
        annotations: Object = found["metadata"].get("annotations") or {}
        return annotations

    eventually(lambda: names.ANNOTATION_UNUSED_SINCE in marks(), "since when it is unused")
    scene.apply({"v1": 100}, SLOW)
    scene.until(lambda r: r.get("stable") == "v1", "v1 is stable")
    eventually(lambda: names.ANNOTATION_UNUSED_SINCE not in marks(), "in use again")
    old = {"metadata": {"annotations": {names.ANNOTATION_UNUSED_SINCE: "2020-01-01T00:00:00Z"}}}
    scene.operator.kill()
    scene.cluster.delete("ModelDeployment", "m")
    scene.operator.start()
    eventually(lambda: names.ANNOTATION_UNUSED_SINCE in marks(), "an operator that begins finds it unused")
    where = f"/api/v1/namespaces/{scene.cluster.namespace}/configmaps/m-verdicts"
    scene.cluster.api.request("PATCH", where, body=old, content_type=MERGE)
    eventually(lambda: scene.cluster.child("configmaps/m-verdicts") is None, "removed after a week")
    scene.apply({"v1": 100}, SLOW)


def test_a_command_after_a_quiet_while_is_seen_and_carried_out_once(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.until(lambda r: r.get("stepStartedAt"), "the first step holds")
    scene.command("promote", "v3", "one")
    refused = scene.until(lambda r: (r.get("lastCommand") or {}).get("id") == "one", "an answer")["lastCommand"]
    assert (refused["accepted"], "the candidate is v2" in refused["message"]) == (False, True)
    scene.command("promote", "v2", "two")
    scene.until(lambda r: r.get("stable") == "v2", "v2 takes over")
    scene.apply({"v1": 0, "v2": 0, "v3": 100}, SLOW)
    rollout = scene.until(lambda r: r.get("candidate") == "v3" and r.get("stepStartedAt"), "the next candidate")
    assert (rollout["weight"], rollout["lastCommand"]["id"]) == (5, "two")


def test_a_load_failure_rolls_back_and_the_next_candidate_goes_on(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.until(lambda r: r.get("weight") == 5, "5 %")
    pod = f"/api/v1/namespaces/{scene.cluster.namespace}/pods/pod-0"
    stored = scene.cluster.api.request("GET", pod)
    said = json.loads(stored["metadata"]["annotations"][names.ANNOTATION_ADAPTERS])
    said["adapters"]["two"] = {"state": "Failed", "reason": "NonFiniteValues", "message": "a weight is NaN"}
    body = {"metadata": {"annotations": {names.ANNOTATION_ADAPTERS: json.dumps(said)}}}
    scene.cluster.api.request("PATCH", pod, body=body, content_type=MERGE)
    rollout = scene.until(scene.rejects("v2"), "rejected")
    assert rollout["verdicts"][0]["reason"] == "NonFiniteValues"
    eventually(
        lambda: scene.cluster.condition("ModelDeployment", "m", "Stalled") == ("True", "CandidateRejected"), "said"
    )
    scene.apply({"v1": 0, "v2": 0, "v3": 100}, QUICK)
    scene.until(lambda r: r.get("stable") == "v3", "v3 takes over")


def test_a_verdict_whose_revision_is_taken_out_of_the_spec_leaves_with_it(scene: Scene) -> None:
    """As a reverted commit does. Server-side apply may not stumble over a map that has become empty."""
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.until(lambda r: r.get("weight") == 5, "5 %")
    scene.command("abort", "v2", "one")
    scene.until(scene.rejects("v2"), "rejected")
    scene.apply({"v1": 100}, SLOW)
    rollout = scene.until(lambda r: r.get("phase") == "Completed", "as before")
    assert (rollout["stable"], rollout["allowed"]) == ("v1", {})


def test_the_operator_is_killed_in_a_step_and_another_one_goes_on(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, QUICK)
    scene.until(lambda r: r.get("step") == 1, "the second step")
    scene.operator.kill()
    scene.operator.start()
    scene.until(lambda r: r.get("stable") == "v2", "v2 takes over", within=60)
    assert {w.get("v2") for w in scene.weights} <= {None, 0, 5, 50, 100}


@pytest.mark.parametrize(
    ("rollout", "message"),
    [
        ({"mode": "Progressive"}, "rollout.mode Progressive needs rollout.steps"),
        ({"steps": [{"weight": 5}, {"weight": 1}]}, "must have ascending weights, they are [5, 1]: sort them"),
        ({"steps": [{"weight": 5}, {"weight": 5}]}, "give each weight once"),
        ({"steps": [{"weight": 101}]}, "less than or equal to 100"),
        ({"steps": [{"weight": 5, "hold": "soon"}]}, "hold"),
    ],
)
def test_what_the_api_server_refuses(operator_apiserver: ApiServer, rollout: Object, message: str) -> None:
    where = objects.path(names.API_VERSION, "ModelDeployment", NAMESPACE)
    spec = {**deployment_spec("base", {"v1": 100}), "rollout": rollout}
    body = {"apiVersion": names.API_VERSION, "kind": "ModelDeployment", "metadata": {"name": "m"}, "spec": spec}
    with pytest.raises(ApiError) as refused:
        operator_apiserver.api().request("POST", where, body=body)
    assert message in refused.value.message


def tuneyard(scene: Scene, *arguments: str) -> subprocess.Popen[str]:
    config = str(scene.cluster.server.kubeconfig())
    command = [sys.executable, "-m", "tuneyard", *arguments, "-n", scene.cluster.namespace]
    return subprocess.Popen(
        command,
        env=environment(KUBECONFIG=config),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answered(scene: Scene, *arguments: str) -> tuple[int, str]:
    """The exit code and the words of a command, while the gateway goes on following."""
    with tuneyard(scene, *arguments) as process:
        eventually(lambda: scene.follow() is not None and process.poll() is not None, "an end", within=40)
        out, err = process.communicate()
        return process.returncode, out + err


def test_the_command_line(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, SLOW)
    scene.until(lambda r: r.get("weight") == 5, "5 %")
    assert answered(scene, "rollout", "pause", "m") == (0, "v2 stays where it is\n")
    code, text = answered(scene, "rollout", "status", "m")
    assert (code, "Paused" in text, "paused by a command" in text) == (0, True, True)
    assert answered(scene, "rollout", "abort", "m", "v3")[0] == 1
    assert answered(scene, "rollout", "abort", "m") == (0, "v2 is rejected and gets no traffic\n")
    code, text = answered(scene, "history", "m")
    assert (code, "rejected" in text, "Aborted" in text) == (0, True, True)
    assert answered(scene, "rollout", "retry", "m") == (0, "v2 begins again\n")
