"""What a revision would serve, as one hash: verdicts are keyed by it, so that they follow contents and not names.

Only what specs say counts, and of those only what decides the answers: a digest that was pinned later, a base's
replicas or an evaluation that was added change nothing, and an object that is created again from Git has the hash it
had. A revision with a fault that a rehearsal puts into its answers is not the one without.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.build import MAY_CHANGE, BaseSource
from tuneyard.api.drill import Fault
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import Revision
from tuneyard.planning.revisions import RevisionState


def content_hash(state: RevisionState, fault: Fault | None = None) -> str | None:
    """Hash of a revision's contents; None while something that it names does not exist."""
    return hash_of(state.revision, state.base, state.adapter, fault)


def hash_of(
    revision: Revision, base: BaseModelResource | None, adapter: LoRAAdapterResource | None, fault: Fault | None
) -> str | None:
    """The same of what a revision names, as far as that exists."""
    parts: dict[str, object]
    if revision.external is not None:
        parts = {"external": revision.external.identity}  # not whose key is sent
    elif base is None or (adapter is None and revision.adapter is not None):
        return None
    else:
        parts = {
            "revision": revision.to_dict() | {"name": None},
            "base": [_made(base.spec.source), base.spec.digest],
            "adapter": [adapter.spec.base_model, adapter.spec.source.to_dict(), adapter.spec.digest]
            if adapter
            else None,
        }
    if adapter is not None and adapter.spec.system_prompt is not None:  # without one the hash is what it always was
        parts["system prompt"] = adapter.spec.system_prompt.identity
    if fault is not None and fault.revision == revision.name:
        parts["fault"] = fault.mark
    return names.short_hash(json.dumps(parts, sort_keys=True), length=16)


def _made(source: BaseSource) -> dict[str, object]:
    """A base's source without how the Jobs of its build run, which may change."""
    if source.build is None:
        return source.to_dict()
    return source.model_copy(update={"build": source.build.model_copy(update=dict.fromkeys(MAY_CHANGE))}).to_dict()


def content_hashes(states: Iterable[RevisionState], fault: Fault | None = None) -> dict[str, str | None]:
    """By revision; `fault` is that of the deployment's rehearsal."""
    return {state.revision.name: content_hash(state, fault) for state in states}
