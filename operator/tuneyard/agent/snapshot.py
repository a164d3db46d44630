"""What an agent must still know after its container was restarted, also while the API server is away.

One JSON file on the pod's memory-backed volume, replaced as a whole. It holds no key. What it says of the engine is
believed only as far as the engine still lists it: also that it was silenced, and what its base answers when it is not.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneyard.api.documents import PlannedAdapter, PoolPlan
from tuneyard.api.reasons import Reason, reason_of
from tuneyard.api.sources import Source
from tuneyard.planning.agentstate import Failure, Prepared, Reference, State

_log = logging.getLogger(__name__)

SNAPSHOT = "agent.json"
"""Its name in the folder of what a pod's processes tell each other."""
_VERSION = 1


class Snapshot:
    """The file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = ""

    def save(self, state: State) -> None:
        """Write what matters of the state, where it changed."""
        text = json.dumps(_document(state), separators=(",", ":"))
        if text == self._written:
            return
        scratch = self._path.with_suffix(".new")
        try:
            scratch.write_text(text)
            scratch.chmod(0o600)
            scratch.replace(self._path)
        except OSError as error:
            _log.warning("cannot keep a snapshot: %s", error)
            return
        self._written = text

    def restore(self, state: State, on_disk: frozenset[str]) -> State:
        """The state with what the file says; `on_disk`: the engine names whose folders are really there."""
        state = replace(state, on_disk=on_disk)
        try:
            document = json.loads(self._path.read_text())
            if document.get("version") != _VERSION:
                return state
            return _restored(state, document, on_disk)
        except FileNotFoundError:
            return state
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("the snapshot cannot be read, beginning anew: %s", error)
            return state


def _document(state: State) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "plan": state.plan.to_dict() if state.plan else None,
        "prepared": {name: _prepared(p) for name, p in state.prepared.items()},
        "proven": {name: warning and warning.value for name, warning in state.proven.items()},
        "answers": state.engine.answers,
        "poisoned": state.engine.poisoned,
        "reference": state.engine.reference,
        "models": sorted(state.engine.models),
        "harmful": [_harmful(f) for f in state.failures.values() if f.retry_at == math.inf],
        "draining": state.draining,
    }


def _prepared(prepared: Prepared) -> dict[str, Any]:
    return {
        "source": prepared.source.to_dict(),
        "digest": prepared.digest,
        "engineName": prepared.engine_name,
        "rank": prepared.rank,
        "targetModules": list(prepared.target_modules),
        "sizeBytes": prepared.size_bytes,
        "warning": prepared.warning and prepared.warning.value,
    }


def _harmful(failure: Failure) -> dict[str, Any]:
    return {
        "planned": failure.planned.to_dict(),
        "reason": failure.reason.value,
        "message": failure.message,
        "digest": failure.digest,
    }


def _reference(kept: list[Any] | None) -> Reference | None:
    return None if kept is None else Reference(kept[0], tuple(kept[1]))


def _restored(state: State, document: dict[str, Any], on_disk: frozenset[str]) -> State:
    prepared = {
        name: Prepared(
            source=Source.from_dict(item["source"]),
            digest=item["digest"],
            engine_name=item["engineName"],
            rank=item["rank"],
            target_modules=tuple(item["targetModules"]),
            size_bytes=item["sizeBytes"],
            warning=reason_of(item.get("warning") or ""),
        )
        for name, item in document["prepared"].items()
        if item["engineName"] in on_disk
    }
    failures = {
        item["planned"]["name"]: Failure(
            planned=PlannedAdapter.from_dict(item["planned"]),
            reason=reason_of(item["reason"]) or Reason.CANNOT_GENERATE,
            message=item["message"],
            digest=item["digest"],
            retry_at=math.inf,
        )
        for item in document["harmful"]
    }
    names = {p.engine_name for p in prepared.values()}
    return replace(
        state,
        plan=PoolPlan.from_dict(document["plan"]) if document["plan"] else None,
        engine=replace(
            state.engine,
            answers=bool(document["answers"]),
            models=frozenset(document["models"]),
            poisoned=bool(document.get("poisoned")),
            reference=_reference(document.get("reference")),
        ),
        prepared=prepared,
        proven={name: warning and reason_of(warning) for name, warning in document["proven"].items() if name in names},
        failures=failures,
        draining=bool(document["draining"]),
    )
