"""What a user's word becomes when it leaves the cluster."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.contract.envoy import model, revision
from tuneyard.api.feedback import FeedbackRecord
from tuneyard.gateway.feedback import Given, read
from tuneyard.gateway.feedbackexport import record_of
from tuneyard.systems.envoy.answers import Answer, Outcome

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
ANSWER = Answer("default/md-support", "v2", Outcome.OK, 0.0, 10)


def test_a_record_names_what_answered_and_what_was_said() -> None:
    given = read(b'{"request_id": "r-1", "score": -1, "text": "wrong date"}')
    routes = model("support", revision("v1", 90, ["10.0.0.1:8080"]), revision("v2", 10, ["10.0.0.1:8080"]))
    told = record_of(ANSWER, given, routes, NOW)
    assert FeedbackRecord.model_validate_json(told.line()) == told
    assert told.to_dict() == {
        "time": "2026-01-02T03:04:05.678000Z",
        "requestId": "r-1",
        "model": "support",
        "deployment": "default/md-support",
        "revision": "v2",
        "score": -1.0,
        "text": "wrong date",
    }
    assert "wrong" not in repr(given) + repr(told), "what a user wrote is in no log"


def test_a_deployment_that_has_gone_since_is_still_named() -> None:
    told = record_of(ANSWER, Given("r-1", 1.0), None, NOW)
    assert (told.model, told.deployment, told.revision, told.adapter, told.text) == (
        "",
        "default/md-support",
        "v2",
        None,
        None,
    )
