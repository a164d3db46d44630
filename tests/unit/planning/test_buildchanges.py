"""How the Jobs of a build run may change: it is the same build, and the next attempt runs so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import digest, stamp
from tests.unit.planning.test_builds import MERGE, built, job, key, planned, running, situation
from tuneyard.api.build import MAY_CHANGE, Build
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.buildtask import BuildResult
from tuneyard.api.modeldeployment import Revision
from tuneyard.planning.contents import hash_of
from tuneyard.planning.plan import Apply, Plan

MORE: dict[str, Any] = {
    "resources": {"limits": {"memory": "16Gi"}},
    "nodeSelector": {"disk": "large"},
    "tolerations": [{"key": "builds", "operator": "Exists"}],
    "timeout": "48h",
    "retries": 5,
    "scratch": {"size": "200Gi"},
}


def jobs(plan: Plan) -> list[dict[str, Any]]:
    return [a.object for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Job"]


def test_these_fields_are_all_that_may() -> None:
    assert {Build.model_fields[f].alias for f in MAY_CHANGE} == set(MORE)


def test_the_next_attempt_runs_so_under_the_same_key() -> None:
    failed = BuildStatus(state="Failed", key=key(MERGE), attempt=2, retry_at=stamp(0), progress="BuildFailed: no room")
    plan, status = planned(situation(failed, job(1, ended="no room"), **MORE))
    (made,) = jobs(plan)
    pod = made["spec"]["template"]["spec"]
    assert (status.key, status.attempt) == (key(MERGE), 2)
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "16Gi"}
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"disk": "large"}, MORE["tolerations"])
    assert made["spec"]["activeDeadlineSeconds"] == 48 * 3600


def test_the_job_that_runs_is_left_alone() -> None:
    before = running()
    plan, status = planned(situation(before, job(1, runs=True), **MORE))
    assert jobs(plan) == []
    assert (status.key, status.attempt, status.started_at) == (before.key, 1, before.started_at)


def test_retries_count_from_then_on() -> None:
    last = job(4, ended="no room")
    _, few = planned(situation(running(4), last))
    _, more = planned(situation(running(4), last, retries=5))
    assert (few.retry_at, more.retry_at) == (stamp(60), stamp(80 / 60))


def test_what_cannot_be_is_told_and_forgets_nothing() -> None:
    failed = BuildStatus(state="Failed", key=key(MERGE), attempt=3, retry_at=stamp(5), started_at=stamp(0))
    plan, status = planned(situation(failed, job(2, ended="x"), resources={"limits": {"memory": "much"}}))
    assert jobs(plan) == []
    assert status == failed
    _, mended = planned(situation(status, job(2, ended="x"), minutes=5, **MORE))
    assert (mended.state, mended.attempt) == ("Running", 3)


@pytest.mark.parametrize("field", MORE)
def test_verdicts_stay(field: str) -> None:
    """They are of what is served, and that is the same."""
    done = BuildStatus(state="Succeeded", key=key(MERGE))
    revision = Revision(name="v1", base_model="merged")
    before = hash_of(revision, built(status=done), None, None)
    assert hash_of(revision, built(status=done, **{field: MORE[field]}), None, None) == before
    other = {"gguf": {"baseModel": "base"}}
    assert hash_of(revision, built("merged", other, status=done), None, None) != before


def test_what_has_succeeded_is_not_built_again() -> None:
    result = BuildResult(key=key(MERGE), digest=digest("x"))
    _, done = planned(situation(running(), job(1, result=result)))
    plan, status = planned(situation(done, job(1, result=result), **MORE))
    assert jobs(plan) == []
    assert status == done
