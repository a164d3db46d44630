"""What Jobs of builds and their pods leave behind, and what that means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import digest
from tests.toyworld.building import ToyJob
from tuneyard.api import names
from tuneyard.api.buildtask import TERMINATION_LIMIT, BuildResult, StepRecord
from tuneyard.planning.buildobservations import BuildJob, BuildMark, looked_at


def seen(**pod: Any) -> BuildJob:
    """The Job of an attempt whose container is in this state."""
    mark = BuildMark(key="0" * 32, attempt=1)
    meta = {"name": "j", "annotations": {names.ANNOTATION_BUILD: mark.model_dump_json()}}
    job = ToyJob({"metadata": meta}, "uid", 1)
    state = pod.pop("state", {})
    told = {"conditions": pod.pop("conditions", []), "message": pod.pop("said", ""), "reason": pod.pop("why", "")}
    found = {
        "metadata": {"name": "p", "ownerReferences": [{"uid": "uid"}]},
        "status": {"containerStatuses": [{"name": "build", "state": state}] if state else [], **told},
    }
    over = [{"type": "Failed", "status": "True", **pod}] if pod else []
    (one,) = looked_at([{**job.seen(), "status": {"conditions": over}}], [found])
    return one


def ended(code: int, message: str, **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, **more}}


class TestWhatJobsLeftBehind:
    @pytest.mark.parametrize(
        ("job", "words"),
        [
            (seen(state=ended(1, "loading\nno room\n")), "no room (exit code 1)"),
            (seen(state=ended(137, "", reason="OOMKilled")), "more memory than build.resources allows"),
            (seen(state=ended(143, ""), reason="DeadlineExceeded"), "longer than build.timeout"),
            (seen(reason="BackoffLimitExceeded", message="it has reached its limit"), "reached its limit"),
            (seen(state=ended(0, "{}")), "{} (exit code 0)"),
            (seen(state=ended(137, "loading"), why="Evicted", said="Usage of work exceeds 80Gi"), "exceeds 80Gi"),
        ],
    )
    def test_why_it_is_over(self, job, words):
        assert job.result is None
        assert words in (job.ended or "")

    def test_a_pod_that_kubernetes_ended_is_no_end(self):
        evicted = [{"type": "DisruptionTarget", "status": "True"}]
        assert seen(state=ended(143, "stopped"), conditions=evicted).ended is None
        assert seen(state=ended(143, "stopped"), conditions=evicted, reason="X").ended is not None
        told = ended(1, BuildResult(key="0" * 32, error="stopped").shortened())
        assert seen(state=told, conditions=evicted).result is None
        assert seen(state=told).result is not None

    def test_why_kubernetes_ended_pods_is_told(self):
        told = ended(1, BuildResult(key="0" * 32, error="it was told to end").shortened())
        low = "The node was low on resource: ephemeral-storage."
        evicted = {"state": told, "conditions": [{"type": "DisruptionTarget", "status": "True"}], "said": low}
        assert seen(**evicted).disrupted == f"Kubernetes ended 1 of its pods: {low}"
        over = seen(**evicted, reason="BackoffLimitExceeded", message="it has reached its limit")
        assert (over.result, over.ended) == (None, f"Kubernetes ended 1 of its pods: {low}")
        late = seen(**evicted, reason="DeadlineExceeded")
        assert late.ended == f"it took longer than build.timeout; {late.disrupted}"
        drained = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "by x"}]
        assert seen(conditions=drained).disrupted == "Kubernetes ended 1 of its pods: by x"
        assert seen(state=told).disrupted is None

    @pytest.mark.parametrize("condition", ["Failed", "FailureTarget"])
    def test_one_that_was_told_to_end_for_its_time_says_so(self, condition: str):
        told = ended(1, BuildResult(key="0" * 32, error="it was told to end").shortened())
        late = seen(state=told, type=condition, reason="DeadlineExceeded")
        assert (late.result, late.ended) == (None, "it took longer than build.timeout")
        assert seen(type="FailureTarget", reason="DeadlineExceeded").ended is None, "its pod has not ended yet"
        done = ended(0, BuildResult(key="0" * 32, digest=digest("x")).shortened())
        assert seen(state=done, type=condition, reason="DeadlineExceeded").result is not None, "it was just in time"

    def test_an_evicted_pod_is_told_of_beside_the_one_that_runs(self):
        mark = BuildMark(key="0" * 32, attempt=1)
        meta = {"name": "j", "annotations": {names.ANNOTATION_BUILD: mark.model_dump_json()}}
        stored = ToyJob({"metadata": meta}, "uid", 1, step=1, evicted=2)
        low = {"conditions": [{"type": "DisruptionTarget", "status": "True"}], "message": "low on memory"}
        evicted = [
            {"metadata": {**stored.pod()["metadata"], "creationTimestamp": f"2026-01-01T11:00:0{n}Z"}, "status": low}
            for n in range(2)
        ]
        (one,) = looked_at([stored.seen()], [stored.pod(), *evicted])
        assert (one.runs, one.ended) == (True, None)
        assert one.disrupted == "Kubernetes ended 2 of its pods: low on memory"
        failed = replace(stored, step=2, code=1, message="no room")
        (one,) = looked_at([failed.seen()], [failed.pod(), *evicted])
        assert one.ended == "no room (exit code 1)", "its own failure counts"
        spent = {
            **failed.seen(),
            "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded"}]},
        }
        (one,) = looked_at([spent], [])
        assert one.ended is not None
        assert "ended its pods too often" in one.ended

    def test_a_result_counts_under_its_own_key_only(self):
        def said(key: str) -> BuildJob:
            return seen(state=ended(0, BuildResult(key=key, digest=digest("x")).shortened()))

        assert said("0" * 32).result == BuildResult(key="0" * 32, digest=digest("x"))
        assert said("1" * 32).result is None

    def test_what_its_pod_waits_for(self):
        unscheduled = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
        assert seen(conditions=unscheduled).waits_for == "Unschedulable: 0/3 nodes"
        assert (
            seen(state={"waiting": {"reason": "ImagePullBackOff", "message": "no"}}).waits_for == "ImagePullBackOff: no"
        )
        assert seen(state={"waiting": {"reason": "ContainerCreating"}}).waits_for is None

    def test_a_job_without_a_pod_is_told_from_one_with(self):
        assert seen(conditions=[]).has_pod
        meta = {"name": "j", "creationTimestamp": "2026-01-01T12:00:00Z"}
        job = ToyJob({"metadata": meta}, "uid", 1)
        other = {"metadata": {"name": "p", "ownerReferences": [{"uid": "another"}]}}
        (one,) = looked_at([job.seen()], [other])
        assert (one.has_pod, one.created) == (False, "2026-01-01T12:00:00Z")

    def test_a_result_that_is_too_long_loses_what_matters_least(self):
        step = StepRecord(kind="merge", key="0" * 32, checks={f"c{n}": "x" * 250 for n in range(16)})
        whole = BuildResult(key="0" * 32, digest=digest("x"), steps=[step] * 4, error="é" * 1000)
        text = whole.shortened()
        assert len(text.encode()) <= TERMINATION_LIMIT
        read = BuildResult.model_validate_json(text)
        assert (read.digest, read.error) == (whole.digest, whole.error)
