"""Pods and children as the API server returns them, read into what plans look at."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.builders import digest
from tuneyard.api import names
from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import EngineKeys, Problem, child_observation, pod_observation

REPORT = {
    "version": 1,
    "address": "10.0.0.1:8080",
    "engine": "Ready",
    "baseModel": "base",
    "adapters": {"a": {"state": "Failed", "reason": "FromTheFuture", "message": "?"}},
    "unknown": True,
}


def pod(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    labels = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base"}
    chosen = {
        "name": "p",
        "uid": "u",
        "namespace": "team",
        "labels": labels,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return {"metadata": {**chosen, **metadata}, "spec": {"nodeName": "n1"}, "status": status or {}}


def init(name: str, **state: Any) -> dict[str, Any]:
    return {"initContainerStatuses": [{"name": name, **state}]}


def engine(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "engine", "image": "vllm:1", **state}]}


def test_a_pod_that_serves():
    found = pod_observation(
        pod(
            {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                **init(
                    "verify",
                    state={"terminated": {"exitCode": 0, "message": json.dumps({"ok": True, "digest": digest("b")})}},
                ),
            },
            annotations={names.ANNOTATION_ADAPTERS: json.dumps(REPORT)},
        )
    )
    assert (found.name, found.namespace, found.pool, found.base_model) == ("p", "team", "base", "base")
    assert (found.ready, found.deleted, found.node, found.problem) == (True, False, "n1", None)
    assert found.report is not None
    assert found.report.adapters["a"].reason == "FromTheFuture"
    assert found.base_report is not None
    assert found.base_report.digest == digest("b")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"engine": "Flying"}', json.dumps({**REPORT, "version": 2}), "null", "7"]
)
def test_a_report_that_cannot_be_read_counts_as_not_said(text):
    assert pod_observation(pod(annotations={names.ANNOTATION_ADAPTERS: text})).report is None


@pytest.mark.parametrize(
    ("metadata", "status"),
    [({"deletionTimestamp": "2026-01-01T00:00:00Z"}, {}), ({}, {"phase": "Failed"}), ({}, {"phase": "Succeeded"})],
)
def test_a_pod_that_leaves_or_has_ended_is_deleted(metadata, status):
    assert pod_observation(pod(status, **metadata)).deleted


PROBLEMS: list[tuple[dict[str, Any], Problem | None]] = [
    ({"conditions": [{"type": "PodScheduled", "status": "True"}]}, None),
    (
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: gpu"}
            ]
        },
        Problem(Reason.UNSCHEDULABLE, "0/3 nodes: gpu"),
    ),
    (
        engine(state={"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}),
        Problem(Reason.IMAGE_PULL_FAILED, "image vllm:1 of engine: Back-off pulling"),
    ),
    (
        init("agent", image="t:1", state={"waiting": {"reason": "ErrImageNeverPull"}}),
        Problem(Reason.IMAGE_PULL_FAILED, "image t:1 of agent: ErrImageNeverPull"),
    ),
    (
        engine(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "k" not found'}}),
        Problem(Reason.ENGINE_CRASHED, 'engine cannot start: CreateContainerConfigError: secret "k" not found'),
    ),
    (engine(state={"waiting": {"reason": "PodInitializing"}}), None),
    (engine(restartCount=1, state={"running": {}}, lastState={"terminated": {"exitCode": 1}}), None),
    (
        engine(
            restartCount=1,
            state={"waiting": {"reason": "CrashLoopBackOff"}},
            lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        ),
        Problem(Reason.ENGINE_CRASHED, "engine ended with exit code 137 (OOMKilled) after 1 restarts"),
    ),
    (
        engine(
            restartCount=2,
            state={"running": {}},
            lastState={"terminated": {"exitCode": 1, "reason": "Error", "message": "ValueError: heads\n"}},
        ),
        Problem(Reason.ENGINE_CRASHED, "engine ended with exit code 1 after 2 restarts: ValueError: heads"),
    ),
    (engine(restartCount=9, ready=True, state={"running": {}}, lastState={"terminated": {"exitCode": 1}}), None),
    (
        init("front", restartCount=3, state={"waiting": {"reason": "CrashLoopBackOff"}}),
        Problem(Reason.ENGINE_CRASHED, "front ended with exit code ? after 3 restarts"),
    ),
    (
        init(
            "verify",
            restartCount=3,
            state={"waiting": {"reason": "CrashLoopBackOff"}},
            lastState={
                "terminated": {
                    "exitCode": 1,
                    "message": json.dumps(
                        {"ok": False, "reason": "TensorParallelMismatch", "message": "2 does not divide 9"}
                    ),
                }
            },
        ),
        Problem(Reason.TENSOR_PARALLEL_MISMATCH, "2 does not divide 9"),
    ),
    (
        init("verify", state={"terminated": {"exitCode": 1, "message": '{"ok": false, "reason": "Odd"}'}}),
        Problem(Reason.ARTIFACT_UNREADABLE, Reason.ARTIFACT_UNREADABLE.doc),
    ),
    (
        init("verify", restartCount=2, state={"terminated": {"exitCode": 1, "message": "Traceback …"}}),
        Problem(Reason.ENGINE_CRASHED, "verify ended with exit code 1 after 2 restarts: Traceback …"),
    ),
]


@pytest.mark.parametrize(("status", "problem"), PROBLEMS)
def test_problems_are_taken_from_the_pod(status, problem):
    assert pod_observation(pod(status)).problem == problem


def test_a_verdict_on_the_base_outlives_the_restart_of_verify():
    verdict = {
        "terminated": {"exitCode": 1, "message": '{"ok": false, "reason": "DigestMismatch", "message": "other"}'}
    }
    found = pod_observation(pod(init("verify", restartCount=1, state={"running": {}}, lastState=verdict)))
    assert found.problem == Problem(Reason.DIGEST_MISMATCH, "other")


def test_a_bare_pod_is_read_too():
    found = pod_observation({"metadata": {"name": "p"}, "status": {"conditions": None, "containerStatuses": None}})
    assert (found.name, found.pool, found.problem, found.report) == ("p", "", None, None)


def test_a_deployment_is_read_with_its_counts_and_its_failure():
    found = child_observation(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "base-pool",
                "namespace": "team",
                "uid": "u",
                "resourceVersion": "7",
                "generation": 3,
                "labels": {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base", names.LABEL_DEPLOYMENT: "chat"},
                "annotations": {names.ANNOTATION_CONTENT: "h"},
            },
            "spec": {"replicas": 2},
            "status": {
                "observedGeneration": 2,
                "replicas": 3,
                "readyReplicas": 1,
                "updatedReplicas": 1,
                "conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}],
            },
        }
    )
    assert (found.pool, found.base_model, found.deployment) == ("base", "base", "chat")
    assert (found.content_hash, found.resource_version, found.observed) == ("h", "7", False)
    assert (found.replicas, found.ready_replicas, found.updated_replicas, found.old_replicas) == (2, 1, 1, 2)
    assert found.problem == Problem(Reason.UNSCHEDULABLE, "pods cannot be created: exceeded quota")


def test_keys_are_derived_and_never_printed():
    keys = EngineKeys(b"the master")
    key = keys.of("team", "pool")
    assert json.loads(json.dumps(key)) == names.engine_key(b"the master", "team", "pool")
    shown = f"{keys} {key} {key!r} {[key]} {key:>20} {'%s' % key}"  # noqa: UP031
    assert "master" not in shown.replace("EngineKeys", "")
    assert names.engine_key(b"the master", "team", "pool") not in shown
