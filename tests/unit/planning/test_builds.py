"""Builds: what names a result, which inputs are known, what Jobs left behind means, and what is done then."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.builders import BASE, SETTINGS, VOLUME, Situation, adapter, at, base_model, digest, pinned, stamp
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource, BaseModelStatus
from tuneyard.api.build import BaseSource, Build
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.buildtask import BuildReport, BuildResult
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ArtifactVolume, HostPath, ServingSpec
from tuneyard.api.sources import HuggingFaceSource, ImageSource, S3Source, Source
from tuneyard.planning import servingchecks
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.buildchecks import violation
from tuneyard.planning.buildinputs import Surroundings, adapter_of_another_base, credentials_of_build, found_inputs
from tuneyard.planning.buildkeys import served_steps, task_steps
from tuneyard.planning.buildobservations import BuildJob, BuildMark, BuildObservation
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply, Delete, Plan
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.statusseries import BUILD, BUILD_ATTEMPTS, status_series

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
MERGE: dict[str, Any] = {"merge": {"baseModel": BASE, "adapter": "v1"}}
OUTPUT: dict[str, Any] = {"volume": {"claimName": "models", "path": "built"}}


def build(*steps: dict[str, Any], **more: Any) -> Build:
    return Build.from_dict({"output": OUTPUT, "steps": list(steps or [MERGE]), **more})


def built(
    name: str = "merged", *steps: dict[str, Any], status: BuildStatus | None = None, **more: Any
) -> BaseModelResource:
    source = BaseSource(build=build(*steps, **more))
    return base_model(name, source=source, serving=ServingSpec(), status=BaseModelStatus(build=status))


def around(*bases: BaseModelResource, adapters: tuple[Any, ...] = (), **texts: str) -> Surroundings:
    known = {b.metadata.name: b for b in bases}
    found = {a.metadata.name: a for a in adapters}
    return Surroundings(known, found, {("texts", key): text for key, text in texts.items()}, SETTINGS)


def problem(*steps: dict[str, Any], there: Surroundings) -> tuple[Reason, str]:
    found = found_inputs(built("merged", *steps), build(*steps), there)
    assert isinstance(found, Problem)
    return found.reason, found.message


KNOWN = around(base_model(digest=digest(BASE)), adapters=(pinned("v1"),))


def key(*steps: dict[str, Any], there: Surroundings = KNOWN) -> str:
    found = found_inputs(built("merged", *steps), build(*steps), there)
    assert not isinstance(found, Problem), found
    return task_steps(build(*steps).steps, found)[-1].key


class TestKeys:
    def test_names_do_not_count_contents_do(self):
        renamed = {"merge": {"baseModel": "b", "adapter": "a"}}
        same = base_model("b", digest=digest(BASE))
        alike = adapter("a", base="b", digest=digest("v1"))
        assert key(renamed, there=around(same, adapters=(alike,))) == key(MERGE)
        other = adapter("a", base="b", digest=digest("v2"))
        assert key(renamed, there=around(same, adapters=(other,))) != key(MERGE)

    def test_chains_share_what_they_begin_with(self):
        found = found_inputs(built(), build(), KNOWN)
        assert not isinstance(found, Problem)
        chain = build(MERGE, {"quantize": {"scheme": "FP8"}})
        assert task_steps(chain.steps, found)[0].key == key(MERGE) != task_steps(chain.steps, found)[1].key

    def test_groups_are_made_for_the_parts_that_the_pool_has(self):
        def steps(tensor: int | None, *, expert: bool | None = None, **quantize: Any) -> list[Any]:
            base = base_model("small", serving=ServingSpec(tensor_parallel_size=tensor, expert_parallel=expert))
            calibration = {"configMap": "texts"}
            given = {"quantize": {"baseModel": BASE, "scheme": "AWQ", "calibration": calibration, **quantize}}
            return [s.quantize and s.quantize.tensor_parallel_size for s in served_steps(base, build(given))]

        assert steps(4) == [4]
        assert steps(4, tensorParallelSize=8) == [8]
        assert steps(4, expert=True) == [None], "experts are not cut"
        assert steps(None) == steps(1) == [None], "what asks for nothing new keeps its key"
        assert steps(4, scheme="FP8", calibration=None) == [None], "no groups, no parts"

    def test_what_is_said_and_what_is_the_default_are_the_same(self):
        plain, said = {"gguf": {"baseModel": BASE}}, {"gguf": {"baseModel": BASE, "type": "Q4_K_M"}}
        assert key(plain) == key(said) != key({"gguf": {"baseModel": BASE, "type": "Q8_0"}})

    def test_calibration_counts_by_its_text(self):
        def awq(name: str) -> dict[str, Any]:
            data = {"configMap": "texts", "key": name}
            return {"quantize": {"scheme": "AWQ", "baseModel": BASE, "calibration": data}}

        there = around(base_model(digest=digest(BASE)), one=digest("text"), same=digest("text"), other=digest("more"))
        assert key(awq("one"), there=there) == key(awq("same"), there=there) != key(awq("other"), there=there)


class TestInputs:
    def test_what_is_missing_or_unknown_is_said(self):
        unread = base_model()
        assert problem(MERGE, there=around())[0] is Reason.BUILD_INPUT_MISSING
        assert "LoRAAdapter v1 does not exist" in problem(MERGE, there=around(base_model(digest=digest(BASE))))[1]
        assert "has no digest yet" in problem(MERGE, there=around(unread, adapters=(pinned("v1"),)))[1]
        texts = {"quantize": {"scheme": "GPTQ", "baseModel": BASE, "calibration": {"configMap": "c"}}}
        assert "has no key prompts.jsonl" in problem(texts, there=KNOWN)[1]

    def test_calibration_of_another_digest_is_refused(self):
        there = around(base_model(digest=digest(BASE)), one=digest("text"))
        data = {"configMap": "texts", "key": "one"}

        def awq(**more: str) -> dict[str, Any]:
            return {"quantize": {"scheme": "AWQ", "baseModel": BASE, "calibration": {**data, **more}}}

        assert key(awq(digest=digest("text")), there=there) == key(awq(), there=there)
        reason, words = problem(awq(digest=digest("another")), there=there)
        assert reason is Reason.DIGEST_MISMATCH
        assert digest("text") in words
        assert digest("another") in words

    @pytest.mark.parametrize(
        ("source", "path"),
        [
            (Source(hugging_face=HuggingFaceSource(repo="org/m", revision=COMMIT)), None),
            (Source(image=ImageSource(reference="r/m@sha256:" + "0" * 64, path="model")), "/inputs/0/model"),
        ],
    )
    def test_a_source_that_cannot_move_needs_no_digest(self, source, path):
        step = {"quantize": {"scheme": "FP8", "baseModel": BASE}}
        found = found_inputs(built("x", step), build(step), around(base_model(source=source)))
        assert not isinstance(found, Problem)
        (one,) = found
        assert (one.told.digest, one.told.local_path) == (None, path)

    def test_a_branch_or_a_prefix_does(self):
        step = {"quantize": {"scheme": "FP8", "baseModel": BASE}}
        moving = Source(hugging_face=HuggingFaceSource(repo="org/m", revision="main"))
        for source in (moving, Source(s3=S3Source(uri="s3://models/x/"))):
            assert "has no digest yet" in problem(step, there=around(base_model(source=source)))[1]

    def test_one_that_is_built_is_waited_for_and_then_mounted(self):
        step = {"quantize": {"scheme": "FP8", "baseModel": "merged"}}
        waited = problem(step, there=around(built()))
        assert waited == (Reason.BUILD_PENDING, "waits for the build of BaseModel merged")
        done = built(status=BuildStatus(state="Succeeded", key="0" * 32))
        done = done.model_copy(update={"status": done.status.model_copy(update={"digest": digest("m")})})
        found = found_inputs(built("small", step), build(step), around(done))
        assert not isinstance(found, Problem)
        assert found[0].told.local_path == f"/inputs/0/built/{'0' * 32}"
        assert found[0].volume == {"persistentVolumeClaim": {"claimName": "models", "readOnly": True}}

    @pytest.mark.parametrize(
        ("made", "how"), [({"quantize": {"scheme": "FP8"}}, "quantised"), ({"gguf": {}}, "as GGUF")]
    )
    @pytest.mark.parametrize(
        "step",
        [
            {"merge": {"baseModel": "q", "adapter": "v1"}},
            {
                "mergekit": {
                    "config": "{}",
                    "models": [{"name": "a", "baseModel": BASE}, {"name": "b", "baseModel": "q"}],
                }
            },
            {"quantize": {"scheme": "FP8", "baseModel": "q"}},
            {"gguf": {"baseModel": "q"}},
        ],
    )
    def test_what_is_built_in_few_bits_is_no_input(self, step, made, how):
        """Said before its build: the tools refuse it hours later."""
        lean = built("q", MERGE, made)
        there = around(base_model(digest=digest(BASE)), lean, adapters=(pinned("v1", base="q"),))
        words = f"BaseModel q is built {how}, which no step can work on: name what it is made of"
        assert problem(step, there=there) == (Reason.INVALID_SPEC, words)

    def test_who_is_made_of_himself_is_told_so(self):
        one = built("one", {"quantize": {"scheme": "FP8", "baseModel": "two"}})
        two = built("two", {"quantize": {"scheme": "FP8", "baseModel": "one"}})
        found = found_inputs(one, one.spec.source.build or build(), around(one, two))
        assert found == Problem(Reason.INVALID_SPEC, "the build is made of itself: one → two → one")

    def test_a_folder_of_the_node_needs_the_charts_leave(self):
        hidden = ArtifactVolume(name="models", host_path=HostPath(path="/etc"))
        base = base_model(digest=digest(BASE), serving=ServingSpec(artifact_volumes=[hidden]))
        assert problem(MERGE, there=around(base, adapters=(pinned("v1"),)))[0] is Reason.HOST_PATH_NOT_ALLOWED
        bare = base_model(digest=digest(BASE), serving=ServingSpec())
        assert problem(MERGE, there=around(bare, adapters=(pinned("v1"),)))[0] is Reason.VOLUME_NOT_DECLARED

    def test_an_adapter_of_another_base_is_refused(self):
        other = pinned("v1", base="other")
        found = adapter_of_another_base(build(MERGE), around(base_model(), adapters=(other,)))
        assert found is not None
        assert found.reason is Reason.BASE_MODEL_MISMATCH

    def test_secrets_of_its_output_and_its_data_may_be_read(self):
        secret = {"credentials": {"name": "writer"}}
        data = {"s3": {"uri": "s3://texts/", "credentials": {"name": "texts"}}, "digest": digest("t")}
        steps = [{"quantize": {"scheme": "AWQ", "baseModel": BASE, "calibration": data}}]
        made = Build.from_dict({"output": {"s3": {"uri": "s3://models/", **secret}}, "steps": steps})
        assert list(credentials_of_build(made)) == ["writer", "texts"]


def situation(before: BuildStatus | None, *jobs: BuildJob, minutes: float = 0, **more: Any) -> Situation:
    base = built(status=before, **more)
    known = base_model(digest=digest(BASE), serving=ServingSpec(artifact_volumes=[VOLUME]))
    observed = BuildObservation(jobs=jobs, adapters=(pinned("v1"),))
    return Situation(bases=(known, base), builds={"merged": observed}, now=at(minutes))


def planned(found: Situation) -> tuple[Plan, BuildStatus]:
    plan = plan_basemodel(found.base_model("merged"))
    assert isinstance(plan.status, BaseModelStatus)
    assert plan.status.build is not None
    return plan, plan.status.build


def job(attempt: int = 1, **fields: Any) -> BuildJob:
    name = names.build_job("merged", "uid-merged", key(MERGE), attempt)
    return BuildJob(name, f"uid-{attempt}", "1", BuildMark(key=key(MERGE), attempt=attempt), **fields)


def running(attempt: int = 1, **fields: Any) -> BuildStatus:
    return BuildStatus(state="Running", key=key(MERGE), attempt=attempt, started_at=stamp(0), **fields)


class TestAttempts:
    def test_the_task_comes_before_the_job(self):
        plan, status = planned(situation(None))
        made = [a.object["kind"] for a in plan.actions if isinstance(a, Apply)][-2:]
        assert made == ["ConfigMap", "Job"]
        assert (status.state, status.attempt, status.job) == (
            "Running",
            1,
            names.build_job("merged", "uid-merged", key(MERGE), 1),
        )
        assert [e.reason for e in plan.events] == [Reason.BUILD_STARTED]

    @pytest.mark.parametrize(
        ("attempt", "final", "seconds", "stalled"),
        [
            (1, False, 10, False),
            (2, False, 20, False),
            (3, False, 40, False),
            (4, False, 3600, True),
            (1, True, 86400, True),
        ],
    )
    def test_when_it_is_tried_again(self, attempt, final, seconds, stalled):
        failed = job(attempt, ended="no room (exit code 1)", final=final)
        plan, status = planned(situation(running(attempt), failed))
        assert (status.state, status.attempt, status.retry_at) == ("Failed", attempt + 1, stamp(seconds / 60))
        assert status.progress == f"BuildFailed: attempt {attempt}: no room (exit code 1)"
        assert isinstance(plan.status, BaseModelStatus)
        assert ("Stalled" in {c.type for c in plan.status.conditions}) == stalled
        assert [e.reason for e in plan.events] == [Reason.BUILD_FAILED], "told once, by whom ever"
        early, same = planned(situation(status, failed))
        assert [a for a in early.actions if isinstance(a, Apply) and a.object["kind"] == "Job"] == []
        assert same == status
        late, next_one = planned(situation(status, failed, minutes=seconds / 60))
        assert next_one.job == names.build_job("merged", "uid-merged", key(MERGE), attempt + 1)
        hurried, _ = planned(situation(status))
        assert any(isinstance(a, Apply) and a.object["kind"] == "Job" for a in hurried.actions), "its Job was deleted"
        assert late.events[-1].reason is Reason.BUILD_STARTED

    def test_a_pod_that_kubernetes_ends_goes_on_three_times(self):
        plan, _ = planned(situation(None, scratch={"size": "80Gi"}))
        (made,) = (a.object for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Job")
        assert made["spec"]["backoffLimit"] == 2, "the third is one too many"
        counted, own = made["spec"]["podFailurePolicy"]["rules"]
        assert (counted["action"], own["action"]) == ("Count", "FailJob"), "what fails by itself is not run again here"
        low = "Kubernetes ended 2 of its pods: The node was low on resource: memory"
        plan, status = planned(situation(running(), job(disrupted=low)))
        assert (status.state, status.progress) == ("Running", f"its pod starts; {low}")
        report = BuildReport(step=0, phase="Building", percent=40)
        _, status = planned(situation(running(), job(disrupted=low, runs=True, report=report)))
        assert status.progress == f"building 40 %; {low}"
        _, status = planned(situation(running(), job(disrupted=low, waits_for="Unschedulable: 0/3 nodes")))
        assert status.progress == f"its pod waits: Unschedulable: 0/3 nodes; {low}"
        _, status = planned(situation(running(), job(disrupted=low, ended=low)))
        assert (status.state, status.attempt, status.progress) == ("Failed", 2, f"BuildFailed: attempt 1: {low}")

    @pytest.mark.parametrize(
        ("more", "requests"),
        [
            ({}, {"cpu": "1", "memory": "4Gi"}),
            ({"scratch": {"size": "80Gi"}}, {"cpu": "1", "memory": "4Gi", "ephemeral-storage": "80Gi"}),
            ({"scratch": {"size": "80Gi", "storageClass": "fast"}}, {"cpu": "1", "memory": "4Gi"}),
            ({"scratch": {"size": "80Gi"}, "resources": {"limits": {"memory": "8Gi"}}}, {"ephemeral-storage": "80Gi"}),
            ({"scratch": {"size": "80Gi"}, "resources": {"limits": {"ephemeral-storage": "90Gi"}}}, None),
        ],
    )
    def test_room_on_the_nodes_disk_is_asked_for(self, more, requests):
        plan, _ = planned(situation(None, **more))
        (made,) = (a.object for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Job")
        (container,) = made["spec"]["template"]["spec"]["containers"]
        assert container["resources"].get("requests") == requests

    def test_a_lost_status_goes_on_with_the_last_attempt(self):
        _, status = planned(situation(None, job(1, ended="x"), job(2)))
        assert (status.state, status.attempt) == ("Running", 2)

    def test_jobs_of_other_builds_and_older_attempts_go(self):
        other = BuildJob("other", "uid-other", "1", BuildMark(key="f" * 32, attempt=1))
        plan, _ = planned(situation(running(3), job(1), job(2), job(3), other))
        assert {a.name for a in plan.actions if isinstance(a, Delete)} == {job(1).name, "other"}

    def test_a_volume_is_held_for_one_attempt_only(self):
        def deleted(**scratch: Any) -> set[str]:
            plan, _ = planned(situation(running(2), job(1, ended="x"), job(2), scratch={"size": "20Gi", **scratch}))
            return {a.name for a in plan.actions if isinstance(a, Delete)}

        assert deleted(storageClass="fast") == {job(1).name}
        assert deleted() == set(), "on the node's disk nothing is held, and its log can be read"

    def test_one_that_is_deleted_and_made_again_takes_no_old_job(self):
        """The API server may still have that one: an apply of its name would make it the new one's, result and all."""

        def made(uid: str) -> str:
            found = situation(None)
            known, base = found.bases
            base = base.model_copy(update={"metadata": base.metadata.model_copy(update={"uid": uid})})
            plan, _ = planned(replace(found, bases=(known, base)))
            (name,) = (
                a.object["metadata"]["name"] for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Job"
            )
            return str(name)

        assert made("uid-1") != made("uid-2")

    def test_a_job_that_is_going_is_waited_for(self):
        plan, status = planned(situation(running(), job(1, deleted=True)))
        assert not [a for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Job"]
        assert status.progress == "its Job was deleted; the attempt starts anew"

    @pytest.mark.parametrize(
        ("seconds", "has_pod", "pending"),
        [(59, False, False), (60, False, True), (86000, False, True), (60, True, False), (299, True, False)],
    )
    def test_a_job_whose_pod_cannot_be_made_says_where_to_look(self, seconds, has_pod, pending):
        """Its controller writes nothing of it but events."""
        refused = job(1, created=stamp(0), has_pod=has_pod)
        plan, status = planned(situation(running(), refused, minutes=seconds / 60))
        assert isinstance(plan.status, BaseModelStatus)
        (built_,) = (c for c in plan.status.conditions if c.type == "Built")
        wanted = f"it has no pod: `kubectl describe job {refused.name}` says why (a quota"
        assert (status.progress or "").startswith(wanted if pending else "its pod starts")
        assert built_.reason == ("BuildPending" if pending else "BuildRunning")
        assert (wanted in (built_.message or "")) == pending

    @pytest.mark.parametrize(("runs", "pending"), [(False, True), (True, False)])
    def test_a_pod_whose_container_does_not_come_says_where_to_look(self, runs: bool, pending: bool):
        stuck = job(1, created=stamp(0), has_pod=True, runs=runs)
        _, status = planned(situation(running(), stuck, minutes=5))
        wanted = f"its pod has not started: `kubectl describe pod -l job-name={stuck.name}` says why (a volume"
        assert (status.progress or "").startswith(wanted) == pending

    def test_a_base_that_says_its_digest_takes_no_other(self):
        result = BuildResult(key=key(MERGE), digest=digest("other"))
        found = situation(running(), job(1, result=result))
        known, base = found.bases
        base = base.model_copy(update={"spec": base.spec.model_copy(update={"digest": digest("wanted")})})
        _, status = planned(replace(found, bases=(known, base)))
        assert (status.state, status.final) == ("Failed", True)
        assert "DigestMismatch" in (status.progress or "")

    def test_a_hub_has_to_say_the_commit(self):
        hub = {"huggingFace": {"repo": "org/m", "credentials": {"name": "s"}}}
        result = BuildResult(key=key(MERGE), digest=digest("x"))
        for commit, state in ((None, "Failed"), (COMMIT, "Succeeded")):
            said = job(1, result=result.model_copy(update={"commit": commit}))
            _, status = planned(situation(running(), said, output=hub))
            assert (status.state, status.commit) == (state, commit)

    def test_what_succeeded_is_looked_at_no_more(self):
        done = BuildStatus(state="Succeeded", key=key(MERGE))
        plan, status = planned(replace(situation(done), builds={}))
        assert (status, plan.requeue_after) == (done, None)


def test_nothing_serves_it_before_and_no_engine_what_it_does_not_read():
    waiting = built(status=BuildStatus(state="Waiting", progress="for x"))
    found = servingchecks.violation(waiting, resolved_serving(), SETTINGS)
    assert found == Problem(Reason.BUILD_PENDING, "the build of BaseModel merged waits: for x")
    gguf = built("g", {"gguf": {"baseModel": BASE}}, status=BuildStatus(state="Succeeded", key="0" * 32))
    found = servingchecks.violation(gguf, resolved_serving(), SETTINGS)
    assert found is not None
    assert "which vllm does not read" in found.message
    # told before hours have gone into it
    early = servingchecks.violation(built("g", {"gguf": {"baseModel": BASE}}), resolved_serving(), SETTINGS)
    assert early == found
    llama = replace(resolved_serving(), engine="llamaCpp")
    assert servingchecks.violation(gguf, llama, SETTINGS) is None
    plain = built("p", status=BuildStatus(state="Succeeded", key="0" * 32))
    found = servingchecks.violation(plain, llama, SETTINGS)
    assert found is not None
    assert "create one with a gguf step" in found.message


@pytest.mark.parametrize(
    "more",
    [
        {"resources": {"limits": {"memory": "much"}}},
        {"scratch": {"size": "much"}},
        {"nodeSelector": {"disk": "not a label"}},
    ],
)
def test_what_the_api_server_would_refuse_whole_is_said_by_its_field(more):
    found = violation(build(**more))
    assert found is not None
    assert found.reason is Reason.INVALID_SPEC
    assert f"source.build.{next(iter(more))}" in found.message


def test_series():
    failed = built(status=BuildStatus(state="Failed", key="0" * 32, attempt=3))
    found = status_series([failed], [], [])
    assert found[BUILD] == [(("team", "merged", "Failed"), 1.0)]
    assert found[BUILD_ATTEMPTS] == [(("team", "merged"), 2.0)]
