"""What looks like a credential among what a tracker recorded. Pure.

Trainers record all their arguments, tokens among them, and a manifest goes into Git and into a lineage that nobody can
change. Rules:
- in doubt it is a credential: what is left out wrongly is noted and can be written by hand, what is published cannot be
  taken back;
- a name decides (`hub_token`), or the text itself (`hf_…`, a key's header, a password in a URL), at any depth, also in
  a command line within a text;
- numbers, switches and the tokens that texts are made of (`max_tokens`, `pad_token_id`, `<|im_end|>`) are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tuneyard.api.lineage import VALUE_LENGTH

_LOOKED_AT = 2 * VALUE_LENGTH
"""Characters of a text that are searched: what is longer is cut to VALUE_LENGTH before it is written."""
_NAMES = re.compile(
    r"secret|passw|passphrase|credential|connection_?string|authoriz|(?:api|access|private|account)_?key"
    r"|(?:^|_)(?:pwd|auth|bearer|cookie|dsn)$"
    r"|(?:openai|anthropic|wandb|comet|neptune|hf|hub|huggingface|aws|azure|google|ssh|auth|client|session|signing|encryption"
    r"|storage|shared|subscription|license)_?key$"
)
_TOKEN = re.compile(r"tokens?(?=_|$)")
_OF_TEXTS = frozenset(
    {
        *("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "video", "audio", "special", "stop", "response"),
        *("instruction", "virtual", "id", "ids", "index", "indices", "type", "loss"),
    }
)
"""Words beside `token` that say which part of a text is meant."""
_PART_OF_TEXTS = re.compile(r"<[^<>]{1,60}>|\[[A-Z0-9_]{1,60}\]")
_HARMLESS = re.compile(r"[-+]?[0-9][0-9_.]*(?:e[-+]?[0-9]+)?|true|false|none|null", re.IGNORECASE)
_TEXTS = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}"
    r"|\bA(?:KI|SI)A[A-Z0-9]{16}\b"
    r"|\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,})"
    r"|(?<![\w-])sk-(?=[\w-]*[0-9])[\w-]{20,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,}"
    r"|\b[Bb]earer +[\w.~+/-]{12,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]*:[^/\s@]+@"
    r"|[?&](?:X-Amz-Signature|X-Amz-Security-Token|X-Goog-Signature|Signature|sig)="
)
_ASSIGNED = re.compile(r"(?<![\w.-])-{0,2}([A-Za-z][\w.-]{0,63})[\"']?\s*[=:]\s*[\"']?([^\s\"',;&]+)")
_OPTION = re.compile(r"(?<![\w.-])--([A-Za-z][\w.-]{0,63})\s+([^\s-]\S*)")


def is_credential(name: str, value: Any) -> bool:
    """Whether a value under this name looks like a credential, or holds one."""
    if isinstance(value, Mapping):
        return any(is_credential(f"{name}.{key}", inner) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return any(is_credential(name, inner) for inner in value)
    if value is None or isinstance(value, bool):
        return False
    text = str(value)
    return _is_named_like_one(name, text.strip()) or holds_credential(text)


def holds_credential(text: str) -> bool:
    """Whether a text looks like a credential by itself, or assigns one to a name."""
    seen = text[:_LOOKED_AT]
    if _TEXTS.search(seen):
        return True
    pairs = (*_ASSIGNED.findall(seen), *_OPTION.findall(seen))
    return any(_is_named_like_one(name, value) for name, value in pairs)


def is_placeholder(name: str, value: Any) -> bool:
    """Whether the Trainer itself has replaced the value: `hub_token` is `<HUB_TOKEN>` then."""
    return isinstance(value, str) and value == f"<{name.rpartition('.')[2].upper()}>"


def _is_named_like_one(name: str, value: str) -> bool:
    words = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    if _NAMES.search(words):
        return bool(value) and value.lower() not in ("true", "false", "none", "null")
    if not _TOKEN.search(words) or not _OF_TEXTS.isdisjoint(words.split("_")):
        return False
    return bool(value) and not (_HARMLESS.fullmatch(value) or _PART_OF_TEXTS.fullmatch(value))
