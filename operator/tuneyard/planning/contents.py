"""What a revision would serve, as one hash: verdicts are keyed by it, so that they follow contents and not names.

Only what specs say counts, and of those only what decides the answers: a digest that was pinned later, a base's
replicas or an evaluation that was added change nothing, and an object that is created again from Git has the hash it
had.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tuneyard.api import names
from tuneyard.planning.revisions import RevisionState


def content_hash(state: RevisionState) -> str | None:
    """Hash of a revision's contents; None while something that it names does not exist."""
    base, adapter, revision = state.base, state.adapter, state.revision
    if base is None or (adapter is None and revision.adapter is not None):
        return None
    parts = {
        "revision": revision.to_dict() | {"name": None},
        "base": [base.spec.source.to_dict(), base.spec.digest],
        "adapter": [adapter.spec.base_model, adapter.spec.source.to_dict(), adapter.spec.digest] if adapter else None,
    }
    return names.short_hash(json.dumps(parts, sort_keys=True), length=16)


def content_hashes(states: Iterable[RevisionState]) -> dict[str, str | None]:
    """By revision."""
    return {state.revision.name: content_hash(state) for state in states}
