"""select: from collected feedback to examples that can be learnt and examples that are kept out. Pure.

Rules:
- only a bad answer (score < 0) that somebody has corrected teaches anything: by `correction` in the log, which whoever
  reads the answers has written, or else by a feedback text that begins with `correction:`. Other texts are opinions;
- a question counts once, whatever its case, spaces and punctuation: the newest correction wins. Signs that tell
  questions apart are none of that: C++ is not C#, nor 5 % what 5 is;
- a corrected question is held out by its own hash, so it is on the same side in every run: no training sees it, nor
  what the last run taught of it;
- the new adapter is trained from the base, so it must be taught again what the current one knows: the examples of the
  last run (`--previous`) come along, but for those that are corrected now.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from closedloop.files import Json

_MARK = re.compile(r"\s*correction:\s*", re.IGNORECASE)
_NEGATIVE = re.compile(r"\B-(?=\d)")
_SIGNS = frozenset("#%&@")
"""What Unicode calls punctuation and questions differ by."""
_MOST_MESSAGES = 32
_ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True)
class Selection:
    """What is learnt, what is kept out, and how many of what there were."""

    train: list[Json]
    heldout: list[Json]
    counts: Json


def corrected(record: Json) -> str | None:
    """What the answer should have been, None where nobody says."""
    if record["score"] >= 0:
        return None
    written = record.get("correction")
    if isinstance(written, str) and written.strip():
        return written.strip()
    text = record.get("text")
    match = _MARK.match(text) if isinstance(text, str) else None
    return (text[match.end() :].strip() or None) if match and isinstance(text, str) else None


def _heard(char: str) -> str:
    """What is left of one character: of punctuation and accents that stand alone, a space."""
    category = unicodedata.category(char)
    if char in _SIGNS or category in ("Sm", "Sc", "So"):
        return f" {char} "
    return char if category[0] in "LMN" else " "


def question_key(messages: Iterable[Json]) -> str:
    """The same for questions that differ in case, spaces and punctuation only."""
    texts = ((m["role"], _NEGATIVE.sub("\N{MINUS SIGN}", m["content"].casefold())) for m in messages)
    said = (role + ":" + " ".join("".join(map(_heard, text)).split()) for role, text in texts)
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def is_held_out(key: str, share: float) -> bool:
    """Whether a question is kept out of every training."""
    return int(key[:8], 16) < share * (1 << 32)


def _is_conversation(messages: object) -> bool:
    """Of texts, and ending with a question: what can be learnt from."""
    return (
        isinstance(messages, list)
        and 0 < len(messages) <= _MOST_MESSAGES
        and all(isinstance(m, dict) and m.get("role") in _ROLES and isinstance(m.get("content"), str) for m in messages)
        and messages[-1]["role"] == "user"
    )


def select(collected: Iterable[Json], previous: Iterable[Json], share: float = 0.25) -> Selection:
    """The examples {messages, answer}, in an order that only their contents decide."""
    bad = without = unusable = twice = 0
    newest: dict[str, Json] = {}
    for record in sorted(collected, key=lambda r: (r["time"], r["requestId"])):
        if record["score"] >= 0:
            continue
        bad += 1
        answer = corrected(record)
        if answer is None:
            without += 1
        elif not _is_conversation(record.get("messages")):
            unusable += 1
        else:
            messages = [{"role": m["role"], "content": m["content"]} for m in record["messages"]]
            key = question_key(messages)
            twice += key in newest
            newest[key] = {"messages": messages, "answer": answer, "from": record["requestId"]}
    known = {question_key(e["messages"]): {**e, "from": "previous"} for e in previous}
    kept = {k: e for k, e in known.items() if k not in newest}
    train = kept | {k: e for k, e in newest.items() if not is_held_out(k, share)}
    heldout = {k: e for k, e in newest.items() if is_held_out(k, share)}
    counts = {
        "badAnswers": bad,
        "withoutCorrection": without,
        "notUsable": unusable,
        "askedTwice": twice,
        "corrections": len(newest),
        "heldOut": len(heldout),
        "fromPrevious": len(kept),
        "train": len(train),
    }
    return Selection([train[k] for k in sorted(train)], [heldout[k] for k in sorted(heldout)], counts)
