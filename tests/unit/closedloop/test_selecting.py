from __future__ import annotations

from typing import Any

import pytest

from closedloop.evaluating import still_right
from closedloop.files import as_lines
from closedloop.selecting import corrected, is_held_out, question_key, select


def asked(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def record(question: str = "where?", minute: int = 0, **more: Any) -> dict[str, Any]:
    base = {"requestId": f"r{minute}", "time": f"2026-11-20T10:{minute:02}:00Z", "score": -1, "text": None}
    return {**base, "messages": asked(question), "answer": "old", "correction": None, **more}


@pytest.mark.parametrize(
    ("given", "answer"),
    [
        ({"correction": " right "}, "right"),
        ({"text": "correction: right"}, "right"),
        ({"text": "  CORRECTION:right\nand more"}, "right\nand more"),
        ({"correction": "ours", "text": "correction: theirs"}, "ours"),
        ({"correction": "", "text": "correction: theirs"}, "theirs"),
        ({"text": "this is wrong"}, None),
        ({"text": "my correction: right"}, None),
        ({"text": "correction:"}, None),
        ({"correction": "right", "score": 0}, None),
        ({"correction": "right", "score": 1}, None),
        ({"correction": 5}, None),
        ({}, None),
    ],
)
def test_what_corrects_an_answer(given: dict[str, Any], answer: str | None) -> None:
    assert corrected(record(**given)) == answer


def test_questions_are_the_same_whatever_their_punctuation() -> None:
    assert question_key(asked("Where is  it?")) == question_key(asked("where is it"))
    assert question_key(asked("Wo ist es?")) != question_key(asked("Wo ist er?"))
    assert question_key(asked("a")) != question_key([{"role": "system", "content": "a"}])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++?", "C#?"),
        ("C++?", "C?"),
        ("Is it -5 today?", "Is it 5 today?"),
        ("Who gets 5 %?", "Who gets 5?"),
        ("100 $?", "100 €?"),
        ("R&D?", "R, D?"),
        ("\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}"),
        ("कि?", "की?"),
    ],
)
def test_signs_tell_questions_apart(one: str, other: str) -> None:
    assert question_key(asked(one)) != question_key(asked(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("5%", "5 %"),
        ("`pip`: «where» is it…", "Pip where is it\N{FULLWIDTH QUESTION MARK}"),
        ("e-mail", "E mail"),
        ("2020-21", "2020 - 21"),
        ("snake_case", "snake case"),
        ("a\nb\u00a0c\u200b", "a b c"),
    ],
)
def test_punctuation_and_spaces_do_not(one: str, other: str) -> None:
    assert question_key(asked(one)) == question_key(asked(other))


def test_the_newest_correction_of_a_question_wins_in_any_order() -> None:
    old, new = record("Where?", 1, correction="first"), record("where", 2, correction="second")
    for given in ([old, new], [new, old]):
        found = select(given, [], 0)
        assert [e["answer"] for e in found.train] == ["second"]
        assert found.counts["askedTwice"] == 1


def test_held_out_by_its_own_hash() -> None:
    questions = [f"question {n}" for n in range(400)]
    records = [record(q, correction="a") for q in questions]
    found = select(records, [], 0.25)
    assert 60 < len(found.heldout) < 140
    assert len(found.train) + len(found.heldout) == 400
    fewer = select(records[:200], [], 0.25)
    assert {e["messages"][0]["content"] for e in fewer.heldout} <= {e["messages"][0]["content"] for e in found.heldout}
    assert not any(is_held_out(question_key(e["messages"]), 0.25) for e in found.train)


def test_what_the_current_adapter_knows_comes_along() -> None:
    previous = [{"messages": asked(q), "answer": f"old {q}"} for q in ("stays", "changes", "kept out")]
    share = 0.0
    found = select([record("Changes?", correction="new")], previous, share)
    assert {e["messages"][0]["content"]: (e["answer"], e["from"]) for e in found.train} == {
        "stays": ("old stays", "previous"),
        "kept out": ("old kept out", "previous"),
        "Changes?": ("new", "r0"),
    }
    held = select([record("Changes?", correction="new")], previous, 1.0)
    assert "changes" not in [e["messages"][0]["content"] for e in held.train], "no training sees the old answer either"
    assert [e["answer"] for e in held.heldout] == ["new"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "text",
        [{"role": "user"}],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        asked("x") * 33,
    ],
)
def test_what_cannot_be_learnt_is_counted(messages: Any) -> None:
    found = select([record(messages=messages, correction="a")], [], 0)
    assert (found.train, found.counts["notUsable"]) == ([], 1)


def test_the_same_examples_are_the_same_bytes() -> None:
    records = [record(f"q{n}", n, correction="ä") for n in range(9)]
    assert as_lines(select(records, []).train) == as_lines(select(records[::-1], []).train)


def test_a_corrected_question_is_no_regression() -> None:
    regression = [{"messages": asked(q), "answer": "old"} for q in ("stays", "changes")]
    kept = still_right(regression, [{"messages": asked("Changes?"), "answer": "new"}])
    assert [e["messages"][0]["content"] for e in kept] == ["stays"]
