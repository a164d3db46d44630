"""Commands for people in a hurry: the annotation tuneyard.dev/command, `{"id", "action", "revision", "contentHash"}`.

Rules:
- a command is carried out once: its effect and the acknowledgement by its id are written in one status. The ids of the
  last MAX_COMMANDS are in the record too, so that neither a lost status, nor a re-created object, nor a tool that
  applies an old annotation after a newer one brings an old command back: it is refused, and that is told once;
- one that does not fit is refused in words and changes nothing: whoever sent it had something else before his eyes. It
  may say by contentHash (of status.rollout.contents) what that was, and fits no other contents of the name;
- promote is about the candidate that it names, and about no other that takes its place in the same pass. It climbs to
  the spec weight that stands now: a higher one later is reached by the steps that are left (rolloutposition.py).
  Nothing goes against spec.rollout.paused, which stands in Git.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuneyard.api import names
from tuneyard.api.reasons import Reason
from tuneyard.api.rollout import MAX_COMMANDS, LastCommand, RolloutStatus
from tuneyard.planning.gates import skipped_words
from tuneyard.planning.observations import Problem
from tuneyard.planning.remedies import clipped
from tuneyard.planning.rolloutseen import Seen
from tuneyard.planning.verdicts import failure, new_verdict, serves_on, until_stable, verdict_on, with_verdict

_LIMIT = 63


@dataclass(frozen=True)
class Command:
    """What the annotation asks for. `problem`: why it cannot be read."""

    id: str
    action: str
    revision: str | None = None
    problem: str | None = None
    content_hash: str | None = None
    """What the revision is to be; None: whatever it is."""


@dataclass(frozen=True)
class Obeyed:
    """The status after the command. `promoted`: who is to have its spec weight, and bakes no longer."""

    status: RolloutStatus
    promoted: str | None = None


class _RefusedError(Exception):
    """Why a command does not fit."""


def given(seen: Seen) -> Command | None:
    """The command that was not answered yet."""
    text = seen.deployment.metadata.annotations.get(names.ANNOTATION_COMMAND)
    if not text:
        return None
    command = parsed_command(text)
    last = seen.before.last_command if seen.before else None
    return None if last is not None and last.id == command.id else command


def parsed_command(text: str) -> Command:
    """The command in an annotation; one that cannot be read is known by the hash of its text."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    unread = Command(names.short_hash(text), "?", problem='write {"id": "...", "action": "...", "revision": "..."}')
    if not isinstance(found, Mapping):
        return unread
    parts = {key: found.get(key) for key in ("id", "action", "revision", "contentHash")}
    if not all(value is None or isinstance(value, str) for value in parts.values()):
        return unread
    if not parts["id"] or not parts["action"] or any(len(v) > _LIMIT for v in parts.values() if v):
        return unread
    return Command(parts["id"], parts["action"], parts["revision"] or None, content_hash=parts["contentHash"])


def obey(seen: Seen, status: RolloutStatus, command: Command | None, candidate: str | None) -> Obeyed:
    """Carry the command out, or refuse it. `candidate`: the one that it may be about now."""
    if command is None:
        return Obeyed(status)
    action = _ACTIONS.get(command.action)
    try:
        if command.id in _known_ids(seen):
            raise _RefusedError(f"a command with the id {command.id} was given before: give another id to repeat it")
        if command.problem or action is None:
            raise _RefusedError(command.problem or f"there is no action {command.action}: {', '.join(_ACTIONS)}")
        if command.content_hash and seen.hashes.get(command.revision or "") not in (None, command.content_hash):
            raise _RefusedError(
                f"{command.revision} has other contents now than those that the command means: look at it again"
            )
        done, words = action(seen, status, command, candidate)
    except _RefusedError as refusal:
        answered = _answer(seen, command, str(refusal), accepted=False)
        return Obeyed(_answered(seen, status, answered))
    answered = _answer(seen, command, words, accepted=True)
    return Obeyed(_answered(seen, done, answered), candidate if command.action == "promote" else None)


def unless_rejected(seen: Seen, status: RolloutStatus, promoted: str | None) -> RolloutStatus:
    """With another answer where who was promoted has got a verdict in the same pass: it changes nothing, for nobody."""
    verdict = verdict_on(seen, status, promoted) if promoted is not None else None
    if verdict is None or status.last_command is None:
        return status
    words = clipped(f"{promoted} is rejected now ({verdict.reason}: {verdict.evidence}): retry it first")
    answer = status.last_command.model_copy(update={"accepted": False, "message": words})
    paused = seen.before.paused if seen.before else None
    return status.model_copy(update={"last_command": answer, "paused": paused})


def _known_ids(seen: Seen) -> list[str]:
    """Ids that were answered; an older operator kept the last one only."""
    before = seen.before or RolloutStatus()
    last = [before.last_command.id] if before.last_command else []
    return list(before.command_ids or last)


def _answered(seen: Seen, status: RolloutStatus, answer: LastCommand) -> RolloutStatus:
    ids = [*(i for i in _known_ids(seen) if i != answer.id), answer.id]
    return status.model_copy(update={"last_command": answer, "command_ids": ids[-MAX_COMMANDS:]})


def _answer(seen: Seen, command: Command, words: str, *, accepted: bool) -> LastCommand:
    return LastCommand(
        id=command.id,
        action=command.action,
        revision=command.revision,
        accepted=accepted,
        message=clipped(words),
        at=seen.stamp,
    )


_Done = tuple[RolloutStatus, str]


def _abort(seen: Seen, status: RolloutStatus, command: Command, candidate: str | None) -> _Done:
    revision = _served_beside(seen, status, command) or _named(command, candidate)
    if status.stable is None:
        raise _RefusedError(f"no revision is stable yet: nothing would serve instead of {revision}")
    if verdict_on(seen, status, revision) is not None:
        raise _RefusedError(f"{revision} is rejected already")
    verdict = new_verdict(seen, revision, Problem(Reason.ABORTED, f"ended by command {command.id}"))
    if verdict is None:
        raise _RefusedError(f"{revision} names something that does not exist: it gets no traffic anyway")
    verdicts = with_verdict(list(status.verdicts or ()), verdict)
    gets = "gets no traffic" if not serves_on(seen, revision, status.stable) else until_stable(status.stable)
    return status.model_copy(update={"verdicts": verdicts}), f"{revision} is rejected and {gets}"


def _promote(seen: Seen, status: RolloutStatus, command: Command, candidate: str | None) -> _Done:
    revision = _named(command, candidate)
    _must_be_progressive(seen)
    if seen.rollout.paused:
        raise _RefusedError("spec.rollout.paused is true: set it to false first")
    if verdict_on(seen, status, revision) is not None:
        raise _RefusedError(f"{revision} is rejected: retry it first")
    if not seen.ready[revision]:
        raise _RefusedError(f"{revision} has no ready pod")
    words = f"{revision} gets its spec weight, {seen.spec.weight_of(revision)} %{skipped_words(seen, revision)}"
    return status.model_copy(update={"paused": None}), words


def _pause(seen: Seen, status: RolloutStatus, command: Command, candidate: str | None) -> _Done:
    _must_be_progressive(seen)
    revision = _matching(command, candidate)
    if revision is None:
        raise _RefusedError("no rollout is under way")
    return status.model_copy(update={"paused": True}), f"{revision} stays where it is"


def _resume(seen: Seen, status: RolloutStatus, command: Command, candidate: str | None) -> _Done:
    _must_be_progressive(seen)
    _matching(command, candidate)
    if seen.rollout.paused:
        raise _RefusedError("spec.rollout.paused is true: set it to false instead")
    if not status.paused:
        raise _RefusedError("the rollout is not paused")
    return status.model_copy(update={"paused": None}), "steps are taken again"


def _retry(seen: Seen, status: RolloutStatus, command: Command, _candidate: str | None) -> _Done:
    revision = command.revision
    if revision is None:
        raise _RefusedError("name the revision that is to be tried once more")
    if revision not in seen.listed:
        raise _RefusedError(f"{revision} is not in spec.revisions ({', '.join(seen.listed)})")
    verdict = verdict_on(seen, status, revision)
    if verdict is None:
        raise _RefusedError(f"{revision} is not rejected")
    still = failure(seen, revision, status.stable) if status.stable in seen.listed and status.stable else None
    if still is not None and seen.spec.progressive:
        raise _RefusedError(f"{revision} still fails ({still.reason.value}: {still.message}): mend that first")
    left = [v for v in status.verdicts or () if v is not verdict]
    # what gates have found of it until now counts no more
    return status.model_copy(update={"verdicts": left, "gates_since": seen.stamp}), f"{revision} begins again"


def _served_beside(seen: Seen, status: RolloutStatus, command: Command) -> str | None:
    """The revision that is meant, where it has traffic beside stable: that one may be ended, candidate or not."""
    revision = command.revision
    return revision if revision != status.stable and seen.served.get(revision or "") else None


def _must_be_progressive(seen: Seen) -> None:
    if not seen.spec.progressive:
        raise _RefusedError("spec.rollout.mode is Manual: weights are the spec's, edit spec.traffic")


def _matching(command: Command, candidate: str | None) -> str | None:
    """The candidate, which a command that names a revision must mean."""
    if command.revision is not None and command.revision != candidate:
        now = f"the candidate is {candidate}" if candidate else "there is no candidate now"
        raise _RefusedError(f"the command means {command.revision}, and {now}")
    return candidate


def _named(command: Command, candidate: str | None) -> str:
    """The candidate, which the command must name."""
    if command.revision is None:
        raise _RefusedError("name the revision that is meant")
    found = _matching(command, candidate)
    if found is None:
        raise _RefusedError("there is no candidate now")
    return found


_ACTIONS: Mapping[str, Callable[[Seen, RolloutStatus, Command, str | None], _Done]] = {
    "abort": _abort,
    "promote": _promote,
    "pause": _pause,
    "resume": _resume,
    "retry": _retry,
}
