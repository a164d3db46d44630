"""Whose position it is that a status tells: a name may stand for other contents than at the pass before.

A revision cannot be edited, but it can be removed and added again between two passes, a deployment or an adapter
deleted and created again. Rules:
- the status says by content hash whom each of its positions is about; with other contents a revision begins anew, and
  is allowed what one is of which nothing is known;
- while the contents are not known, since an object is missing, they count as the same: what comes back may be the same;
- a status that does not say it, of an older operator, is about what has the name now;
- verdicts, history and reports have their own hashes, and a pause is the rollout's, whoever is the candidate.
"""

from __future__ import annotations

from collections.abc import Mapping

from tuneyard.api.rollout import RolloutStatus

_OF_THE_CANDIDATE = (
    "candidate",
    "step",
    "position",
    "step_started_at",
    "waiting_since",
    "analysis",
    "gates",
)


def still_about(status: RolloutStatus | None, hashes: Mapping[str, str | None]) -> RolloutStatus | None:
    """The status without positions of contents that are not there any more under their names."""
    if status is None or not status.contents:
        return status
    others = {name for name, known in status.contents.items() if hashes.get(name) not in (None, known)}
    if not others:
        return status
    left = {name: limit for name, limit in (status.allowed or {}).items() if name not in others}
    promoted = {name: weight for name, weight in (status.promoted_to or {}).items() if name not in others}
    update: dict[str, object] = {"allowed": left or None, "promoted_to": promoted or None}
    if status.candidate in others:
        update |= dict.fromkeys(_OF_THE_CANDIDATE)
    kept = {name: known for name, known in status.contents.items() if name not in others}
    return status.model_copy(update={**update, "contents": kept or None})


def with_contents(
    status: RolloutStatus, before: RolloutStatus | None, hashes: Mapping[str, str | None]
) -> RolloutStatus:
    """The status with whom its positions are about."""
    known = (before.contents if before else None) or {}
    about = {*(status.allowed or ()), *([status.candidate] if status.candidate else ())}
    found = {name: hashes.get(name) or known.get(name) for name in sorted(about)}
    return status.model_copy(update={"contents": {n: h for n, h in found.items() if h} or None})
