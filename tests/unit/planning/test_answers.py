"""Which of the gateways' counts are about a deployment as it is now."""

from __future__ import annotations

import json

import pytest

from tests.builders import Situation, adapter, base_model, deployment, digest, pinned, revision
from tuneyard.api import names
from tuneyard.api.analysis import Slo
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import DeploymentEvidence, EvidenceReport
from tuneyard.api.drill import Fault, fault_of
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.serving import ServingSpec
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.answers import AnswersView, Heard
from tuneyard.planning.revisions import revision_states
from tuneyard.planning.routes import model_routes
from tuneyard.planning.served import served_of

SLO = Slo(error_rate="1%")
NOW = {"v1": "aaaa", "v2": "bbbb", "v9": "cccc"}


def told(judging: bool = True, **differs: object) -> Heard:
    """What a gateway says that sees the deployment as it is."""
    known = DeploymentEvidence(uid="uid", slo=SLO, contents=NOW, counts={"v1": {"errorRate": {0: (9, 1, 0, 0)}}})
    known = known.model_copy(update=differs)
    report = EvidenceReport(
        gateway="g", process="g-1", age_seconds=1, version=1, judging=judging, deployments={"team/chat": known}
    )
    return Heard(EvidenceReport.model_validate_json(report.model_dump_json(by_alias=True)), 100.0)


@pytest.mark.parametrize(
    ("heard", "readings", "answered"),
    [
        (told(contents={**NOW, "v9": "9999"}), 1, 1),  # not one of the two that are compared
        (told(contents={"v1": "aaaa", "v2": "bbbb"}), 1, 1),
        (told(), 1, 1),
        (told(contents={**NOW, "gone": "cccc"}), 1, 1),
        (told(contents={}), 1, 1),  # an older gateway, which does not say it
        (told(contents={**NOW, "v2": "b000"}), 0, 0),
        (told(contents={"v1": "aaaa"}), 0, 0),
        (told(uid="another"), 0, 0),
        (told(slo=Slo(error_rate="2%")), 0, 0),
        (told(judging=False), 1, 0),
    ],
)
def test_what_a_gateway_counts_of_something_else_is_no_reading(heard: Heard, readings: int, answered: int) -> None:
    everything = AnswersView((heard,), 1).of(("team", "chat"), "uid", SLO, NOW)
    found = everything.about({"v1", "v2"})
    assert (len(found.readings), found.answered, found.expected) == (readings, answered, 1)
    assert not AnswersView((heard,), 1).of(("team", "other"), "uid", SLO, NOW).readings


def test_what_is_counted_of_other_contents_is_never_told_with_the_rest():
    heard = told(contents={**NOW, "v1": "a000"})
    found = AnswersView((heard,), 1).of(("team", "chat"), "uid", SLO, NOW).about({"v2"})
    assert (len(found.readings), found.answered) == (1, 1)
    assert found.readings[0].counts == {}, "v1's"


def test_operator_and_gateways_agree_on_what_a_revision_is() -> None:
    annotations = {names.ANNOTATION_DRILL: json.dumps(Fault(revision="v3", errors=5).to_dict())}
    listed = [
        revision("v0"),
        revision("v1", "a"),
        revision("v2", "a", serving=ServingSpec()),
        revision("v3", "a"),
        revision("v4", "missing"),
        revision("v5", "unread"),
        revision("v6", "prompted"),
    ]
    chat = deployment(revisions=listed, traffic={"v1": 100})
    chat = chat.model_copy(update={"metadata": chat.metadata.model_copy(update={"annotations": annotations})})
    told = pinned("prompted")
    told = told.model_copy(
        update={"spec": told.spec.model_copy(update={"system_prompt": SystemPrompt(text="Be brief.")})}
    )
    adapters = (pinned("a"), adapter("unread"), told)

    def contents(base: BaseModelResource, adapters: tuple[LoRAAdapterResource, ...] = adapters) -> dict[str, str]:
        seen = Situation(bases=(base,), adapters=adapters, deployments=(chat,))
        found = served_of(revision_states(seen.deployment(), chat), fault_of(annotations))
        assert found == model_routes(chat, adapters, (base,), ()).contents
        return found

    unread, read = contents(base_model()), contents(base_model(digest=digest("base")))
    assert {r for r in unread if unread[r] != read[r]} == unread.keys(), "another base answers otherwise"
    assert len({read[r] for r in ("v0", "v1", "v2", "v3")}) == 4
    found = contents(base_model(digest=digest("base")), (adapter("a", digest=digest("others")), *adapters[1:]))
    assert {r for r in found if found[r] != read[r]} == {"v1", "v2", "v3"}
    found = contents(base_model(digest=digest("base")), (*adapters[:2], pinned("prompted")))
    assert {r for r in found if found[r] != read[r]} == {"v6"}
