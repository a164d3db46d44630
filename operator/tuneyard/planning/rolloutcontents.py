"""Whose position it is that a status tells: a name may stand for other contents than at the pass before.

A revision cannot be edited, but it can be removed and added again between two passes, a deployment or an adapter
deleted and created again. Rules:
- the status says by content hash whom each of its positions is about; with other contents a revision begins anew, and
  is allowed what one is of which nothing is known;
- other contents under the stable revision's name are not stable: the revision is, that was the stable one last with the
  contents it has now, where one can take requests. Where none can, the name stays the stable one, as it would be of a
  new object: nobody else serves what is withheld;
- while the contents are not known, since an object is missing, they count as the same: what comes back may be the same;
- a status that does not say it, of an older operator, is about what has the name now;
- gateways go by this too, and do not wait for the operator's pass: other contents are allowed less at once, and never
  more than is stored. Who is allowed 0 stays so by name: hashes of another version could differ without any change;
- verdicts, history and reports have their own hashes, and a pause is the rollout's, whoever is the candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

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


def still_about(
    status: RolloutStatus | None, hashes: Mapping[str, str | None], ready: Collection[str] = ()
) -> RolloutStatus | None:
    """The status without positions of contents that are not there any more under their names.

    `ready`: the revisions that can take requests.
    """
    if status is None or not status.contents:
        return status
    others = {name for name, known in status.contents.items() if hashes.get(name) not in (None, known)}
    if not others:
        return status
    left = {name: limit for name, limit in (status.allowed or {}).items() if name not in others}
    promoted = {name: weight for name, weight in (status.promoted_to or {}).items() if name not in others}
    stable = status.stable
    if stable in others:
        stable = _stable_last(status, {n: h for n, h in hashes.items() if n in ready and n not in others}) or stable
    update: dict[str, object] = {"allowed": left or None, "promoted_to": promoted or None, "stable": stable}
    if status.candidate in others or status.candidate == stable:
        update |= dict.fromkeys(_OF_THE_CANDIDATE)
    kept = {name: known for name, known in status.contents.items() if name not in others}
    return status.model_copy(update={**update, "contents": kept or None})


def in_force(
    status: RolloutStatus | None, hashes: Mapping[str, str | None], ready: Collection[str], *, progressive: bool
) -> RolloutStatus:
    """What weights follow from, for a status that is stored; arguments as above."""
    left = still_about(status, hashes, ready)
    if status is None or left is None:
        return RolloutStatus()
    # who is not named gets nothing in mode Progressive, and all that the spec gives in mode Manual
    same = (left.allowed or {}) if progressive else (status.allowed or {})
    kept = {name: limit for name, limit in (status.allowed or {}).items() if not limit or name in same}
    return left.model_copy(update={"allowed": kept or None})


def _stable_last(status: RolloutStatus, hashes: Mapping[str, str | None]) -> str | None:
    """Whose contents were the stable ones last, and were not rejected since."""
    told: set[str] = set()
    rejected = {v.content_hash for v in status.verdicts or ()}
    for line in reversed(status.history or ()):
        names = [name for name, found in hashes.items() if found == line.content_hash]
        if line.outcome == "Stable" and names and line.content_hash not in told | rejected:
            return line.revision if line.revision in names else names[0]
        told.add(line.content_hash)
    return None


def with_contents(
    status: RolloutStatus, before: RolloutStatus | None, hashes: Mapping[str, str | None]
) -> RolloutStatus:
    """The status with whom its positions are about."""
    known = (before.contents if before else None) or {}
    about = {*(status.allowed or ()), *(name for name in (status.candidate, status.stable) if name)}
    found = {name: hashes.get(name) or known.get(name) for name in sorted(about)}
    return status.model_copy(update={"contents": {n: h for n, h in found.items() if h} or None})
