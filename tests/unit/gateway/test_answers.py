"""From a line of the request log to what became of the request."""

from __future__ import annotations

from typing import Any

import pytest

from tuneyard.api.gatereports import GateRun
from tuneyard.systems.envoy.answers import Answer, Outcome, answer_of, answers_of
from tuneyard.systems.envoy.requestlog import Line

ENGINE = "via_upstream"


def entry(
    status: int = 200,
    *flags: str,
    details: str = ENGINE,
    cluster: str = "team/support~chat/v1/0123abcd",
    route: str = "weights",
    content: str = "application/json",
    host: str = "10.0.0.1:8000",
    **told: Any,
) -> Line:
    return Line(**dict.fromkeys(Line._fields, ""))._replace(
        time="2026-01-01T00:00:00.250Z",
        cluster=cluster,
        host=host,
        route=route,
        arrived="20000",
        answered="1520000",
        duration="2020",
        flags=",".join(flags) or "-",
        received="4000",
        status=str(status),
        details=details,
        kind=content[:17],
        **{key: str(value) for key, value in told.items()},
    )


def read(*args: Any, **more: Any) -> Answer:
    found = answer_of(entry(*args, **more))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        (entry(200), Outcome.OK),
        (entry(204), Outcome.OK),
        (entry(500), Outcome.ERROR),
        (entry(503, "URX"), Outcome.ERROR),
        (entry(503, "UF", details="upstream_reset_before_response_started"), Outcome.ERROR),
        (entry(503, "UC", details="upstream_reset"), Outcome.ERROR),
        (entry(504, "SI", details="stream_idle_timeout"), Outcome.ERROR),
        (entry(200, "SI", details="stream_idle_timeout"), Outcome.ERROR),
        (entry(200, "UR", details="upstream_reset_after_response_started"), Outcome.ERROR),
        (entry(200, "UPE", details="upstream_reset_after_response_started"), Outcome.ERROR),
        # it took 2.02 s
        (entry(504, details="max_duration_timeout"), Outcome.ERROR),
        (entry(200, details="max_duration_timeout"), Outcome.ERROR),
        (entry(504, details="max_duration_timeout", deadline="1M"), Outcome.ERROR),
        (entry(504, details="max_duration_timeout", deadline="soon"), Outcome.ERROR),
        (entry(504, details="max_duration_timeout", deadline="123456789n"), Outcome.ERROR),
        (entry(504, details="max_duration_timeout", deadline="2S"), Outcome.CLIENT_LEFT),
        (entry(200, details="max_duration_timeout", deadline="2050m"), Outcome.CLIENT_LEFT),
        (entry(504, details="max_duration_timeout", deadline="2000000u"), Outcome.CLIENT_LEFT),
        (entry(200, deadline="1S"), Outcome.OK),
        (entry(200, failed=True), Outcome.ERROR),
        (
            entry(200, "DC", details="downstream_remote_disconnect", failed=True),
            Outcome.ERROR,
        ),
        (entry(500, "DC"), Outcome.ERROR),
        (entry(400), Outcome.CLIENT_ERROR),
        (entry(429), Outcome.CLIENT_ERROR),
        (entry(200, "DC", details="downstream_remote_disconnect"), Outcome.CLIENT_LEFT),
        (entry(0, "DR", details="http2.remote_reset"), Outcome.CLIENT_LEFT),
        (entry(503, "UO", details="upstream_reset_before_response_started"), Outcome.REFUSED),
        (entry(503, "OM", details="overload"), Outcome.REFUSED),
        (entry(408, "SI", details="request_timeout"), Outcome.REFUSED),
        (entry(413, details="request_payload_too_large"), Outcome.REFUSED),
        (entry(503, details="lua_response"), Outcome.REFUSED),
        (entry(500, details="rbac_access_denied_matched_policy[none]"), Outcome.REFUSED),
    ],
)
def test_how_a_request_ended(given: Line, outcome: Outcome) -> None:
    found = answer_of(given)
    assert found is not None
    assert found.outcome is outcome


def test_whose_answer_it_was() -> None:
    assert (read().deployment, read().revision, read().prompt_tokens) == ("team/support.chat", "v1", 1000)
    assert read().contents == "0123abcd", "whatever the revision of that name is by now"
    assert not read().chosen
    assert read(route="revision/v1").chosen
    assert read(held=True).held
    assert read(content="text/event-stream; charset=utf-8").streamed
    for cluster in ("", "nowhere", "holding"):
        assert answer_of(entry(cluster=cluster)) is None
    assert answer_of(entry(503, host="")) is None, "a route was chosen, and no endpoint"


def test_what_the_script_answers_for_a_revision_is_the_revisions() -> None:
    for key, status, outcome in (("refused", 400, Outcome.CLIENT_ERROR), ("spoiled", 502, Outcome.ERROR)):
        told = {key: "team/support~chat/v2/4567"}
        found = read(status, details="lua_response", cluster="", **told)
        assert (found.deployment, found.revision, found.contents) == ("team/support.chat", "v2", "4567")
        assert found.outcome is outcome
        assert found.took == pytest.approx(2000)


def test_an_answer_is_timed_to_its_last_byte_and_a_wait_to_its_end() -> None:
    assert read().took == pytest.approx(1500)
    assert read(200, "DC").took == pytest.approx(2000)
    assert read(500).took == pytest.approx(2000)
    assert (read().ttft, read().itl) == (None, None)
    assert (read(ttft=302.5, itl=30.25).ttft, read(ttft=302.5, itl=30.25).itl) == (302.5, 30.25)


def test_it_is_known_when_a_request_came() -> None:
    assert read().began == 1767225600.25


@pytest.mark.parametrize(
    ("route", "header", "run"),
    [
        ("gate/v2", "chat-gate-0123456789 12/200", GateRun(job="chat-gate-0123456789", done=12, total=200)),
        ("weights", "chat-gate-0123456789 12/200", None),  # without the token it is anybody's
        ("gate/v2", "", None),
        ("gate/v2", "chat-gate-0123456789 201/200", None),
        ("gate/v2", "chat-gate-0123456789 12/200, other 1/2", None),
        ("gate/v2", "x" * 254 + " 1/2", None),
    ],
)
def test_a_request_of_a_gate_says_how_far_that_is(route: str, header: str, run: GateRun | None) -> None:
    assert read(route=route, gate_run=header).run == run
    assert read(route=route, noted_run=header).run == run, "also where its headers are gone"
    assert run is None or run.header == header


def test_whose_request_it_was() -> None:
    assert read().tenant == ""
    assert read(tenant="acme").tenant == "acme"
    assert read(out="acme chat /v1/embeddings").tenant == "acme"
    assert read(out="- chat /v1/embeddings").tenant == ""


@pytest.mark.parametrize(
    ("status", "outcome"), [(401, Outcome.ERROR), (429, Outcome.ERROR), (400, Outcome.CLIENT_ERROR)]
)
def test_what_an_api_says_of_our_account_is_the_revisions(status: int, outcome: Outcome) -> None:
    assert read(status, out="acme chat /v1/embeddings").outcome is outcome
    assert read(status).outcome is Outcome.CLIENT_ERROR, "a pod speaks of the request"


def test_lines_are_read_in_their_order_without_what_is_nobodys() -> None:
    assert [a.outcome for a in answers_of([entry(500), entry(cluster=""), entry(200)])] == [Outcome.ERROR, Outcome.OK]
    assert answers_of([]) == []


@pytest.mark.parametrize(("told", "streams"), [({"start": "1700000000000000"}, True), ({}, False)])
def test_a_stream_that_never_began_is_one_by_what_was_asked_for(told: dict[str, Any], streams: bool) -> None:
    left = read(0, "DC", details="downstream_remote_disconnect", content="", **told)
    assert (left.streamed, left.outcome, left.ttft) == (streams, Outcome.CLIENT_LEFT, None)
