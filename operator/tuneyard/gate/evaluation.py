"""The evaluation: the candidate answers every prompt, and each answer is checked.

Rules:
- an answer that does not come counts as a bad one only where stable gives one to the same prompt; where that fails too
  nobody knows what the candidate would have said, and the gate cannot run. Where stable itself is evaluated (drift), an
  answer that does not come says nothing at all;
- a score is the mean over all prompts with that check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tuneyard.api.gatereports import EvaluationNumbers, GateReport, Sample
from tuneyard.api.gates import Evaluation
from tuneyard.gate.asking import Answer, Asker, MisroutedError
from tuneyard.gate.benchmark import UnreachableError, sample
from tuneyard.gate.judge import Grader, JudgeError
from tuneyard.gate.prompts import METRIC, Prompt, PromptsError, score

MAX_TOKENS = 256
_AT_ONCE = 8
_TRIES = 3
_PAUSE = 1.0
_SAMPLES = 6


async def run(
    asker: Asker,
    gate: Evaluation,
    prompts: Sequence[Prompt],
    grader: Grader | None,
    *,
    candidate: str,
    stable: str,
    digest: str | None = None,
) -> GateReport:
    """All prompts, whose digest is told with their scores; raises UnreachableError, MisroutedError, JudgeError or
    PromptsError.
    """
    slots = asyncio.Semaphore(_AT_ONCE)
    found: list[tuple[Prompt, float, Sample]] = []

    async def one(prompt: Prompt) -> None:
        async with slots:
            body = {**prompt.body, "max_tokens": gate.max_tokens or MAX_TOKENS, "temperature": 0}
            answer = await _known(asker, candidate, stable, body)
            if answer.error is not None:
                reached = 0.0
            elif prompt.check == "judge":
                if grader is None:
                    raise JudgeError("a prompt has a check judge, and the gate names no judge")
                reached = await grader.grade(prompt, answer.text)
            else:
                reached = await asyncio.to_thread(score, prompt, answer.text)
            found.append((prompt, reached, sample(prompt.words, answer, METRIC[prompt.check], round(reached, 3))))
            asker.is_at(len(found), len(prompts))

    asker.is_at(0, len(prompts))
    try:
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(one(prompt))
    except* (UnreachableError, MisroutedError, JudgeError, PromptsError) as errors:
        raise errors.exceptions[0] from None
    by_metric: dict[str, list[float]] = {}
    for prompt, reached, _ in found:
        by_metric.setdefault(METRIC[prompt.check], []).append(reached)
    numbers = EvaluationNumbers(
        prompts=len(found),
        prompts_digest=digest,
        scores={metric: round(sum(s) / len(s), 4) for metric, s in by_metric.items()},
        counts={metric: len(s) for metric, s in by_metric.items()},
    )
    # the worst first: that is what somebody wants to read
    worst = [s for _, _, s in sorted(found, key=lambda f: f[1])]
    return GateReport(evaluation=numbers, samples=worst[:_SAMPLES])


async def _known(asker: Asker, candidate: str, stable: str, body: dict[str, object]) -> Answer:
    """The candidate's answer; raises UnreachableError where nobody knows what it would have said."""
    answer = await _asked(asker, candidate, body)
    if not answer.served:
        raise UnreachableError(f"no pod of {candidate} answers ({answer.error})")
    if answer.error is not None and candidate == stable:
        raise UnreachableError(f"{stable} does not answer a prompt ({answer.error})")
    if answer.error is not None and (await _asked(asker, stable, body)).error is not None:
        raise UnreachableError(f"neither {candidate} nor {stable} answers ({answer.error})")
    return answer


async def _asked(asker: Asker, revision: str, body: dict[str, object]) -> Answer:
    """The answer; a pod that leaves, or a moment without one, is no answer of the revision."""
    answer = await asker.ask(revision, body)
    for number in range(1, _TRIES):
        if answer.error is None:
            break
        await asyncio.sleep(_PAUSE * number)
        answer = await asker.ask(revision, body)
    return answer
