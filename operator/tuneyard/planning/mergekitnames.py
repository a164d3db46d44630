"""The models that a mergekit configuration names, and folders put in their place. Pure.

Rules:
- a configuration names models by the names of `mergekit.models` and by nothing else: a path or a repository in their
  place would read what nobody declared, so it is refused, also where mergekit would never look at it;
- what is no name of a model stays as it is. Every merge method and parameter of mergekit is its own business.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_NAMING = ("model", "base_model", "tokenizer_source", "source")
_OPAQUE = ("parameters", "chat_template")
_TOKENIZERS = frozenset({"union", "base"})
"""What a source of a tokenizer may be besides a model."""


class ConfigError(ValueError):
    """What is wrong with a configuration, in words for people."""


def named_models(config: Any) -> set[str]:
    """Every name of a model in a configuration (as YAML reads it); raises ConfigError."""
    found: set[str] = set()
    _walk(_mapping(config), found, {})
    return found


def with_folders(config: Any, folders: Mapping[str, str]) -> dict[str, Any]:
    """The configuration with each model's folder in place of its name; raises ConfigError.

    Every name has to be one of `folders`, and each of these has to be named.
    """
    checked(named_models(config), folders)
    replaced: dict[str, Any] = _walk(_mapping(config), set(), folders)
    return replaced


def checked(named: Collection[str], declared: Collection[str]) -> None:
    """Raise ConfigError unless the names are exactly those that are declared."""
    strange = sorted(set(named) - set(declared))
    if strange:
        raise ConfigError(
            f"mergekit.config names {', '.join(strange)}, which mergekit.models does not have: name models as there "
            f"({', '.join(sorted(declared))}), not by path or repository"
        )
    unused = sorted(set(declared) - set(named))
    if unused:
        raise ConfigError(f"mergekit.models has {', '.join(unused)}, which mergekit.config does not name: remove it")


def _mapping(config: Any) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise ConfigError("mergekit.config is no YAML mapping: write merge_method and models or slices")
    if "merge_method" not in config:
        raise ConfigError("mergekit.config has no merge_method: write linear, slerp, ties, dare_ties, passthrough …")
    return config


def _walk(value: Any, found: set[str], folders: Mapping[str, str]) -> Any:
    """The value with folders for names, where these are given; the names are put into `found`."""
    if isinstance(value, list):
        return [_walk(item, found, folders) for item in value]
    if not isinstance(value, dict):
        return value
    walked = {}
    for key, inner in value.items():
        if key in _OPAQUE:
            walked[key] = inner
        elif key == "lora" and inner is not None:
            raise ConfigError("mergekit.config names a lora: give the model an adapter in mergekit.models instead")
        elif key == "path" or (key in _NAMING and isinstance(inner, str)):
            walked[key] = _named(key, inner, found, folders)
        else:
            walked[key] = _walk(inner, found, folders)
    return walked


def _named(key: str, name: Any, found: set[str], folders: Mapping[str, str]) -> str:
    if not isinstance(name, str):
        raise ConfigError(f"mergekit.config has a {key} that is no text: name a model of mergekit.models")
    if key in ("tokenizer_source", "source") and name in _TOKENIZERS:
        return name
    found.add(name)
    return folders.get(name, name)
