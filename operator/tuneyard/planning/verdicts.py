"""Verdicts: which contents get no traffic, when one is given, and when it is dropped.

Rules (rollout.md 3):
- a verdict is keyed by contents; it goes only with new contents, with the revision, or when it is tried once more
  (another spec.rollout.retryToken, or the command retry). The stable revision is never under one;
- what is given here needs no statistics: a candidate's own pods that keep crashing while none is ready (not those that
  were made for what had the name before: they are being replaced), files or an engine that refuse its adapter, no ready
  pod for progressDeadline. What may be the cluster's fault (no node, no room, a source that does not answer, a shared
  pool that restarts) only counts towards the deadline;
- the deadline runs only while stable has a ready pod: when nothing is ready, nothing speaks against the candidate;
- while stable has no ready pod, who is rejected keeps what it serves now: all of its share would be refused otherwise,
  also by a command. Weight 0 in the spec takes it away at once;
- contents that are not known (an object is missing) neither get a verdict nor lose one, and no deadline runs for them:
  no pod could try them. Nor does one run while their base is being built: it begins when there is something to start.
"""

from __future__ import annotations

from tuneyard.api import names
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import MAX_VERDICTS, RolloutStatus, Verdict
from tuneyard.api.schema import seconds
from tuneyard.planning.built import as_built
from tuneyard.planning.children import template_hash
from tuneyard.planning.loraadapter import INCOMPATIBLE
from tuneyard.planning.observations import PodObservation, Problem, problem_of
from tuneyard.planning.podreport import failed_with
from tuneyard.planning.pools import pool_for
from tuneyard.planning.remedies import clipped
from tuneyard.planning.revisions import RevisionState, cause
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.timestamps import parsed_time, remaining

PROGRESS_DEADLINE = "1h"

REFUSED_FILES = INCOMPATIBLE | {Reason.DIGEST_MISMATCH, Reason.LOAD_REFUSED, Reason.CANNOT_GENERATE}
"""What a pod says of contents that will be no better on another one."""

MAY_PASS = frozenset({Reason.LOAD_REFUSED, Reason.CANNOT_GENERATE})
"""Of these, what an engine under load or a neighbour's NaN brings about too: they count when the pod says they last."""

_BUILDING = frozenset({Reason.BUILD_PENDING, Reason.BUILD_RUNNING})


def kept_verdicts(seen: Seen, verdicts: list[Verdict], stable: str | None) -> list[Verdict]:
    """Those of the verdicts that still hold, the newest first."""
    others = [name for name in seen.listed if name != stable]
    known = {seen.hashes[name] for name in others}
    unknown = {name for name in others if seen.hashes[name] is None}
    token = seen.rollout.retry_token
    return [
        v
        for v in verdicts
        if (v.content_hash in known or v.revision in unknown) and (not token or token == v.retry_token)
    ]


def verdict_on(seen: Seen, status: RolloutStatus, revision: str) -> Verdict | None:
    """The verdict on a revision: on its contents, or while these are not known on its name."""
    return None if revision == status.stable else status.rejects(seen.hashes[revision], revision)


def serves_on(seen: Seen, revision: str, stable: str | None) -> int:
    """What a revision with a verdict keeps, in percent: as much as it served when it was rejected, no more.

    0 where somebody else can take that. What was taken away already does not come back, and a status that was lost, or
    another name of the same contents, gives nothing back either.
    """
    if stable not in seen.listed or seen.ready[stable] or stable in seen.on_demand:
        return 0
    if not seen.spec.weight_of(revision):
        return 0
    known = seen.limit_before(revision)
    if seen.was_rejected(revision):
        return known
    # a status that was never written gives gateways the spec's weights, in mode Manual
    stored = seen.deployment.status.rollout is not None
    served = seen.served.get(revision, 0) if stored else 0
    return min(known, served) if seen.spec.progressive else served


def until_stable(stable: str | None) -> str:
    """What is said of one that serves on."""
    return f"serves on until {stable} has a ready pod; weight 0 stops it at once"


def new_verdict(seen: Seen, revision: str, why: Problem) -> Verdict | None:
    """A verdict on what the revision serves; None while nobody knows what that is."""
    found = seen.hashes[revision]
    if found is None:
        return None
    return Verdict(
        revision=revision,
        content_hash=found,
        reason=why.reason.value,
        evidence=clipped(why.message),
        at=seen.stamp,
        retry_token=seen.rollout.retry_token,
    )


def with_verdict(verdicts: list[Verdict], verdict: Verdict) -> list[Verdict]:
    """The verdicts and this one in place of an older one on the same contents."""
    others = [v for v in verdicts if v.content_hash != verdict.content_hash]
    return [verdict, *others][:MAX_VERDICTS]


def failure(seen: Seen, revision: str, stable: str) -> Problem | None:
    """What shows at once that the revision cannot serve."""
    state = seen.states[revision]
    if seen.ready[revision] or state.revision.external is not None:
        return None
    shared = state.pool in (names.pool_name(state.revision.base_model), seen.states[stable].pool)
    crashing = None if shared else problem_of(_own_pods(seen, state))
    if crashing is not None and crashing.reason is Reason.ENGINE_CRASHED:
        return crashing
    if not seen.ready[stable]:
        return None
    why = cause(state)
    refused = why.reason in REFUSED_FILES and (why.reason not in MAY_PASS or _lasts(state))
    return why if refused else None


def _own_pods(seen: Seen, state: RevisionState) -> list[PodObservation]:
    """The pods that were made from what the revision says now; those that do not say from what count too."""
    if state.base is None or state.violation is not None or not any(p.problem for p in state.pods):
        return []
    pool = pool_for(state.base, seen.deployment, state.revision)
    # pods are made from what a build has made, the pool's volumes from the base as it is written
    mark = template_hash(pool, as_built(state.base) or state.base, seen.settings)
    return [p for p in state.pods if p.wanted_as in ("", mark)]


def _lasts(state: RevisionState) -> bool:
    """Whether a pod has failed with its adapter often enough; agents that do not say so have not."""
    said = (p.report.adapters.get(state.revision.adapter or "") for p in state.pods if p.report)
    return any(r.lasting and failed_with(r, state.adapter) for r in said if r and state.adapter)


def waiting_since(seen: Seen, status: RolloutStatus, revision: str, stable: str) -> str | None:
    """Since when the revision has had no ready pod though stable had one; None: that is not so, or does not count."""
    if seen.ready[revision] or not seen.ready[stable] or paused(seen, status) or revision in seen.on_demand:
        return None
    if seen.hashes[revision] is None or _is_being_built(seen.states.get(revision)):
        return None
    before = seen.before
    known = before.waiting_since if before is not None and before.candidate == revision else None
    return known or seen.stamp


def _is_being_built(state: RevisionState | None) -> bool:
    """Whether its base is still made, which has a time limit of its own (build.timeout) and takes hours."""
    if state is None or state.base is None or as_built(state.base) is not None:
        return False
    return cause(state).reason in _BUILDING


def paused(seen: Seen, status: RolloutStatus) -> bool:
    """Whether no step may be taken."""
    return bool(seen.rollout.paused or status.paused)


def deadline_left(seen: Seen, since: str | None) -> float | None:
    """Seconds of progressDeadline that are left; None while it does not run."""
    moment = parsed_time(since)
    return None if moment is None else remaining(moment, seconds(_deadline(seen)), seen.now)


def overdue(seen: Seen, revision: str, since: str | None) -> Problem | None:
    """The deadline, when it is over."""
    left = deadline_left(seen, since)
    if left is None or left > 0:
        return None
    why = cause(seen.states[revision])
    words = (
        f"no ready pod since {since}, longer than progressDeadline {_deadline(seen)} ({why.reason.value}: {why.message}"
    )
    return Problem(Reason.PROGRESS_DEADLINE_EXCEEDED, clipped(words.rstrip(". ")) + ")")


def _deadline(seen: Seen) -> str:
    return seen.rollout.progress_deadline or PROGRESS_DEADLINE
