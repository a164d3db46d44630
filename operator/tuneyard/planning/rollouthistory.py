"""What has been of a deployment's contents: who was stable, and who was rejected, by content hash.

The history is bounded. What goes first are lines that a later one of the same contents makes obsolete, then contents
that were rejected last: one revision that is tried and rejected over and over must not take the way back from others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from tuneyard.api.rollout import MAX_HISTORY, Outcome, RolloutStatus, Verdict
from tuneyard.planning.rolloutseen import Seen


def was_stable(seen: Seen, status: RolloutStatus, revision: str) -> bool:
    """Whether these contents have been stable before, and were not rejected since."""
    found = seen.hashes[revision]
    last = next((o.outcome for o in reversed(status.history or ()) if o.content_hash == found), None)
    return last == "Stable"


def with_history(seen: Seen, status: RolloutStatus) -> RolloutStatus:
    """The history with what is new: a verdict, and in mode Progressive a stable revision."""
    history = list(status.history or ())
    known: list[Verdict] = list((seen.before.verdicts if seen.before else None) or ())
    for verdict in reversed(status.verdicts or ()):
        line = Outcome(
            revision=verdict.revision, content_hash=verdict.content_hash, outcome="Rejected", at=verdict.at,
            reason=verdict.reason,
        )  # fmt: skip
        if verdict not in known and line not in history:
            history.append(line)
    stable = status.stable if seen.spec.progressive and status.stable in seen.listed else None
    found = seen.hashes[stable] if stable else None
    last = next((o.content_hash for o in reversed(history) if o.outcome == "Stable"), None)
    if stable and found and found != last:
        history.append(Outcome(revision=stable, content_hash=found, outcome="Stable", at=seen.stamp))
    return status.model_copy(update={"history": bounded(history) or None, "verdicts": status.verdicts or None})


def bounded(history: Sequence[Outcome]) -> list[Outcome]:
    """The lines that are kept, MAX_HISTORY at most, in their order."""
    kept = list(history)
    while len(kept) > MAX_HISTORY:
        newest = {line.content_hash: at for at, line in enumerate(kept)}
        obsolete = (at for at, line in enumerate(kept) if newest[line.content_hash] != at)
        rejected = (at for at, line in enumerate(kept) if line.outcome == "Rejected")
        del kept[next(chain(obsolete, rejected), 0)]
    return kept
