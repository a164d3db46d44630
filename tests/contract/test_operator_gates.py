"""Gates with a running operator and a real API server; the kubelet and the Job controller are played by the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.fakegateway import MASTER
from tests.contract.operator_process import (
    Object,
    eventually,
)
from tests.contract.test_operator_rollout import QUICK, Scene, events, running, scene
from tests.contract.test_status import environment
from tests.toyworld.gates import SPEED, measured
from tuneyard.api import names
from tuneyard.api.gatereports import GateReport, GateTask, Sample
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE

pytestmark = pytest.mark.apiserver

__all__ = ["running", "scene"]  # the fixtures of rollouts

GATED = {**QUICK, "gates": [SPEED]}
SELECTOR = f"{names.LABEL_COMPONENT}={names.GATE}"


def jobs(scene: Scene) -> list[Object]:
    found = objects.listed(scene.cluster.api, "batch/v1", "Job", scene.cluster.namespace, SELECTOR)
    return [j for j in found if not j["metadata"].get("deletionTimestamp")]


def begun(scene: Scene, attempt: int = 1) -> Object:
    """The Job of this run, once its pod would find all that it mounts; its pod runs from then on."""
    namespace = scene.cluster.namespace

    def whole() -> Object | None:
        for job in jobs(scene):
            mark = json.loads(job["metadata"]["annotations"][names.ANNOTATION_GATE])
            name = job["metadata"]["name"]
            found = [
                scene.cluster.child(f"secrets/{names.gate_secret(name)}"),
                scene.cluster.child(f"configmaps/{name}"),
            ]
            if mark["attempt"] == attempt and all(found):
                return job
        return None

    job: Object = eventually(whole, lambda: f"a Job and what it mounts: {scene.follow()}")
    template = job["spec"]["template"]
    meta = job["metadata"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": meta["name"]}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
    metadata = {"name": meta["name"], "labels": labels, "ownerReferences": [owner]}
    pod = {"metadata": metadata, "spec": template["spec"]}
    scene.cluster.api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=pod)
    said(scene, job, {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "Running")
    return job


def said(scene: Scene, job: Object, state: Object, phase: str) -> None:
    container = {"name": "gate", "image": "t", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    scene.cluster.pod_status(job["metadata"]["name"], {"phase": phase, "containerStatuses": [container]})


def ends(scene: Scene, job: Object, report: GateReport | str) -> None:
    """The gate's process has left this behind."""
    message = report if isinstance(report, str) else json.dumps(report.to_dict())
    said(scene, job, {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}, "Succeeded")


def kept(scene: Scene) -> list[tuple[str, str]]:
    found = scene.cluster.child("configmaps/m-reports")
    results = json.loads(found["data"]["reports.json"])["results"] if found else []
    return [(r["gate"], r["outcome"]) for r in results]


def states(rollout: Object) -> list[tuple[str, str]]:
    return [(g["name"], g["state"]) for g in rollout.get("gates") or ()]


def report_of(scene: Scene, *arguments: str) -> str:
    return tuneyard(scene, "report", "m", *arguments)


def rollout_status(scene: Scene) -> str:
    return tuneyard(scene, "rollout", "status", "m")


def tuneyard(scene: Scene, *arguments: str) -> str:
    kubeconfig = ["--kubeconfig", str(scene.cluster.server.kubeconfig()), "-n", scene.cluster.namespace]
    done = subprocess.run(
        [sys.executable, "-m", "tuneyard", *arguments, *kubeconfig],
        env=environment(COLUMNS="120"), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def done(number: int) -> Callable[[Object], bool]:
    def holds(rollout: Object) -> bool:
        return [(g.get("progress") or {}).get("done") for g in rollout.get("gates") or ()] == [number]

    return holds


def message(scene: Scene) -> str:
    conditions = scene.cluster.get("ModelDeployment", "m")["status"]["conditions"]
    return str(next(c["message"] for c in conditions if c["type"] == "Reconciling"))


def test_a_gate_runs_in_a_job_and_who_passes_climbs(scene: Scene, tmp_path: Path) -> None:
    scene.apply({"v1": 0, "v2": 100}, GATED)
    job = begun(scene)
    rollout = scene.until(lambda r: states(r) == [("speed", "Running")], "the gate runs")
    assert (rollout["phase"], rollout["weight"]) == ("Gating", 0)
    assert "Gating" in scene.cluster.condition("ModelDeployment", "m", "Reconciling")
    spec = job["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    owner = job["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["uid"]) == (
        "ModelDeployment",
        scene.cluster.get("ModelDeployment", "m")["metadata"]["uid"],
    )
    name = job["metadata"]["name"]
    task = (scene.cluster.child(f"configmaps/{name}") or {})["data"]["gate.json"]
    told = GateTask.model_validate_json(task)
    assert (told.model, told.candidate, told.stable) == (f"{scene.cluster.namespace}/m", "v2", "v1")
    assert names.gate_token(MASTER, scene.cluster.namespace, "m") not in task
    assert (
        "speed of v2: Running"
        in report_of(scene, "--html", str(tmp_path / "a.html")) + (tmp_path / "a.html").read_text()
    )
    ends(scene, job, measured(104).model_copy(update={"samples": [Sample(prompt="<b>hello</b>", answer="<i>you</i>")]}))
    scene.until(lambda r: r.get("stable") == "v2", "v2 climbs and takes over")
    assert all(not w.get("v2") for w in scene.weights[: scene.weights.index({"v1": 95, "v2": 5})])
    assert kept(scene) == [("speed", "Passed")]
    assert jobs(scene) == []
    assert "Gating" in events(scene)
    shown = report_of(scene)
    assert "v2  speed  Passed" in shown
    assert "at most 110 ms (1.10x)" in shown
    assert json.loads(report_of(scene, "-o", "json"))["results"][0]["checks"][1]["metric"] == "ttftP95"
    page = tmp_path / "report.html"
    report_of(scene, "--html", str(page))
    assert "<svg" in page.read_text()
    assert "<b>hello" not in page.read_text(), "an answer is a stranger's"


def test_how_far_a_gate_is_is_shown_while_it_runs(scene: Scene) -> None:
    deployment = f"{scene.cluster.namespace}/m"
    scene.apply({"v1": 0, "v2": 100}, GATED)
    job = begun(scene)
    told = scene.cluster.child(f"configmaps/{job['metadata']['name']}")
    assert told is not None
    run = GateTask.model_validate_json(told["data"]["gate.json"]).job
    scene.until(lambda r: states(r) == [("speed", "Running")], "the gate runs")
    scene.gateway.asked_by_gate(deployment, run, 12, 200)
    rollout = scene.until(done(12), "it is told")
    assert rollout["gates"][0]["startedAt"] == "2026-01-01T00:00:00Z"
    scene.gateway.asked_by_gate(deployment, run, 90, 200)
    (gate,) = rollout["gates"]
    earlier = {**gate, "progress": {**gate["progress"], "at": "2026-01-01T00:00:00Z"}}
    path = scene.cluster.path("modeldeployments", "m") + "/status"
    body = {"status": {"rollout": {"gates": [earlier]}}}
    scene.cluster.api.request("PATCH", path, body=body, content_type=MERGE)
    scene.until(done(90), "it is told again, the last time is long ago")
    assert "speed runs since 2026-01-01T00:00:00Z, 90 of 200 done" in message(scene)
    shown = " ".join(rollout_status(scene).split())
    assert "90 of 200 requests to each ttftP95 at most 1.10x" in shown
    ends(scene, job, measured(104))
    scene.until(lambda r: states(r) == [("speed", "Passed")], "it passes")
    shown = " ".join(rollout_status(scene).split())
    assert "ttftP95 104 ms is within 1.10x of stable's 100 ms" in shown


def test_who_fails_is_rejected_and_stays_so_when_the_object_comes_again(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, GATED)
    ends(scene, begun(scene), measured(300))
    rollout = scene.until(scene.rejects("v2"), "v2 is rejected")
    (verdict,) = rollout["verdicts"]
    assert (verdict["reason"], verdict["evidence"]) == (
        "GateFailed",
        "gate speed: ttftP95 300 ms is over 1.10x of stable's 100 ms",
    )
    assert all(not w.get("v2") for w in scene.weights)
    scene.until(lambda r: states(r) == [("speed", "Failed")], "what was found is kept")
    scene.cluster.delete("ModelDeployment", "m")
    scene.apply({"v1": 0, "v2": 100}, GATED)
    scene.until(scene.rejects("v2"), "still rejected")
    assert jobs(scene) == []
    assert kept(scene) == [("speed", "Failed")]


def test_one_that_passed_is_not_run_again_after_a_lost_status_or_a_restart(scene: Scene) -> None:
    slow = {**GATED, "steps": [{"weight": 5, "hold": "1h"}]}
    scene.apply({"v1": 0, "v2": 100}, slow)
    ends(scene, begun(scene), measured(100))
    scene.until(lambda r: r.get("weight") == 5, "the first step")
    eventually(scene.lose_status, "nobody wrote meanwhile")
    scene.until(lambda r: r.get("weight") == 5 and states(r) == [("speed", "Passed")], "the first step again")
    scene.operator.kill()
    scene.cluster.delete("ModelDeployment", "m")
    scene.apply({"v1": 0, "v2": 100}, slow)
    scene.operator.start()
    scene.until(lambda r: r.get("weight") == 5, "the first step of the new object")
    assert jobs(scene) == []


def test_one_that_cannot_run_holds_and_is_run_again(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, GATED)
    first = begun(scene)
    ends(scene, first, GateReport(cannot_run="the judge j gives no grade: status 503"))
    rollout: Any = scene.until(lambda r: states(r) == [("speed", "CannotRun")], "it holds")
    (gate,) = rollout["gates"]
    assert (gate["message"], gate["attempt"]) == ("the judge j gives no grade: status 503", 2)
    assert scene.cluster.condition("ModelDeployment", "m", "Ready")[1] == "GateCannotRun"
    eventually(lambda: jobs(scene) == [], "its Job goes")
    sooner = {"status": {"rollout": {"gates": [{**gate, "retryAt": "2020-01-01T00:00:00Z"}]}}}
    path = scene.cluster.path("modeldeployments", "m") + "/status"
    scene.cluster.api.request("PATCH", path, body=sooner, content_type=MERGE)
    second = begun(scene, attempt=2)
    assert second["metadata"]["name"] != first["metadata"]["name"]
    ends(scene, second, measured(100))
    scene.until(lambda r: r.get("stable") == "v2", "and passes")


def test_a_job_that_is_deleted_by_somebody_is_not_a_verdict(scene: Scene) -> None:
    scene.apply({"v1": 0, "v2": 100}, GATED)
    job = begun(scene)
    scene.until(lambda r: states(r) == [("speed", "Running")], "it runs")
    metadata = job["metadata"]
    objects.delete(scene.cluster.api, "batch/v1", "Job", metadata["namespace"], metadata["name"], uid=metadata["uid"])
    rollout = scene.until(lambda r: states(r) == [("speed", "CannotRun")], "it is noticed")
    assert rollout["phase"] == "Gating"
    scene.command("promote", "v2", "now")
    rollout = scene.until(lambda r: r.get("stable") == "v2", "promoted")
    assert rollout["lastCommand"]["message"].endswith("gates that are skipped: speed")
    eventually(lambda: kept(scene) == [("speed", "Skipped")], "and that is kept")


def test_the_api_server_refuses_gates_that_make_no_sense(scene: Scene) -> None:
    both = {"name": "g", "benchmark": SPEED["benchmark"], "evaluation": {"prompts": {"configMap": "c"}, "min": {}}}
    for gates, words in (
        ([both], "an entry of rollout.gates must be exactly one of benchmark, evaluation; found 2"),
        ([{"name": "g"}], "an entry of rollout.gates must be exactly one of benchmark, evaluation; found 0"),
        ([{"name": "g", "benchmark": {"requests": 50}}], "benchmark needs a limit in max or min"),
        ([{"name": "g", "benchmark": {"max": {}}}], "benchmark.max must name at least one limit"),
        ([{"name": "g", "benchmark": {"max": {"ttftP95": "fast"}}}], "ttftP95"),
        ([{"name": "g", "benchmark": {"max": {"e2eP99": "1.1x"}}}] * 2, "duplicate entries for key"),
        (
            [{"name": "g", "evaluation": {"prompts": {"configMap": "c"}, "min": {"judge": 0.5}}}],
            "evaluation.min.judge needs evaluation.judge",
        ),
        ([{"name": "g", "evaluation": {"prompts": {"configMap": "c"}, "min": {"regex": 80}}}], "regex"),
        ([{**SPEED, "name": f"g{n}"} for n in range(9)], "must have at most 8 items"),
    ):
        with pytest.raises(Exception, match=words.replace(".", r"\.").split(";")[0]):
            scene.apply({"v1": 100}, {**QUICK, "gates": gates})
