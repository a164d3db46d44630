"""What a mirrored answer is like beside the one that the user got: plain measures of two texts, of which none is kept.

Rules:
- an answer is `answered` (2xx and whole), `invalid` (4xx: the request was wrong, which says nothing about a model),
  `error` (5xx, or an error as one of a stream's events), `broken` (a stream or a body that ends early), `timeout` or
  `unreachable`;
- its text is what a client would show: contents of messages or deltas, texts of completions, names and arguments of
  tool calls, of all choices. Embeddings have none;
- it refuses when it is finished by a content filter, fills OpenAI's `refusal`, or has one of REFUSALS in its first
  REFUSAL_WINDOW characters (the shape of apostrophes and case do not matter). The list is English and plain, and knows
  words, not meaning;
- similarity is the share of three-character pieces that two texts have in common (Dice: twice the common ones by all
  of both; white space and case do not matter), of their first COMPARED characters: 1 for equal texts, about 0.2 to 0.4
  for unrelated ones of one language. It says that answers differ, not which is better;
- texts leave this module as lengths, a number and a keyed digest only.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

Outcome = Literal["answered", "invalid", "error", "broken", "timeout", "unreachable"]

COMPARED = 8000
"""Characters of a text that are compared."""
REFUSAL_WINDOW = 200
REFUSALS = (
    "i'm sorry, but",
    "i am sorry, but",
    "i'm sorry, i can",
    "sorry, but i can",
    "i apologize, but",
    "i can't help",
    "i cannot help",
    "i can't assist",
    "i cannot assist",
    "i can't provide",
    "i cannot provide",
    "i can't comply",
    "i cannot comply",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "i won't be able to",
    "i must decline",
    "as an ai language model",
)
"""What refusals begin with."""
_REFUSAL = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, REFUSALS))})")


@dataclass(frozen=True)
class Answer:
    """One answer, as much of it as a comparison needs."""

    outcome: Outcome
    status: int | None = None
    text: str | None = None
    """Its first COMPARED characters; None where it has no text, or was too long to be kept."""
    characters: int = 0
    """Of the whole text."""
    refuses: bool = False
    first_ms: float | None = None
    """Until its first token (of a whole answer: until it was there)."""
    whole_ms: float | None = None
    digest: str | None = None

    @property
    def failed(self) -> bool:
        """Whether the model or its pod is to blame."""
        return self.outcome in ("error", "broken", "timeout", "unreachable")


@dataclass(frozen=True)
class Came:
    """An answer as it came."""

    status: int
    kind: str
    """Its content type."""
    body: bytes | None
    """None: it was longer than what is kept."""
    first_ms: float | None = None
    whole_ms: float | None = None


def read_answer(came: Came, key: bytes) -> Answer:
    """What there is to say of an answer; `key` makes its digest one that nobody can guess texts by."""
    known = Answer("answered", came.status, first_ms=came.first_ms, whole_ms=came.whole_ms)
    if came.status >= 400:
        return replace(known, outcome="error" if came.status >= 500 else "invalid")
    if came.body is None:
        return known
    if came.kind.startswith("text/event-stream"):
        documents, whole = _events(came.body)
    elif came.kind.startswith("application/json"):
        documents, whole = _document(came.body)
    else:
        return known
    if not whole:
        return replace(known, outcome="broken")
    if any(isinstance(document.get("error"), dict) for document in documents):
        return replace(known, outcome="error")
    pieces, refuses = _said(documents)
    text = "".join(pieces)
    if not text:
        return replace(known, refuses=refuses)
    return replace(
        known,
        text=text[:COMPARED],
        characters=len(text),
        refuses=refuses or begins_with_refusal(text),
        digest=hashlib.blake2b(text.encode("utf-8", "replace"), key=key, digest_size=8).hexdigest(),
    )


def _document(body: bytes) -> tuple[list[dict[str, Any]], bool]:
    """A whole answer, and whether it is one."""
    found = _object(body)
    return ([], False) if found is None else ([found], True)


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _events(body: bytes) -> tuple[list[dict[str, Any]], bool]:
    """The events of a stream, and whether it has come to its end."""
    found: list[dict[str, Any]] = []
    for line in body.splitlines():
        data = line[5:].strip() if line.startswith(b"data:") else b""
        if data == b"[DONE]":
            return found, True
        event = _object(data) if data else None
        if event is not None:
            found.append(event)
        elif data:
            return found, False
    return found, False


def _said(documents: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """The text of all choices, each in one piece, and whether one of them refuses by OpenAI's own fields."""
    texts: dict[str, list[str]] = {}
    refuses = False
    for document in documents:
        for choice in _objects(document.get("choices")):
            (said,) = _objects([choice.get("message") or choice.get("delta") or {}]) or [{}]
            refuses = refuses or choice.get("finish_reason") == "content_filter" or bool(said.get("refusal"))
            texts.setdefault(str(choice.get("index")), []).extend(_texts(choice, said))
    return [piece for pieces in texts.values() for piece in pieces], refuses


def _objects(found: object) -> list[dict[str, Any]]:
    """The objects of what should be a list of them: an engine may say anything."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _texts(choice: dict[str, Any], said: dict[str, Any]) -> Iterator[str]:
    functions = _objects([call.get("function") for call in _objects(said.get("tool_calls"))])
    candidates = [choice.get("text"), said.get("content"), said.get("refusal")]
    for text in [*candidates, *(f.get(k) for f in functions for k in ("name", "arguments"))]:
        if isinstance(text, str):
            yield text


def begins_with_refusal(text: str) -> bool:
    """Whether a text begins like a refusal."""
    plain = text.lstrip()[:REFUSAL_WINDOW].replace("\u2019", "'").casefold()
    return _REFUSAL.search(plain) is not None


def similarity(one: str, other: str) -> float:
    """0 (nothing in common) to 1 (the same); texts of fewer than three characters are the same or not."""
    first, second = (re.sub(r"\s+", " ", text.strip()).casefold() for text in (one[:COMPARED], other[:COMPARED]))
    if first == second:
        return 1.0
    pieces, others = _pieces(first), _pieces(second)
    total = pieces.total() + others.total()
    return 2 * (pieces & others).total() / total if total else 0.0


def _pieces(text: str) -> Counter[str]:
    return Counter(text[at : at + 3] for at in range(len(text) - 2))


@dataclass(frozen=True)
class Comparison:
    """What two answers to one request have in common."""

    similarity: float | None = None
    length_ratio: float | None = None
    """Characters of the mirrored answer by those of the user's."""


def compare(user: Answer, mirrored: Answer) -> Comparison:
    """Of answers without a text there is nothing to compare but outcome and time."""
    if user.text is None or mirrored.text is None:
        return Comparison()
    return Comparison(similarity(user.text, mirrored.text), mirrored.characters / user.characters)
