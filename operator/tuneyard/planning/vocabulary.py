"""Tokens that an adapter's tokenizer has and its base has not.

An engine reads all prompts with the base's tokenizer and has a row of the embedding for each of the base's tokens: what
was trained with others is answered as if they were not there. Trainers save a tokenizer beside every adapter, mostly
the base's own, so that its files alone say nothing.

A token for padding is no such token: it fills batches in training and stands in no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

FILES = ("added_tokens.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What is looked at, if it is there."""
_ADDED = '"added_tokens"'


def added_tokens(files: Mapping[str, str]) -> dict[str, int]:
    """The tokens that a tokenizer's files add to its vocabulary, with their numbers, but for the one for padding.

    `files`: beginnings of some of FILES. What cannot be read adds nothing: no engine reads it either.
    """
    found = {content: number for content, number in _object(files.get(FILES[0])).items() if _is_number(number)}
    for entry in _list_of(files.get(FILES[1], "")):
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and _is_number(entry.get("id")):
            found[entry["content"]] = entry["id"]
    for name in FILES[2:]:
        padding = _object(files.get(name)).get("pad_token")
        content = padding.get("content") if isinstance(padding, dict) else padding
        if isinstance(content, str):
            found.pop(content, None)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _list_of(tokenizer: str) -> list[object]:
    """tokenizer.json's list of added tokens, which stands before the vocabulary of many MB."""
    begin = tokenizer.find("[", tokenizer.find(_ADDED))
    if _ADDED not in tokenizer or begin < 0:
        return []
    try:
        found, _ = json.JSONDecoder().raw_decode(tokenizer, begin)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
