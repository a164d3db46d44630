"""Whatever gateways say and pods have: nobody who waits is left asleep, and half knowledge puts nobody to sleep."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.builders import NAMESPACE, VOLUME, Situation, base_model, deployment, pinned, pod, revision, stamp
from tuneyard.api.conditions import Condition
from tuneyard.api.documents import DemandReport, DeploymentDemand, RevisionDemand
from tuneyard.api.modeldeployment import ModelDeploymentStatus
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.demand import DemandView
from tuneyard.planning.modeldeployment import plan_modeldeployment

TIMEOUT = 60
READY = Condition(type="Ready", status="True", reason="Ready", last_transition_time=stamp(0))
BASE = base_model(serving=ServingSpec(artifact_volumes=[VOLUME], lora=LoRASettings(idle_timeout=f"{TIMEOUT}s")))


@st.composite
def demands(draw: st.DrawFn) -> DemandView:
    """What up to three gateways say; some know nothing of the deployment, and some are not heard."""
    reports = []
    for number in range(draw(st.integers(0, 3))):
        said = DeploymentDemand(
            idle_seconds=draw(st.sampled_from([0.0, TIMEOUT - 1, TIMEOUT, 10 * TIMEOUT])),
            waiting=draw(st.sampled_from([0, 0, 0, 2])),
            revisions=draw(
                st.sampled_from(
                    [{}, {"v1": RevisionDemand(requests=3)}, {"v1": RevisionDemand(requests=3, in_flight=1)}]
                )
            ),
        )
        known = draw(st.sampled_from([True, True, True, False]))
        deployments = {f"{NAMESPACE}/chat": said} if known else {}
        reports.append(DemandReport(gateway=f"g{number}", version=1, deployments=deployments))
    return DemandView(tuple(reports), len(reports) + draw(st.sampled_from([0, 0, 1])))


sleeps = st.sampled_from([{}, {"idle_since": stamp(0)}, {"waking_since": stamp(0)}])


@given(demands(), sleeps, st.sets(st.sampled_from(["v1", "v2"])), st.booleans())
def test_who_waits_is_woken_and_who_is_not_known_to_be_quiet_stays_awake(demand, sleep, loaded, ready):
    status = ModelDeploymentStatus(
        observed_generation=1, rollout=RolloutStatus(stable="v1"), conditions=[READY] if ready else [], **sleep
    )
    chat = deployment(
        revisions=[revision("v1", "v1"), revision("v2", "v2")], traffic={"v1": 90, "v2": 10}, status=status
    )
    situation = Situation(
        bases=(BASE,),
        adapters=(pinned("v1"), pinned("v2")),
        deployments=(chat,),
        pods=(pod("a", *sorted(loaded)),),
    )
    plan = plan_modeldeployment(replace(situation.deployment(), demand=demand))
    told = plan.status
    assert isinstance(told, ModelDeploymentStatus)
    assert not (told.idle_since and told.waking_since)
    assert plan.requeue_after is not None, "time alone changes it"
    said = [r.deployments.get(f"{NAMESPACE}/chat") for r in demand.reports]
    if any(s is not None and s.waiting for s in said):
        assert told.idle_since is None, "somebody waits"
    if told.idle_since and not sleep.get("idle_since"):
        assert ready and loaded == {"v1", "v2"}
        assert demand.known
        assert all(s is not None and s.idle_seconds >= TIMEOUT for s in said)
    assert sum(t.weight for t in told.traffic) == 100 or not (told.idle_since or told.waking_since)
    if told.idle_since or told.waking_since:
        assert {t.revision: t.weight for t in told.traffic} == {"v1": 90, "v2": 10}
