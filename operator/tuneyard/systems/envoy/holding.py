"""What `rewrite` is told of a revision whose requests may have to wait, on the routes that lead to it.

Rules:
- a revision that pods serve has nothing of it, and costs its requests nothing;
- who waits is silent for as long: routes of a model that requests wait for have the gateways' own limit of silence,
  which is longer than anybody may wait (routing.ColdStart), and not that of its engine.
"""

from __future__ import annotations

from tuneyard.planning.routes import ModelRoutes, RevisionRoute

HOLD_MARGIN = 5.0
"""Seconds that Envoy waits longer than the process should: one that hangs must hold nobody for ever."""


def hold_milliseconds(seconds: float) -> int:
    """How long Envoy waits for the process, where a request may wait so many seconds."""
    return int((seconds + HOLD_MARGIN) * 1000)


def held(model: ModelRoutes, revision: RevisionRoute) -> dict[str, str]:
    """The script's context of a revision."""
    if not revision.held:
        return {}
    patience = {} if model.hold_seconds is None else {"patience": str(hold_milliseconds(model.hold_seconds))}
    return {"hold": model.model, "revision": revision.name, **patience}


def silence_of(model: ModelRoutes) -> int | None:
    """Seconds for which nothing may pass on a request, None: as many as gateways allow."""
    return None if any(revision.held for revision in model.revisions) else model.idle_timeout
