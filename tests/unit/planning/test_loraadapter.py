"""The plan of a LoRAAdapter: what is pinned, who has it, and why somebody does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.builders import (
    BASE,
    NAMESPACE,
    VOLUME,
    Situation,
    adapter,
    at,
    base_model,
    deployment,
    digest,
    failed,
    loaded,
    pod,
    revision,
    stamp,
)
from tuneyard.api import names
from tuneyard.api.documents import AdapterReport
from tuneyard.api.loraadapter import LoRAAdapterStatus
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.loraadapter import plan_loraadapter
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Event, ObjectReference, Plan
from tuneyard.planning.podreport import source_mark

ABOUT = ObjectReference(names.API_VERSION, "LoRAAdapter", NAMESPACE, "v1", "uid-v1")
TWO = ServingSpec(artifact_volumes=[VOLUME], replicas=2)


def started(**fields: object) -> Situation:
    """Two pods that have `v1`, and a deployment that wants it."""
    situation = Situation(
        bases=(base_model(serving=TWO),),
        adapters=(adapter("v1"),),
        deployments=(deployment(),),
        pods=(pod("a", "v1"), pod("b", "v1")),
    )
    return replace(situation, **fields)  # type: ignore[arg-type]


def planned(situation: Situation) -> tuple[Plan, LoRAAdapterStatus]:
    plan = plan_loraadapter(situation.adapter("v1"))
    assert plan.actions == (), "pods act on the pool's plan, not on this one"
    assert isinstance(plan.status, LoRAAdapterStatus)
    return plan, plan.status


def conditions(status: LoRAAdapterStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}


def after(situation: Situation) -> Situation:
    """The situation with the planned status stored."""
    _, status = planned(situation)
    known = tuple(a.model_copy(update={"status": status}) if a.metadata.name == "v1" else a for a in situation.adapters)
    return replace(situation, adapters=known)


def test_an_adapter_that_is_gone_or_going_has_no_plan():
    assert plan_loraadapter(Situation().adapter("v1")) == Plan()
    assert plan_loraadapter(started(adapters=(adapter("v1", deletion_timestamp=stamp(0)),)).adapter("v1")) == Plan()


def test_everything_about_an_adapter_that_all_pods_have():
    plan, status = planned(started())
    assert (status.digest, status.engine_name) == (digest("v1"), names.engine_adapter_name("v1", digest("v1")))
    assert (status.rank, status.target_modules, status.size_bytes, status.size) == (8, ["q_proj"], 3_670_016, "3.5 MiB")
    assert (status.loaded, status.used_by) == ("2/2", ["chat"])
    assert conditions(status) == {
        "Ready": ("True", "Ready"),
        "Resolved": ("True", "Resolved"),
        "Compatible": ("True", "Compatible"),
        "Loaded": ("True", "Loaded"),
    }
    assert plan.events == (
        Event("Normal", Reason.DIGEST_PINNED, f"pinned {digest('v1')}", ABOUT),
        Event("Normal", Reason.ADAPTER_LOADED, f"2/2 pods have loaded {status.engine_name}", ABOUT),
    )
    again = plan_loraadapter(replace(after(started()), now=at(5)).adapter("v1"))
    assert again == Plan((), status, (), None)


# the digest


def test_the_spec_is_the_authority_on_the_digest():
    given = adapter("v1", digest=digest("given"))
    plan, status = planned(started(adapters=(given,)))
    assert status.digest == digest("given")
    assert status.loaded == "0/2", "pods that have other bytes do not count"
    assert Reason.DIGEST_PINNED not in [e.reason for e in plan.events]


def test_a_pinned_digest_never_changes():
    other = {"v1": loaded("v1", digest=digest("other"))}
    situation = replace(after(started()), pods=(pod("a", reports=other), pod("b", reports=other)))
    _, status = planned(situation)
    assert (status.digest, status.loaded) == (digest("v1"), "0/2")


THIS = source_mark(adapter("v1").spec.source)
OTHER = source_mark(adapter("others").spec.source)


@pytest.mark.parametrize(
    ("report", "found"),
    [
        (AdapterReport(state="Loading", digest=digest("x"), source=THIS), digest("x")),
        (loaded("v1", source=OTHER), None),  # a pod that still speaks of what had the name before
        (AdapterReport(state="Loading", digest=digest("x")), digest("x")),
        (AdapterReport(state="Loading"), None),
        (AdapterReport(state="Failed", digest=digest("x"), reason="ShapeMismatch"), None),
        (AdapterReport(state="Loading", digest="sha256:short"), None),
    ],
)
def test_the_first_report_that_reads_the_bytes_pins_them(report, found):
    _, status = planned(started(pods=(pod("a", reports={"v1": report}),)))
    assert status.digest == found
    assert (status.engine_name is None) == (found is None)


def test_the_oldest_pod_is_the_first():
    other = pod("a", reports={"v1": loaded("v1", digest=digest("other"))}, created=stamp(2))
    _, status = planned(started(pods=(other, pod("b", "v1", created=stamp(1)))))
    assert status.digest == digest("v1")


def test_pods_of_other_pools_and_leaving_ones_say_nothing():
    other = {"v1": loaded("v1", digest=digest("other"))}
    foreign = (pod("a", pool="elsewhere", reports=other), pod("b", reports=other, deleted=True))
    _, status = planned(started(pods=foreign))
    assert (status.digest, status.loaded) == (None, "0/2")


# what keeps it away

FAILURES = [
    ("DigestMismatch", "found sha256:a, pinned sha256:b", {"Resolved": ("False", "DigestMismatch")}),
    ("ArtifactNotFound", "no folder", {"Resolved": ("False", "ArtifactNotFound")}),
    ("FilesMissing", "no adapter_config.json", {"Resolved": ("False", "FilesMissing")}),
    ("RankTooHigh", "rank 64, the pool allows 16", {"Compatible": ("False", "RankTooHigh")}),
    ("NonFiniteValues", "a weight is NaN", {"Compatible": ("False", "NonFiniteValues")}),
    ("CannotGenerate", "no token", {"Loaded": ("False", "CannotGenerate")}),
    ("LoadRefused", "the engine said 500", {"Loaded": ("False", "LoadRefused")}),
]


@pytest.mark.parametrize(("reason", "message", "expected"), FAILURES)
def test_reasons_are_the_pods_own(reason, message, expected):
    pods = (pod("a", reports={"v1": failed(reason, message)}), pod("b", reports={"v1": failed(reason, message)}))
    plan, status = planned(started(pods=pods))
    found = conditions(status)
    assert expected.items() <= found.items()
    assert (found["Ready"], found["Stalled"], found["Loaded"]) == (
        ("False", reason),
        ("True", reason),
        ("False", reason),
    )
    assert message in status.conditions[0].message
    assert plan.events == (Event("Warning", Reason.ADAPTER_LOAD_FAILED, f"{reason}: pod a: {message}", ABOUT),)
    assert plan_loraadapter(after(started(pods=pods)).adapter("v1")).events == (), "told on a change only"


def test_a_reason_of_the_future_is_passed_on_in_words():
    pods = (pod("a", reports={"v1": failed("FluxCapacitor", "1.21 GW")}),)
    _, status = planned(started(pods=pods))
    assert conditions(status)["Loaded"] == ("False", "LoadRefused")
    assert "pod a: FluxCapacitor: 1.21 GW" in status.conditions[0].message


def test_one_pod_of_two_that_fails_is_said_while_the_other_counts():
    _, status = planned(started(pods=(pod("a", "v1"), pod("b", reports={"v1": failed("LoadRefused", "no room")}))))
    assert status.loaded == "1/2"
    assert conditions(status)["Loaded"] == ("False", "LoadRefused")
    assert conditions(status)["Resolved"] == ("True", "Resolved")
    assert conditions(status)["Compatible"] == ("True", "Compatible")


def test_a_missing_base_stalls():
    _, status = planned(started(bases=()))
    assert conditions(status)["Stalled"] == ("True", "BaseModelNotFound")
    assert status.loaded == "0/0"


def test_revisions_that_use_it_with_another_base_are_named():
    other = deployment("odd", revisions=[revision("v1", "v1", base="other")])
    _, status = planned(started(deployments=(other,)))
    assert conditions(status)["Stalled"] == ("True", "BaseModelMismatch")
    assert "odd" in status.conditions[0].message
    assert status.used_by == ["odd"]


def test_a_pool_without_a_place_for_it_says_so_with_the_remedy():
    block = ServingSpec(artifact_volumes=[VOLUME], lora=LoRASettings(max_cpu_loras=1))
    both = deployment(revisions=[revision("v0", "v0"), revision("v1", "v1")])
    known = (adapter("v0", created=0), adapter("v1", created=1))
    _, status = planned(
        started(bases=(base_model(serving=block),), adapters=known, deployments=(both,), pods=(pod("a", "v0"),))
    )
    assert conditions(status)["Loaded"] == ("False", "PoolFull")
    assert "serving.lora.maxCpuLoras" in status.conditions[0].message


def test_a_volume_that_the_pool_does_not_have_is_said():
    _, status = planned(started(adapters=(adapter("v1", volume="elsewhere"),), pods=(pod("a"), pod("b"))))
    assert conditions(status)["Loaded"] == ("False", "VolumeNotDeclared")
    assert "add it to serving.artifactVolumes" in status.conditions[0].message


def test_pods_that_do_not_come_up_are_the_reason():
    sick = pod("a", report=None, problem=Problem(Reason.UNSCHEDULABLE, "0/1 nodes: gpu"))
    _, status = planned(started(pods=(sick,)))
    assert conditions(status)["Loaded"] == ("False", "Unschedulable")


# what is going on


def test_pods_that_start_and_pods_that_load_are_told_apart():
    _, starting = planned(started(pods=(pod("a", report=None),)))
    assert conditions(starting)["Reconciling"] == ("True", "Starting")
    loading = {"v1": AdapterReport(state="Loading")}
    _, status = planned(started(pods=(pod("a", "v1"), pod("b", reports=loading))))
    assert conditions(status)["Reconciling"] == ("True", "Loading")
    assert status.loaded == "1/2"


def test_an_adapter_that_nothing_uses_is_ready_and_says_so():
    plan, status = planned(started(deployments=()))
    assert conditions(status) == {
        "Ready": ("True", "NotUsed"),
        "Resolved": ("Unknown", "NotUsed"),
        "Compatible": ("Unknown", "NotUsed"),
        "Loaded": ("False", "NotUsed"),
    }
    assert (status.loaded, status.used_by, plan.events) == ("0/0", None, ())


def test_what_was_learned_stays_without_pods():
    known = after(started())
    _, status = planned(replace(known, pods=()))
    assert (status.digest, status.rank, status.size) == (digest("v1"), 8, "3.5 MiB")
    assert conditions(status)["Compatible"] == ("True", "Compatible")
    assert conditions(status)["Loaded"] == ("False", "Starting")


def test_a_surge_does_not_count_more_pods_than_are_wanted():
    _, status = planned(started(pods=(pod("a", "v1"), pod("b", "v1"), pod("c", "v1"))))
    assert status.loaded == "2/2"


def test_all_pools_that_use_it_count():
    own = deployment("own", serving=ServingSpec(replicas=1))
    extra = pod("c", "v1", pool=names.pool_name(BASE, "own"))
    _, status = planned(started(deployments=(deployment(), own), pods=(pod("a", "v1"), extra)))
    assert (status.loaded, status.used_by) == ("2/3", ["chat", "own"])


def test_a_pool_of_nothing_is_no_reason_to_wait():
    _, status = planned(
        started(bases=(base_model(serving=ServingSpec(artifact_volumes=[VOLUME], replicas=0)),), pods=())
    )
    assert conditions(status)["Ready"] == ("True", "Ready")
    assert conditions(status)["Loaded"] == ("False", "NoReadyEndpoint")


def test_a_warning_stands_beside_loaded():
    silent = {"v1": loaded("v1", warning="AnswersLikeBase")}
    _, status = planned(started(pods=(pod("a", reports=silent), pod("b", reports=silent))))
    told = next(c for c in status.conditions if c.type == "Loaded")
    assert told.status == "True"
    assert "AnswersLikeBase: A warning" in told.message
