"""The benchmark: candidate and stable are asked alternately, under one load.

Rules:
- a pair of requests has the same prompt and is asked one after the other by the same worker, the candidate first in
  every other pair: whatever else goes on in the engines hits both alike;
- no prompt comes twice, so that no engine answers from its prefix cache what it had to compute for the other;
- the first requests of each worker are not counted: kernels are compiled and connections made in them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from tuneyard.api.gatereports import BenchmarkNumbers, GateReport, Sample
from tuneyard.api.gates import Benchmark
from tuneyard.gate.asking import Answer, Asker, MisroutedError
from tuneyard.gate.measures import side

REQUESTS, CONCURRENCY, PROMPT_TOKENS, MAX_TOKENS = 200, 8, 128, 64
_SAMPLES, _SAMPLE_CHARACTERS = 3, 160
_UNREACHED = 5
_WORDS = (
    "about after again air all along also always and answer around ask back because been before began being below "
    "between big book both boy but call came can car change children city close cold come could country cut day "
    "did different does done door down draw each early earth eat end enough even every eye face family far "
    "farm father feet few find fire first fish five follow food for form found four friend from front gave "
    "get girl give going gold good got great green ground group grow had half hand hard has have head hear help her "
    "here high him his home horse hour house how hundred idea inch into just keep kind king knew know land large last "
    "later laugh lay lead learn leave left let letter life light like line list listen little live long look love low"
)


class UnreachableError(Exception):
    """Nobody answers at all: there is nothing to measure."""


def prompts(tokens: int) -> Iterator[str]:
    """Prompts of about that many tokens, each another one, and none that an earlier run had."""
    drawn, words = random.SystemRandom(), _WORDS.split()
    while True:
        yield " ".join(drawn.choices(words, k=tokens))


async def run(asker: Asker, gate: Benchmark, *, candidate: str, stable: str) -> GateReport:
    """All requests; raises UnreachableError or MisroutedError."""
    workers = min(gate.concurrency or CONCURRENCY, gate.requests or REQUESTS)
    texts = prompts(gate.prompt_tokens or PROMPT_TOKENS)
    found: dict[str, list[Answer]] = {candidate: [], stable: []}
    samples: list[Sample] = []
    left = iter(range(gate.requests or REQUESTS))
    unreached = 0

    async def pair(number: int, *, counts: bool) -> None:
        nonlocal unreached
        text = next(texts)
        body = {"prompt": text, "max_tokens": gate.max_tokens or MAX_TOKENS, "temperature": 0}
        for revision in (candidate, stable) if number % 2 == 0 else (stable, candidate):
            answer = await asker.ask(revision, body)
            unreached = 0 if answer.reached else unreached + 1
            if unreached >= _UNREACHED:
                raise UnreachableError(f"the gateway does not answer ({answer.error})")
            if counts:
                found[revision].append(answer)
            if counts and revision == candidate and len(samples) < _SAMPLES:
                samples.append(sample(text, answer))

    async def worker(number: int) -> None:
        await pair(number, counts=False)
        for index in left:
            await pair(index, counts=True)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(workers):
                group.create_task(worker(number))
    except* (UnreachableError, MisroutedError) as errors:
        raise errors.exceptions[0] from None
    numbers = BenchmarkNumbers(candidate=side(found[candidate]), stable=side(found[stable]))
    return GateReport(benchmark=numbers, samples=samples)


def sample(prompt: str, answer: Answer, check: str | None = None, score: float | None = None) -> Sample:
    """A prompt and its answer, or its error, cut."""
    said = answer.text if answer.error is None else f"({answer.error})"
    return Sample(prompt=prompt[:_SAMPLE_CHARACTERS], answer=said[:_SAMPLE_CHARACTERS], check=check, score=score)
