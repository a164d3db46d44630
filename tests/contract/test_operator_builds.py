"""Builds with a running operator that has the chart's rights and policies and no others, on a real API server.

The kubelet and the Job controller are played by the tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.chart import install, rendered, token
from tests.contract.gatejobs import BUILD_JOBS
from tests.contract.operator_process import NAMESPACE, Cluster, Object, OperatorProcess, eventually
from tests.contract.test_admission import ACCESS, until_refused
from tests.contract.test_admission_own_rights import refusals
from tuneyard.api import names
from tuneyard.api.buildtask import BuildReport, BuildResult, BuildTask, StepRecord, UsedInput
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE, ApiError

pytestmark = pytest.mark.apiserver

ORIGINAL, OF_ADAPTER, OF_RESULT = (f"sha256:{letter * 64}" for letter in "abc")
SELECTOR = f"{names.LABEL_COMPONENT}={names.BUILD}"
VOLUME = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
OUTPUT: Object = {"volume": {"claimName": "models", "path": "built"}}
MERGE_STEP: Object = {"merge": {"baseModel": "base", "adapter": "v1"}}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """An API server with the chart's accounts, rights and policies in force."""
    with ApiServer() as server:
        server.install_crds()
        server.namespace(NAMESPACE)
        install(server, [o for o in rendered() if o["kind"] in ACCESS or o["kind"].startswith("ValidatingAdmission")])
        yield server


@pytest.fixture
def cluster(server: ApiServer, request: pytest.FixtureRequest) -> Cluster:
    """A namespace with a base and an adapter."""
    cluster = Cluster.of(server, request)
    source = {"volume": {"name": "models", "path": "base"}}
    cluster.apply("BaseModel", "base", {"source": source, "digest": ORIGINAL, "serving": {"artifactVolumes": [VOLUME]}})
    return cluster


@pytest.fixture
def operator(server: ApiServer, cluster: Cluster, tmp_path: Path) -> Iterator[OperatorProcess]:
    own = token(cluster.api, NAMESPACE, "tuneyard-operator")
    probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe", "namespace": cluster.namespace}}
    api = server.api(own)
    until_refused(lambda x: objects.apply(api, {**probe, "data": {"x": x}}))
    with OperatorProcess(server, tmp_path, token=own) as process:
        yield process


def adapter(cluster: Cluster) -> None:
    source = {"volume": {"name": "models", "path": "v1"}}
    cluster.apply("LoRAAdapter", "v1", {"baseModel": "base", "source": source, "digest": OF_ADAPTER})


def built(cluster: Cluster, name: str, *steps: Object, **more: Any) -> None:
    build = {"output": OUTPUT, "steps": list(steps), **more}
    cluster.apply("BaseModel", name, {"source": {"build": build}, "serving": {"resources": {}}})


def status(cluster: Cluster, name: str) -> Object:
    found: Object = cluster.status("BaseModel", name).get("build") or {}
    return found


def begun(cluster: Cluster, operator: OperatorProcess, name: str, attempt: int = 1) -> tuple[Object, BuildTask]:
    """The Job of this attempt, whose pod runs from then on, and what that is told."""

    def made() -> Object | None:
        for job in objects.listed(cluster.api, "batch/v1", "Job", cluster.namespace, SELECTOR):
            mark = json.loads(job["metadata"]["annotations"][names.ANNOTATION_BUILD])
            if mark["attempt"] == attempt and job["metadata"]["labels"][names.LABEL_BUILD] == name:
                return job
        return None

    job: Object = eventually(made, lambda: f"a Job: {cluster.status('BaseModel', name)} {operator.said()[-1500:]}")
    meta, template = job["metadata"], job["spec"]["template"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
    pod = {
        "metadata": {"name": meta["name"], "labels": template["metadata"]["labels"], "ownerReferences": [owner]},
        "spec": template["spec"],
    }
    cluster.api.request("POST", f"/api/v1/namespaces/{cluster.namespace}/pods", body=pod)
    says(cluster, job, {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "Running")
    volumes = template["spec"]["volumes"]
    told = next(v["configMap"]["name"] for v in volumes if v["name"] == "task")
    config = cluster.child(f"configmaps/{told}")
    assert config is not None, "a Job before what tells it what to do"
    return job, BuildTask.model_validate_json(config["data"]["task.json"])


def says(cluster: Cluster, job: Object, state: Object, phase: str) -> None:
    container = {"name": "build", "image": "t", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    cluster.pod_status(job["metadata"]["name"], {"phase": phase, "containerStatuses": [container]})


def ends(cluster: Cluster, job: Object, result: BuildResult | str, code: int = 0) -> None:
    message = result if isinstance(result, str) else result.shortened()
    state = {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}}
    says(cluster, job, state, "Failed" if code else "Succeeded")


def of(task: BuildTask) -> BuildResult:
    steps = [StepRecord(kind=s.step.kind, key=s.key, digest=OF_RESULT, tools={"peft": "0.21.2"}, seed=0)
             for s in task.steps if s.step.kind]  # fmt: skip
    inputs = [UsedInput(kind=i.kind, name=i.name, digest=i.digest) for i in task.inputs if i.digest]
    return BuildResult(key=task.key, digest=OF_RESULT, size_bytes=1000, steps=steps, inputs=inputs)


def succeeded(cluster: Cluster, name: str) -> bool:
    return status(cluster, name).get("state") == "Succeeded"


def test_it_waits_for_its_inputs_is_built_and_then_served(cluster: Cluster, operator: OperatorProcess) -> None:
    built(cluster, "merged", MERGE_STEP, {"quantize": {"scheme": "FP8"}})
    deployment = {"revisions": [{"name": "v1", "baseModel": "merged"}], "traffic": [{"revision": "v1", "weight": 100}]}
    cluster.apply("ModelDeployment", "m", deployment)
    missing = ("False", "BuildInputMissing")
    eventually(lambda: cluster.condition("BaseModel", "merged", "Built") == missing, "it says what is not there")
    adapter(cluster)
    job, task = begun(cluster, operator, "merged")
    assert [(i.name, i.digest, i.local_path) for i in task.inputs] == [
        ("base", ORIGINAL, "/inputs/0/base"),
        ("v1", OF_ADAPTER, "/inputs/1/v1"),
    ]

    def told() -> str:
        return str((cluster.status("ModelDeployment", "m").get("traffic") or [{}])[0].get("withheld"))

    waits = "NoReadyEndpoint (BuildRunning): BaseModel merged is being built"
    eventually(lambda: told().startswith(waits), lambda: f"who waits for it is told: {told()}", 30)
    assert cluster.child("apps/v1:deployments/merged-pool") is None
    report = BuildReport(step=1, phase="Building", percent=40, message="layer 12 of 30")
    where = f"/api/v1/namespaces/{cluster.namespace}/pods/{job['metadata']['name']}"
    annotations = {names.ANNOTATION_ADAPTERS: json.dumps(report.to_dict())}
    cluster.api.request("PATCH", where, body={"metadata": {"annotations": annotations}}, content_type=MERGE)
    far = "building 2/2 quantize: building 40 %: layer 12 of 30"
    eventually(lambda: cluster.status("BaseModel", "merged").get("progress") == far, "how far it is")
    ends(cluster, job, of(task))
    eventually(lambda: succeeded(cluster, "merged"), lambda: f"built: {status(cluster, 'merged')}")
    found = cluster.status("BaseModel", "merged")
    assert found["digest"] == OF_RESULT
    assert found["build"]["output"] == f"models:built/{task.key}"
    assert [s["kind"] for s in found["build"]["steps"]] == ["merge", "quantize"]
    pool = eventually(lambda: cluster.child("apps/v1:deployments/merged-pool"), "its pool")
    volumes = pool["spec"]["template"]["spec"]["volumes"]
    assert [v["persistentVolumeClaim"] for v in volumes if "persistentVolumeClaim" in v] == [
        {"claimName": "models", "readOnly": True}
    ]
    assert cluster.child("configmaps/merged-plan")["data"]["base-digest"] == OF_RESULT  # type: ignore[index]
    events = objects.listed(cluster.api, "events.k8s.io/v1", "Event", cluster.namespace)
    assert {"BuildStarted", "BuildSucceeded", "DigestPinned"} <= {e["reason"] for e in events}
    assert refusals(operator.said()) == []


def test_one_that_failed_is_tried_again_by_who_deletes_its_job(cluster: Cluster, operator: OperatorProcess) -> None:
    adapter(cluster)
    built(cluster, "merged", MERGE_STEP, retries=0)
    first, task = begun(cluster, operator, "merged")
    error = BuildResult(key=task.key, error="the base has no config.json", reason="FilesMissing")
    ends(cluster, first, error, code=2)
    stalled = ("True", "BuildFailed")
    eventually(lambda: cluster.condition("BaseModel", "merged", "Stalled") == stalled, "it needs somebody")
    found = status(cluster, "merged")
    assert (found["state"], found["attempt"], found["final"]) == ("Failed", 2, True)
    assert "the base has no config.json" in found["progress"]
    meta = first["metadata"]
    objects.delete(cluster.api, "batch/v1", "Job", cluster.namespace, meta["name"], uid=meta["uid"])
    operator.kill()
    operator.start()
    second, task = begun(cluster, operator, "merged", attempt=2)
    assert second["metadata"]["name"] != meta["name"]
    ends(cluster, second, of(task))
    eventually(lambda: succeeded(cluster, "merged"), "built")
    assert refusals(operator.said()) == []


def test_a_result_that_another_base_has_is_asked_for_under_the_same_key(
    cluster: Cluster, operator: OperatorProcess
) -> None:
    adapter(cluster)
    built(cluster, "one", MERGE_STEP)
    built(cluster, "other", MERGE_STEP)
    (_, one), (_, other) = begun(cluster, operator, "one"), begun(cluster, operator, "other")
    assert one.key == other.key


def test_the_operator_may_make_jobs_of_builds(server: ApiServer, cluster: Cluster) -> None:
    operator = server.api(token(cluster.api, NAMESPACE, "tuneyard-operator"))
    for job in BUILD_JOBS:
        wanted = {**job, "metadata": {**job["metadata"], "namespace": cluster.namespace}}
        path = objects.path("batch/v1", "Job", cluster.namespace)
        assert operator.request("POST", path, query={"dryRun": "All"}, body=wanted)


FP8: Object = {"quantize": {"scheme": "FP8", "baseModel": "base"}}
LATER: Object = {"quantize": {"scheme": "FP8"}}
TEXTS: Object = {"configMap": "texts"}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"output": {}, "steps": [FP8]}, "build.output must be exactly one of volume, s3, huggingFace; found 0"),
        ({"output": OUTPUT, "steps": []}, "should have at least 1 items"),
        ({"output": OUTPUT, "steps": [{}]}, "a build step must be exactly one of"),
        ({"output": OUTPUT, "steps": [LATER]}, "take baseModel as the first step"),
        ({"output": OUTPUT, "steps": [MERGE_STEP, FP8]}, "take baseModel as the first step, and only there"),
        ({"output": OUTPUT, "steps": [MERGE_STEP, MERGE_STEP]}, "can only be the first of build.steps"),
        ({"output": OUTPUT, "steps": [FP8, MERGE_STEP]}, "can only be the first of build.steps"),
        ({"output": OUTPUT, "steps": [FP8, {"gguf": {}}]}, "may hold one of quantize and gguf"),
        ({"output": OUTPUT, "steps": [{"quantize": {"scheme": "AWQ", "baseModel": "b"}}]}, "needs calibration"),
        (
            {"output": OUTPUT, "steps": [{"quantize": {"scheme": "FP8", "baseModel": "b", "groupSize": 64}}]},
            "quantize.groupSize is of AWQ and GPTQ",
        ),
        (
            {"output": OUTPUT, "steps": [MERGE_STEP, {"quantize": {"scheme": "INT8", "calibration": TEXTS}}]},
            "quantize.calibration is of AWQ and GPTQ: remove it",
        ),
        ({"output": OUTPUT, "steps": [FP8], "scratch": {"storageClass": "fast"}}, "takes build.scratch.size"),
        ({"output": {"volume": {"claimName": "m", "path": "a/../b"}}, "steps": [FP8]}, "may not hold '.' or '..'"),
    ],
)
def test_the_api_server_refuses_builds_that_make_no_sense(cluster: Cluster, build: Object, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        cluster.apply("BaseModel", "wrong", {"source": {"build": build}})
    assert words in str(refused.value.message)


@pytest.mark.parametrize(
    "changed",
    [
        {"build": {"output": OUTPUT, "steps": [{"gguf": {"baseModel": "base"}}]}},
        {"build": {"output": OUTPUT, "steps": [FP8, {"gguf": {}}]}},
        {"build": {"output": {"volume": {"claimName": "models"}}, "steps": [FP8]}},
        {"volume": {"name": "models", "path": "other"}},
    ],
)
def test_what_a_build_makes_is_immutable(cluster: Cluster, changed: Object) -> None:
    built(cluster, "merged", FP8)
    with pytest.raises(ApiError, match=r"immutable except serving, lineage\.evals and how a build's Jobs run"):
        cluster.apply("BaseModel", "merged", {"source": changed, "serving": {"resources": {}}})
    with pytest.raises(ApiError, match="immutable"):
        cluster.apply(
            "BaseModel", "base", {"source": {"build": {"output": OUTPUT, "steps": [FP8]}}, "digest": ORIGINAL}
        )


def test_how_the_jobs_of_a_build_run_may_change(cluster: Cluster) -> None:
    """What the messages of a failed attempt ask for: more memory, more room, more time."""
    ways: list[Object] = [
        {
            "resources": {"limits": {"memory": memory}},
            "scratch": {"size": memory},
            "timeout": timeout,
            "retries": retries,
            "nodeSelector": {"disk": timeout},
            "tolerations": [{"key": timeout, "operator": "Exists"}],
        }
        for memory, timeout, retries in (("8Gi", "1h", 1), ("16Gi", "2h", 2))
    ]
    for way in ({}, *ways, {}):
        built(cluster, "merged", FP8, **way)
        found = cluster.get("BaseModel", "merged")["spec"]["source"]["build"]
        assert found == {"output": OUTPUT, "steps": [FP8], **way}
