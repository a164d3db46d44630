"""Prompts of an evaluation and their checks, as tables."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneyard.gate.prompts import PromptsError, parsed, rouge_l, score


def line(check: Any, **more: Any) -> str:
    return json.dumps({"prompt": "p", "check": check, **more})


@pytest.mark.parametrize(
    ("check", "answer", "wanted"),
    [
        ({"exact": "Paris"}, "Paris", 1),
        ({"exact": "Paris"}, " Paris\n", 1),
        ({"exact": "Paris"}, "Paris.", 0),
        ({"exact": ["Paris", "paris"]}, "paris", 1),
        ({"regex": r"\b4\b"}, "2 + 2 is 4, of course", 1),
        ({"regex": r"^4$"}, "44", 0),
        ({"jsonSchema": {"type": "object", "required": ["a"]}}, '{"a": 1}', 1),
        ({"jsonSchema": {"type": "object", "required": ["a"]}}, '```json\n{"a": 1}\n```', 1),
        ({"jsonSchema": {"type": "object", "required": ["a"]}}, '{"b": 1}', 0),
        ({"jsonSchema": {"type": "object"}}, "I would say {}", 0),
        ({"jsonSchema": {"type": "array"}}, "[" * 100_000, 0),
        ({"jsonSchema": True}, "1", 1),
        ({"similarity": "the cat sat on the mat"}, "The cat sat on the mat!", 1),
        ({"similarity": "the cat sat on the mat"}, "a dog", 0),
        ({"similarity": "the cat sat"}, "the cat", 0.8),
    ],
)
def test_scores(check: Any, answer: str, wanted: float) -> None:
    (prompt,) = parsed(line(check))
    assert score(prompt, answer) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no prompt: write one JSON object a line"),
        ("{", "line 1 is not JSON"),
        ("[]", "line 1: a line has to be a JSON object"),
        ("\n" + json.dumps({"check": {"exact": "x"}}), "line 2: write either messages or prompt"),
        (line({"exact": "x"}, messages=[]), "line 1: write either messages or prompt"),
        (json.dumps({"messages": [], "check": {"exact": "x"}}), "messages has to be a list"),
        (json.dumps({"prompt": 1, "check": {"exact": "x"}}), "prompt has to be a text"),
        (line({}), "check has to have exactly one of exact, regex, jsonSchema, similarity, judge"),
        (line({"exact": "x", "regex": "y"}), "exactly one of"),
        (line({"contains": "x"}), "exactly one of"),
        (line({"exact": [1]}), "exact has to be a text or a list of texts"),
        (line({"regex": "("}), "regex '(' cannot be read"),
        (line({"judge": {}}), "judge has to be a text"),
        (line({"jsonSchema": {"type": "thing"}}), "jsonSchema is no schema: 'thing' is not valid"),
        (line({"jsonSchema": "text"}), "jsonSchema is no schema"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, words: str) -> None:
    with pytest.raises(PromptsError) as error:
        parsed(text)
    assert words in str(error.value)


def test_nothing_is_fetched_that_a_schema_refers_to() -> None:
    (prompt,) = parsed(line({"jsonSchema": {"$ref": "http://127.0.0.1:9/schema.json"}}))
    with pytest.raises(PromptsError, match=r"a jsonSchema refers to http://127\.0\.0\.1:9/schema\.json"):
        score(prompt, "{}")


def test_rouge_l_is_that_of_its_paper() -> None:
    # the examples of Lin (2004), section 3.1, at equal weight of precision and recall
    assert rouge_l("police killed the gunman", "police kill the gunman") == 0.75
    assert rouge_l("police killed the gunman", "the gunman kill police") == 0.5
    assert rouge_l("", "") == 1
    assert rouge_l("a", "") == 0
