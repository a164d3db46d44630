"""The benchmark: candidate and stable are asked alternately, under one load.

Rules:
- a pair of requests has the same prompt and is asked one after the other by the same worker, the candidate first in
  every other pair: whatever else goes on in the engines hits both alike;
- no prompt comes twice, so that no engine answers from its prefix cache what it had to compute for the other;
- a request that no pod could take (a drained node, an engine that restarts) is no fault of either: then nothing was
  measured. One that an engine answers with an error is;
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
    """Nobody answers: there is nothing to measure."""


def prompts(tokens: int) -> Iterator[str]:
    """Prompts of about that many tokens, each another one, and none that an earlier run had."""
    drawn, words = random.SystemRandom(), _WORDS.split()
    while True:
        yield " ".join(drawn.choices(words, k=tokens))


async def run(asker: Asker, gate: Benchmark, *, candidate: str, stable: str) -> GateReport:
    """All requests; raises UnreachableError or MisroutedError."""
    load = _Load(asker, gate, candidate, stable)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(gate.concurrency or CONCURRENCY, gate.requests or REQUESTS)):
                group.create_task(load.worker(number))
    except* (UnreachableError, MisroutedError) as errors:
        raise errors.exceptions[0] from None
    return load.report()


class _Load:
    """The requests of all workers, and what came of them."""

    def __init__(self, asker: Asker, gate: Benchmark, candidate: str, stable: str) -> None:
        self._asker = asker
        self._tokens = gate.max_tokens or MAX_TOKENS
        self._candidate = candidate
        self._stable = stable
        self._prompts = prompts(gate.prompt_tokens or PROMPT_TOKENS)
        self._wanted = gate.requests or REQUESTS
        self._left = iter(range(self._wanted))
        self._done = 0
        asker.is_at(0, self._wanted)
        self._found: dict[str, list[Answer]] = {candidate: [], stable: []}
        self._samples: list[Sample] = []
        self._unreached = 0

    async def worker(self, number: int) -> None:
        """A pair that does not count, then pairs as long as there are any left."""
        await self._pair(number, counts=False)
        for index in self._left:
            await self._pair(index, counts=True)
            self._done += 1
            self._asker.is_at(self._done, self._wanted)

    async def _pair(self, number: int, *, counts: bool) -> None:
        text = next(self._prompts)
        both = (self._candidate, self._stable)
        for revision in both if number % 2 == 0 else both[::-1]:
            answer = await self._asker.ask(revision, {"prompt": text, "max_tokens": self._tokens, "temperature": 0})
            self._unreached = 0 if answer.reached else self._unreached + 1
            if self._unreached >= _UNREACHED:
                raise UnreachableError(f"the gateway does not answer ({answer.error})")
            if counts:
                self._found[revision].append(answer)
            if counts and revision == self._candidate and len(self._samples) < _SAMPLES:
                self._samples.append(sample(text, answer))

    def report(self) -> GateReport:
        """The numbers; raises UnreachableError where requests found no pod."""
        for revision, answers in self._found.items():
            unserved = [a for a in answers if not a.served]
            if unserved:
                raise UnreachableError(
                    f"no pod took {len(unserved)} of the requests to {revision} ({unserved[0].error})"
                )
        candidate, stable = (side(self._found[r]) for r in (self._candidate, self._stable))
        return GateReport(benchmark=BenchmarkNumbers(candidate=candidate, stable=stable), samples=self._samples)


def sample(prompt: str, answer: Answer, check: str | None = None, score: float | None = None) -> Sample:
    """A prompt and its answer, or its error, cut."""
    said = answer.text if answer.error is None else f"({answer.error})"
    return Sample(prompt=prompt[:_SAMPLE_CHARACTERS], answer=said[:_SAMPLE_CHARACTERS], check=check, score=score)
