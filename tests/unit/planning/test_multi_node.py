"""Pools whose replicas span nodes: groups of pods in place of single ones, from the first to the last."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import (
    BASE,
    NAMESPACE,
    SETTINGS,
    VOLUME,
    Situation,
    at,
    base_model,
    child_of,
    deployment,
    pinned,
    pod,
    revision,
)
from tests.unit.planning.basemodels import applied_to, conditions, kinds
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelStatus
from tuneyard.api.build import BaseSource
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ArtifactCache, CacheClaim, ServingSpec
from tuneyard.api.sources import HuggingFaceSource
from tuneyard.planning.basemodel import plan_basemodel
from tuneyard.planning.children import pool_companions, pool_workload, template_hash, template_mark
from tuneyard.planning.grouprolling import Rolling, next_rolling
from tuneyard.planning.observations import PodObservation, pod_observation
from tuneyard.planning.plan import Action, Apply, Delete, Plan
from tuneyard.planning.pools import Pool, placement, pools_of
from tuneyard.planning.resolvedserving import GPU, resolved_serving
from tuneyard.planning.servingchecks import violation

GROUPS = ("LeaderWorkerSet", f"{BASE}-group")
SINGLE = ("Deployment", f"{BASE}-pool")
CLAIM = ArtifactCache(persistent_volume_claim=CacheClaim(claim_name="shared"))
WIDE: dict[str, Any] = {
    "artifact_volumes": [VOLUME],
    "tensor_parallel_size": 4,
    "pipeline_parallel_size": 2,
    "nodes_per_replica": 2,
}


def spanning(**serving: Any) -> Situation:
    """One base over two nodes, and a deployment of it alone."""
    base = base_model(serving=ServingSpec(**{**WIDE, **serving}))
    return Situation(bases=(base,), deployments=(deployment(revisions=[revision("v0")]),), has_leader_worker_sets=True)


def narrow(situation: Situation, **serving: Any) -> Situation:
    """The same base, wanted in another way."""
    spec = ServingSpec(**{**WIDE, **serving})
    base = situation.bases[0]
    return replace(situation, bases=(base.model_copy(update={"spec": base.spec.model_copy(update={"serving": spec})}),))


def the_pool(situation: Situation) -> Pool:
    return pools_of(situation.bases[0], situation.deployments)[0]


def templates(situation: Situation) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leader's and the workers'."""
    made = pool_workload(the_pool(situation), situation.bases[0], SETTINGS)
    assert (made["kind"], made["metadata"]["name"]) == GROUPS
    both = made["spec"]["leaderWorkerTemplate"]
    return both["leaderTemplate"], both["workerTemplate"]


def engine(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    return dict(found)


def leader(situation: Situation, name: str = f"{BASE}-group-0", **fields: Any) -> PodObservation:
    """A pod of what is wanted now."""
    mark = template_hash(the_pool(situation), situation.bases[0], SETTINGS)
    return pod(name, **{"wanted_as": mark, **fields})


def deleted(plan: Plan) -> list[tuple[str, str]]:
    return [(a.kind, a.name) for a in plan.actions if isinstance(a, Delete)]


def reason(situation: Situation) -> str:
    return conditions(plan_basemodel(situation.base_model()))["Ready"][1]


def test_all_ranks_run_the_same_arguments_but_for_their_place() -> None:
    first, others = templates(spanning())
    common = [
        *("--nnodes", "2", "--node-rank", "$(LWS_WORKER_INDEX)", "--master-addr", "$(LWS_LEADER_ADDRESS)"),
        *("--master-port", "29501", "--distributed-executor-backend", "mp", "--distributed-timeout-seconds", "1800"),
    ]
    assert engine(first)["args"][-len(common) :] == common
    assert engine(others)["args"] == [*engine(first)["args"], "--headless"]
    assert engine(first)["command"][-3:] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert engine(others)["command"][-3:-1] == ["python3", "-Ic"]
    assert '"vllm.entrypoints.cli.main", "serve"' in engine(others)["command"][-1]
    assert engine(first)["resources"] == engine(others)["resources"] == {"limits": {GPU: "4"}}


def test_scripts_of_workers_can_be_read() -> None:
    worker = engine(templates(spanning())[1])
    for script in (worker["command"][2], worker["command"][-1]):
        ast.parse(script)
    ast.parse(worker["lifecycle"]["preStop"]["exec"]["command"][2])


def test_others_know_leaders_only() -> None:
    first, others = templates(spanning())
    assert first["metadata"]["labels"][names.LABEL_POOL] == BASE
    assert names.LABEL_POOL not in others["metadata"]["labels"]
    assert others["metadata"]["labels"][names.LABEL_WORKER_OF] == BASE
    assert [c["name"] for c in others["spec"]["initContainers"]] == ["verify"]
    given = {e["name"] for e in engine(others)["env"]}
    assert "VLLM_API_KEY" not in given, "nobody asks it anything"
    assert {"VLLM_HOST_IP", "VLLM_ENGINE_READY_TIMEOUT_S"} <= given
    marks = {t["metadata"]["annotations"][names.ANNOTATION_TEMPLATE] for t in (first, others)}
    assert len(marks) == 1, "a change of one is a change of the group"


def test_a_change_of_workers_alone_is_one_of_leaders_too() -> None:
    seen = {template_mark(pool_workload(the_pool(s), s.bases[0], SETTINGS)) for s in (spanning(), spanning())}
    assert len(seen) == 1
    longer = spanning(drain_timeout="20m")
    assert template_mark(pool_workload(the_pool(longer), longer.bases[0], SETTINGS)) not in seen


def groups(situation: Situation, *leaders: str) -> Rolling:
    """What is due with leaders 0, 1, ... that are "new" or "old", and with "-" not ready, or are "gone"."""
    pool, mark = the_pool(situation), "wanted"
    found = [
        pod(f"{BASE}-group-{n}", wanted_as=mark if said.startswith("new") else "before", ready=not said.endswith("-"))
        for n, said in enumerate(leaders)
        if said != "gone"
    ]
    return next_rolling(pool, mark, found)


@pytest.mark.parametrize(
    ("leaders", "due"),
    [
        ((), Rolling(2)),
        (("new", "new"), Rolling(2)),
        (("old", "old"), Rolling(3, 2)),
        (("old", "old", "new-"), Rolling(3, 2)),
        (("old", "old", "new"), Rolling(3)),
        (("old", "gone", "new"), Rolling(3)),
        (("old", "new-", "new"), Rolling(3)),
        (("new-", "new", "new"), Rolling(3)),
        (("gone", "new", "new"), Rolling(3)),
        (("new", "new", "new"), Rolling(2)),
        (("old-", "old-"), Rolling(2)),
        (("new-", "new", "new-"), Rolling(2)),
        (("old", "old", "old"), Rolling(3, 2)),
    ],
)
def test_one_group_more_serves_while_others_are_replaced(leaders: tuple[str, ...], due: Rolling) -> None:
    assert groups(spanning(replicas=2), *leaders) == due
    assert groups(spanning(replicas=2, update="Replace"), *leaders) == Rolling(2)


def test_groups_are_recreated_whole() -> None:
    situation = spanning(replicas=3, exclusive_topology_key="rack")
    made = pool_workload(the_pool(situation), situation.bases[0], SETTINGS)
    assert made["spec"]["replicas"] == 3
    assert made["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert made["spec"]["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    rolling = made["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
    assert rolling == {"partition": 0, "maxSurge": 0, "maxUnavailable": 1}
    assert made["metadata"]["annotations"]["leaderworkerset.sigs.k8s.io/exclusive-topology"] == "rack"


def test_one_node_stays_as_it_was() -> None:
    situation = spanning(nodes_per_replica=1)
    made = pool_workload(the_pool(situation), situation.bases[0], SETTINGS)
    assert made["kind"] == "Deployment"
    assert "--nnodes" not in engine(made["spec"]["template"])["args"]
    assert resolved_serving(ServingSpec(tensor_parallel_size=4)).resources.limits == {GPU: 4}


def test_a_budget_and_a_policy_cover_whole_groups() -> None:
    situation = spanning()
    made = pool_companions(the_pool(situation), situation.bases[0], situation.base_model().keys, SETTINGS, at(0))
    group = {"matchLabels": {"leaderworkerset.sigs.k8s.io/name": f"{BASE}-group"}}
    (budget,) = [o for o in made if o["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["selector"] == group
    between, front = sorted((o for o in made if o["kind"] == "NetworkPolicy"), key=lambda o: str(o["metadata"]["name"]))
    assert between["spec"] == {
        "podSelector": group,
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": group}]}],
    }
    assert front["spec"]["podSelector"] == {"matchLabels": {names.LABEL_POOL: BASE}}


def test_a_base_from_the_network_is_fetched_by_every_pod_and_held() -> None:
    source = BaseSource(hugging_face=HuggingFaceSource(repo="a/b", revision="c" * 40))
    situation = spanning(cache=CLAIM)
    base = situation.bases[0].model_copy(update={"spec": situation.bases[0].spec.model_copy(update={"source": source})})
    first, others = templates(replace(situation, bases=(base,)))
    assert [c["name"] for c in others["spec"]["initContainers"]] == ["verify", "hold"]
    assert all("--source" in c["args"] for c in others["spec"]["initContainers"])
    assert "--front-config" in first["spec"]["initContainers"][0]["args"]
    assert "--front-config" not in others["spec"]["initContainers"][0]["args"]


def test_all_ranks_read_adapters_from_one_folder_of_the_claim() -> None:
    for template in templates(spanning(cache=CLAIM)):
        (found,) = [m for m in engine(template)["volumeMounts"] if m["mountPath"] == "/adapters"]
        folder = "replicas/$(LWS_LEADER_ADDRESS)"
        assert found == {"name": "cache", "mountPath": "/adapters", "subPathExpr": folder, "readOnly": True}
    agent = templates(spanning(cache=CLAIM))[0]["spec"]["initContainers"][2]
    assert {"name": "TUNEYARD_SHARED_ADAPTERS", "value": "true"} in agent["env"]


def test_adapters_that_other_nodes_could_not_read_get_no_place() -> None:
    adapters, users = (pinned("v1"),), (deployment(),)
    for cache, expected in ((ArtifactCache(), Reason.ADAPTERS_NOT_SHARED), (CLAIM, None)):
        situation = replace(spanning(cache=cache), adapters=adapters, deployments=users)
        refused = placement(the_pool(situation), adapters, ()).refused
        assert [p.reason for p in refused.values()] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"nodes_per_replica": 3}, "does not divide"),
        ({"data_parallel_size": 2}, "raise serving.replicas"),
        ({"extra_args": ["--distributed_executor_backend=ray"]}, "may not set --distributed-executor-backend"),
    ],
)
def test_what_no_engine_would_start_with_is_refused(serving: dict[str, Any], words: str) -> None:
    base = base_model(serving=ServingSpec(artifact_volumes=[VOLUME]))
    found = violation(base, resolved_serving(ServingSpec(**{**WIDE, **serving})), SETTINGS)
    assert found is not None
    assert found.reason is Reason.INVALID_SPEC
    assert words in found.message


def test_without_leader_worker_sets_the_status_says_how_to_get_them() -> None:
    missing = replace(spanning(), has_leader_worker_sets=False)
    plan = plan_basemodel(missing.base_model())
    assert GROUPS not in kinds(plan)
    assert conditions(plan)["Ready"] == ("False", "LeaderWorkerSetMissing")
    assert isinstance(plan.status, BaseModelStatus)
    assert "leaderWorkerSets.enabled" in (plan.status.progress or "")
    assert plan.requeue_after == 15.0, "nobody tells when they are installed"
    enabled = replace(missing, settings=SETTINGS.model_copy(update={"leader_worker_sets": True}))
    (told,) = [c for c in plan_basemodel(enabled.base_model()).status.conditions if c.type == "Ready"]  # type: ignore[union-attr]
    assert "leaderWorkerSets.enabled" not in told.message


def test_a_pool_is_ready_when_its_leaders_serve_what_is_wanted() -> None:
    situation = applied_to(spanning(replicas=2))
    assert kinds(plan_basemodel(situation.base_model())) == []
    assert reason(situation) == "Resolving"
    old = leader(situation, f"{BASE}-group-1", wanted_as="before")
    situation = applied_to(replace(situation, pods=(leader(situation), old)))
    assert reason(situation) == "Starting", "one group is an earlier template's"
    situation = applied_to(replace(situation, pods=(leader(situation), leader(situation, f"{BASE}-group-1"))))
    assert reason(situation) == "Ready"


def test_what_keeps_workers_from_coming_up_is_the_pools_problem() -> None:
    situation = spanning()
    labels = {names.LABEL_WORKER_OF: BASE, names.LABEL_BASE_MODEL: BASE}
    full = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    metadata = {"name": f"{BASE}-group-0-1", "namespace": NAMESPACE, "labels": labels}
    worker = pod_observation({"metadata": metadata, "status": {"conditions": [full]}})
    assert worker.pool == ""
    waiting = leader(situation, engine="Starting")
    situation = applied_to(replace(situation, pods=(waiting, worker)))
    assert reason(situation) == "Unschedulable"


def single_then_groups(update: str) -> Situation:
    """A pool of single pods that serves, and is wanted over nodes."""
    situation = applied_to(spanning(nodes_per_replica=1, update=update))
    situation = applied_to(replace(situation, pods=(leader(situation, "single"),)))
    assert reason(situation) == "Ready"
    return narrow(situation, update=update)


def test_groups_serve_before_single_pods_go() -> None:
    situation = single_then_groups("Surge")
    plan = plan_basemodel(situation.base_model())
    assert GROUPS in kinds(plan)
    assert deleted(plan) == []
    situation = applied_to(situation)
    starting = leader(situation, engine="Starting")
    waiting = replace(situation, pods=(*situation.pods, starting))
    assert deleted(plan_basemodel(waiting.base_model())) == []
    served = replace(situation, pods=(*situation.pods, leader(situation)))
    assert deleted(plan_basemodel(served.base_model())) == [SINGLE]
    assert reason(served) == "Starting"
    left = tuple(c for c in served.children if c.kind != "Deployment")
    assert reason(replace(served, pods=(leader(served),), children=left)) == "Ready"


def test_with_replace_single_pods_free_their_gpus_first() -> None:
    situation = single_then_groups("Replace")
    plan = plan_basemodel(situation.base_model())
    assert deleted(plan) == [SINGLE]
    assert GROUPS not in kinds(plan)
    gone = replace(situation, children=tuple(c for c in situation.children if c.kind != "Deployment"))
    assert GROUPS in kinds(plan_basemodel(gone.base_model()))


def test_back_on_one_node_the_policy_between_ranks_goes_last() -> None:
    situation = applied_to(spanning())
    situation = narrow(applied_to(replace(situation, pods=(leader(situation),))), nodes_per_replica=1)
    groups = situation.pods
    situation = applied_to(situation)
    served = replace(situation, pods=(*groups, leader(situation, "single")))
    assert deleted(plan_basemodel(served.base_model())) == [GROUPS]
    left = replace(served, children=tuple(c for c in served.children if c.kind != "LeaderWorkerSet"))
    assert deleted(plan_basemodel(left.base_model())) == [("NetworkPolicy", f"{BASE}-group")]


def test_a_pool_that_nobody_uses_goes_when_its_last_worker_has() -> None:
    situation = applied_to(spanning())
    worker = replace(leader(situation), name=f"{BASE}-group-0-1", pool="", worker_of=BASE, report=None)
    unused = replace(situation, deployments=(), pods=(worker,))
    marks = plan_basemodel(unused.base_model()).actions
    assert [type(a).__name__ for a in marks] == ["Annotate"]
    marked = tuple(
        replace(c, annotations={**c.annotations, names.ANNOTATION_UNUSED_SINCE: "2026-01-01T12:00:00Z"})
        if c.kind == "LeaderWorkerSet"
        else c
        for c in unused.children
    )
    later = replace(unused, children=marked, now=at(2))
    assert deleted(plan_basemodel(later.base_model())) == [GROUPS]
    left = replace(later, children=tuple(c for c in later.children if c.kind != "LeaderWorkerSet"))
    assert deleted(plan_basemodel(left.base_model())) == [], "the worker still needs them"
    assert ("ConfigMap", f"{BASE}-plan") in deleted(plan_basemodel(replace(left, pods=()).base_model()))


def test_an_applied_set_is_not_applied_again() -> None:
    situation = applied_to(spanning())
    again: list[Action] = list(plan_basemodel(situation.base_model()).actions)
    assert [a for a in again if isinstance(a, Apply)] == []
    wanted = pool_workload(the_pool(situation), situation.bases[0], SETTINGS)
    observed = child_of(wanted, replicas=1, readyReplicas=1)
    assert (observed.kind, observed.replicas, observed.ready_replicas, observed.observed) == (GROUPS[0], 1, 1, True)


@pytest.mark.parametrize("pool", ["a", "llama-3.1-8b", "8b", "x" * 52, "a." * 20 + "b", "UPPER-is-none"])
def test_names_of_groups_are_labels_that_statefulsets_can_use(pool: str) -> None:
    name = names.pool_groups(pool)
    assert len(name) <= 46
    assert name[0].isalpha()
    assert name == name.lower()
    assert name.replace("-", "").isalnum()
    assert not name.endswith("-")
    assert len({names.pool_groups(p) for p in ("a.b", "a-b", "a--b")}) == 3
