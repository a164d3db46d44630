r"""The prompts of an evaluation: JSON lines, each with `prompt` or `messages` and a `check`. Pure.

    {"messages": [{"role": "user", "content": "Capital of France?"}], "check": {"exact": "Paris"}}
    {"prompt": "2 + 2 =", "check": {"regex": "\\b4\\b"}}

A check has exactly one of
- exact: the text, or a list of texts, one of which the answer has to be (white space around it aside);
- regex: an expression of Python's `re` that is found in the answer;
- jsonSchema: the answer is JSON (a code fence around it aside) and fits the schema;
- similarity: a reference text; the score is ROUGE-L;
- judge: what a good answer is, in words; the judge grades it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable

from tuneyard.api.gates import SCORES

METRIC = dict(zip(("exact", "regex", "jsonSchema", "similarity", "judge"), SCORES, strict=True))
"""By the word of a check, the score that it counts for."""
MAX_PROMPTS = 10_000


class PromptsError(Exception):
    """What is wrong with the prompts, and where."""


@dataclass(frozen=True)
class Prompt:
    """One line."""

    body: Mapping[str, Any]
    """`messages` or `prompt`, as they are sent."""
    check: str
    """The word of the check."""
    wanted: Any

    @property
    def words(self) -> str:
        """For people: the prompt, or the last message."""
        return str(self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1].get("content"))


def parsed(text: str) -> list[Prompt]:
    """Every prompt; raises PromptsError, which names the line."""
    found: list[Prompt] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_prompt(json.loads(line)))
        except PromptsError as error:
            raise PromptsError(f"line {number}: {error}") from None
        except ValueError as error:
            raise PromptsError(f"line {number} is not JSON: {error}") from None
    if not found:
        raise PromptsError("it holds no prompt: write one JSON object a line")
    if len(found) > MAX_PROMPTS:
        raise PromptsError(f"it holds {len(found)} prompts, more than {MAX_PROMPTS}")
    return found


def _prompt(line: Any) -> Prompt:
    if not isinstance(line, Mapping):
        raise PromptsError("a line has to be a JSON object")
    messages, prompt = line.get("messages"), line.get("prompt")
    if (messages is None) == (prompt is None):
        raise PromptsError("write either messages or prompt")
    if messages is not None and not _are_messages(messages):
        raise PromptsError('messages has to be a list of {"role": ..., "content": ...}')
    if prompt is not None and not isinstance(prompt, str):
        raise PromptsError("prompt has to be a text")
    check = line.get("check")
    if not isinstance(check, Mapping) or len(check) != 1 or next(iter(check)) not in METRIC:
        raise PromptsError(f"check has to have exactly one of {', '.join(METRIC)}")
    word, wanted = next(iter(check.items()))
    _must_fit(word, wanted)
    return Prompt({"messages": messages} if messages is not None else {"prompt": prompt}, word, wanted)


def _are_messages(messages: Any) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages)
    )


def _must_fit(word: str, wanted: Any) -> None:
    if word == "exact" and not all(isinstance(t, str) for t in _texts(wanted)):
        raise PromptsError("exact has to be a text or a list of texts")
    if word in ("regex", "similarity", "judge") and not isinstance(wanted, str):
        raise PromptsError(f"{word} has to be a text")
    if word == "regex":
        try:
            re.compile(wanted)
        except re.error as error:
            raise PromptsError(f"regex {wanted!r} cannot be read: {error}") from None
    if word == "jsonSchema":
        try:
            jsonschema.validators.validator_for(wanted).check_schema(wanted)
        except (jsonschema.SchemaError, AttributeError, TypeError) as error:
            raise PromptsError(f"jsonSchema is no schema: {getattr(error, 'message', error)}") from None


def _texts(wanted: Any) -> Sequence[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def score(prompt: Prompt, answer: str) -> float:
    """The score of an answer, 0 to 1; of every check but `judge`, which is not decided here."""
    said = answer.strip()
    if prompt.check == "exact":
        return float(said in [t.strip() for t in _texts(prompt.wanted)])
    if prompt.check == "regex":
        return float(re.search(prompt.wanted, answer) is not None)
    if prompt.check == "jsonSchema":
        return float(_fits(prompt.wanted, said))
    return rouge_l(prompt.wanted, answer)


def _fits(schema: Any, said: str) -> bool:
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?```", said, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else said)
    except (ValueError, RecursionError):
        return False
    try:
        # with a registry of its own nothing is fetched that a schema refers to
        return bool(jsonschema.validators.validator_for(schema)(schema, registry=Registry()).is_valid(value))
    except Unresolvable as error:
        raise PromptsError(f"a jsonSchema refers to {error.ref}, which it does not hold") from None


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L: the harmonic mean of which part of the reference's words, and of the answer's, their longest common
    subsequence is. Words are runs of letters and digits, the case aside (Lin, 2004).
    """
    wanted, said = (re.findall(r"\w+", t.lower()) for t in (reference, answer))
    if not wanted or not said:
        return float(wanted == said)
    row = [0] * (len(said) + 1)
    for word in wanted:
        before = row
        row = [0] * (len(said) + 1)
        for n, other in enumerate(said, 1):
            row[n] = before[n - 1] + 1 if word == other else max(before[n], row[n - 1])
    return 2 * row[-1] / (len(wanted) + len(said))
