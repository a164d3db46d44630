"""What is read out of answers, and what two of them have in common."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneyard.planning.mirrored import COMPARED, Answer, Came, Comparison, compare, read_answer, similarity

KEY = b"a key"


def whole(*choices: dict[str, Any], status: int = 200) -> Came:
    return Came(status, "application/json", json.dumps({"choices": list(choices)}).encode(), 5.0, 6.0)


def chat(content: str | None, **more: Any) -> Came:
    return whole({"index": 0, "message": {"role": "assistant", "content": content, **more}})


def stream(*events: dict[str, Any] | str, done: bool = True) -> Came:
    lines = [e if isinstance(e, str) else "data: " + json.dumps(e) for e in events]
    text = "\n\n".join([*lines, *(["data: [DONE]"] if done else [])]) + "\n\n"
    return Came(200, "text/event-stream; charset=utf-8", text.encode())


def delta(content: str, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content}, **more}]}


@pytest.mark.parametrize(
    ("came", "outcome", "text"),
    [
        (chat("hello"), "answered", "hello"),
        (whole({"index": 0, "text": "of a completion"}), "answered", "of a completion"),
        (whole({"text": "one"}, {"text": "two"}), "answered", "onetwo"),
        (stream(": keep-alive", delta("he"), delta("llo"), {"choices": [], "usage": {}}), "answered", "hello"),
        # choices come in turn, and are compared one after the other
        (stream(delta("a", 0), delta("b", 1), delta("c", 0)), "answered", "acb"),
        (stream(delta("hel"), done=False), "broken", None),
        (stream(delta("hel"), 'data: {"choi', done=False), "broken", None),
        (Came(200, "application/json", b'{"choices": [{"mess'), "broken", None),
        (Came(200, "application/json", b"[]"), "broken", None),
        (Came(200, "application/json", b'{"data": [{"embedding": [0.1]}]}'), "answered", None),
        (Came(200, "application/json", b'{"choices": 3}'), "answered", None),
        (Came(200, "application/json", b'{"choices": [null, {"message": null}]}'), "answered", None),
        (Came(200, "text/event-stream", None), "answered", None),
        (Came(200, "text/plain", b"not OpenAI's"), "answered", None),
        (stream(delta("hel"), {"error": {"message": "CUDA out of memory"}}), "error", None),
        (whole(status=400), "invalid", None),
        (whole(status=404), "invalid", None),
        (whole(status=500), "error", None),
        (Came(503, "", b""), "error", None),
        (
            chat(None, tool_calls=[{"function": {"name": "find", "arguments": '{"a": 1}'}}]),
            "answered",
            'find{"a": 1}',
        ),
    ],
)
def test_what_an_answer_says(came: Came, outcome: str, text: str | None) -> None:
    answer = read_answer(came, KEY)
    assert (answer.outcome, answer.text, answer.characters) == (outcome, text, len(text or ""))
    assert answer.failed == (outcome in ("error", "broken"))
    assert (answer.digest is None) == (text is None)


@pytest.mark.parametrize(
    ("came", "refuses"),
    [
        (chat("I'm sorry, but I can't help with that."), True),
        (chat("I\u2019m sorry, but no."), True),
        (chat("  As an AI language model, I have no feelings."), True),
        (chat("Of course. " + "x" * 200 + " I cannot help it."), False),
        (chat("You can't provide that in one line; here is how."), False),
        (chat("Hawaii can't help but charm."), False),
        (chat("", refusal="No."), True),
        (whole({"message": {"content": "half"}, "finish_reason": "content_filter"}), True),
        (stream(delta("I can"), delta("not assist with this.")), True),
        (stream(delta("fine", finish_reason="stop")), False),
    ],
)
def test_a_refusal_is_told_by_a_plain_list(came: Came, refuses: bool) -> None:
    assert read_answer(came, KEY).refuses is refuses


@pytest.mark.parametrize(
    ("one", "other", "least", "most"),
    [
        ("the same", "the same", 1, 1),
        ("The  same\n", "the same", 1, 1),
        ("", "", 1, 1),
        ("no", "no", 1, 1),
        ("no", "ok", 0, 0),
        ("yes", "a longer answer", 0, 0),
        ("Paris is the capital of France.", "The capital of France is Paris.", 0.6, 0.99),
        ("Paris is the capital of France.", "Ask your bank for another card.", 0, 0.2),
        ("東京は日本の首都です。", "東京は日本の首都だ。", 0.6, 0.95),
        # only the beginning is compared
        ("a" * COMPARED + "b" * 1000, "a" * COMPARED + "c" * 1000, 1, 1),
    ],
)
def test_similarity_counts_common_pieces(one: str, other: str, least: float, most: float) -> None:
    assert least <= similarity(one, other) <= most
    assert similarity(one, other) == similarity(other, one)


def test_only_two_texts_are_compared() -> None:
    user, copy = read_answer(chat("four"), KEY), read_answer(chat("fourfour"), KEY)
    found = compare(user, copy)
    assert found.length_ratio == 2
    assert found.similarity == pytest.approx(2 * 2 / (2 + 6))
    assert compare(user, Answer("timeout")) == Comparison()
    assert compare(read_answer(whole(status=500), KEY), copy) == Comparison()


def test_a_digest_tells_equal_texts_to_who_has_the_key_only() -> None:
    digests = [read_answer(came, KEY).digest for came in (chat("yes"), stream(delta("yes")), chat("no"))]
    assert digests[0] == digests[1] != digests[2]
    assert read_answer(chat("yes"), b"another").digest != digests[0]


def test_times_are_kept_whatever_it_says() -> None:
    for came in (chat("x"), whole(status=500)):
        answer = read_answer(came, KEY)
        assert (answer.first_ms, answer.whole_ms, answer.status) == (5.0, 6.0, came.status)


_JSON = st.recursive(
    st.sampled_from([None, True, 7, "", "some text", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "delta", "content", "tool_calls", "function", "text", "index"]),
            inner,
        )
    ),
    max_leaves=12,
)


@pytest.mark.lasting
@given(st.dictionaries(st.sampled_from(["choices", "data"]), _JSON), st.booleans())
def test_an_engine_may_say_anything(document: dict[str, Any], streams: bool) -> None:
    came = stream(document) if streams else Came(200, "application/json", json.dumps(document).encode())
    answer = read_answer(came, KEY)
    assert answer.outcome == "answered"
    assert compare(answer, answer).similarity in (None, 1.0)


@given(st.binary(max_size=200), st.sampled_from(["application/json", "text/event-stream"]))
def test_whatever_bytes_come_are_an_answer_or_a_broken_one(body: bytes, kind: str) -> None:
    assert read_answer(Came(200, kind, body), KEY).outcome in ("answered", "broken")
    assert read_answer(Came(200, kind, b"[" * 200_000), KEY).outcome == "broken"
