"""What a person can do about a reason, in one clause that follows the message.

Here stand the reasons that the operator finds by itself. What a pod reports of an artifact has its remedy in its own
message, where the details are known.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuneyard.api.reasons import Reason, reason_of
from tuneyard.planning.observations import Problem

TEXT_LIMIT = 1024
"""The longest text that the API takes in a status field."""

REMEDIES: dict[Reason, str] = {
    Reason.BASE_MODEL_NOT_FOUND: "create it in this namespace, or add a revision that names another",
    Reason.ADAPTER_NOT_FOUND: "create it in this namespace, or add a revision that names another",
    Reason.BASE_MODEL_MISMATCH: "add a revision whose baseModel is the adapter's",
    Reason.PARENT_IS_ADAPTER: "train again from the base model, with the data of both",
    Reason.MODEL_NAME_TAKEN: "choose another spec.modelName, or delete the other deployment",
    Reason.VOLUME_NOT_DECLARED: "add it to serving.artifactVolumes of the BaseModel",
    Reason.HOST_PATH_NOT_ALLOWED: "use a PersistentVolumeClaim, or allow the prefix in the chart",
    Reason.INVALID_SPEC: "correct the field",
    Reason.BUILD_FAILED: "mend what it names; deleting the Job (status.build.job) starts the next attempt at once",
    Reason.BUILD_INPUT_MISSING: "create it, or give it spec.digest (`tuneyard digest` prints it)",
    Reason.UNSCHEDULABLE: "add nodes that fit, or lower serving.resources, tensorParallelSize or replicas",
    Reason.UNKNOWN_ENGINE_VERSION: "see docs/howto/engine-settings.md for the versions that are known",
    Reason.IMAGE_PULL_FAILED: "check serving.image and the nodes' access to its registry",
    Reason.ENGINE_CRASHED: "see the container's log; often serving.resources, maxModelLen or extraArgs do not fit",
    Reason.POOL_FULL: "raise serving.lora.maxCpuLoras or replicas, lower copies, or remove revisions nobody needs",
    Reason.CANDIDATE_REJECTED: "roll out a mended one under a new name, or `tuneyard rollout retry` this one",
    Reason.GATEWAY_UNREACHABLE: "see the gateway pods; traffic goes on as it was",
}


def some_of(names: Sequence[str], most: int) -> str:
    """The first of the names, and how many there are beyond these."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def clipped(text: str, limit: int = TEXT_LIMIT) -> str:
    """The text, cut so that the API takes it, and without halves of characters, which it gives back as others."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def with_remedy(problem: Problem) -> str:
    """The problem's words, and what to do about it."""
    message = problem.message.strip().rstrip(".;") or problem.reason.doc.rstrip(".")
    remedy = REMEDIES.get(problem.reason)
    return clipped(f"{message}; {remedy}" if remedy else message)


def named(problem: Problem) -> str:
    """Reason, words and remedy, for texts that stand without a reason field beside them."""
    return clipped(f"{problem.reason.value}: {with_remedy(problem)}")


def unnamed(text: str) -> Problem | None:
    """The problem that `named` made the text of, without its remedy; None for any other text."""
    head, separator, words = text.partition(": ")
    reason = reason_of(head) if separator else None
    return Problem(reason, words.removesuffix(f"; {REMEDIES.get(reason)}")) if reason else None
