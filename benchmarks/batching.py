"""An engine's continuous batching, its load, and what it is asked: pure, in seconds of whatever clock it is told.

Rules:
- an engine does one step after the other while anybody is there. A step takes longer with every sequence in it and
  with every prompt token that it reads; at its end every sequence whose prompt has been read has one token more;
- a prompt is read in pieces, beside the sequences that decode already: who came first reads first;
- who finds no place, or no room in the KV cache, waits, in order. Where the cache is full before a step, the newest
  sequence gives way: it goes back to the front of the queue and reads again what it had (vLLM's preemption);
- a step ends when the model says, however late the process asks: an engine on a busy machine is not slower for it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


@dataclass(frozen=True)
class Speed:
    """What a step takes, in seconds, and what an engine holds."""

    step: float = 0.004
    """With nothing in it."""
    sequence: float = 0.0002
    """More for each sequence that decodes."""
    prompt: float = 0.000025
    """More for each token of a prompt."""
    chunk: int = 512
    """Tokens of prompts in one step, at most."""
    places: int = 16
    cache: int = 8000
    """Tokens of the sequences that run."""

    def slower(self, times: float) -> Speed:
        """The same engine on a slower machine."""
        return Speed(self.step * times, self.sequence * times, self.prompt * times, self.chunk, self.places, self.cache)


class Request(NamedTuple):
    """What is asked, in tokens."""

    prompt: int
    output: int


class What(Enum):
    """What becomes of a request."""

    FIRST = "first token"
    LAST = "last token"


class Told(NamedTuple):
    """One thing that has become of one request."""

    at: float
    key: int
    what: What


class Load(NamedTuple):
    """What vLLM says of itself: num_requests_running, num_requests_waiting, kv_cache_usage_perc (0 to 1)."""

    running: int
    waiting: int
    cache: float


@dataclass
class _Sequence:
    key: int
    unread: int
    """Tokens still to be read before the next one can be made."""
    held: int
    """Tokens in the cache."""
    left: int
    """Tokens to be made."""
    begun: bool = False


class Engine:
    """One engine. `arrive` and `advance` take times that never go back."""

    def __init__(self, speed: Speed) -> None:
        self._speed = speed
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._reads: dict[int, int] = {}
        """Tokens of prompts in the step that is going on, by key."""
        self._ends: float | None = None
        """When the step ends; None: nobody is there."""
        self.gave_way = 0
        """Sequences that had to, ever."""

    @property
    def next_at(self) -> float | None:
        """When something may be told next."""
        return self._ends

    def load(self) -> Load:
        """As it is at the last time that was told."""
        return Load(len(self._running), len(self._waiting), self._held() / self._speed.cache)

    def arrive(self, now: float, key: int, request: Request) -> None:
        """Take a request; ValueError for one that never fits. What ended before `now` has to be asked for first."""
        if request.prompt + request.output > self._speed.cache:
            raise ValueError(f"{request.prompt} and {request.output} tokens are more than {self._speed.cache}")
        self._waiting.append(_Sequence(key, unread=request.prompt, held=0, left=request.output))
        if self._ends is None:
            self._begin(now)

    def advance(self, now: float) -> list[Told]:
        """What has become of requests until now, in order."""
        told: list[Told] = []
        while self._ends is not None and self._ends <= now:
            at = self._ends
            self._end(at, told)
            self._begin(at)
        return told

    def _held(self) -> int:
        return sum(s.held for s in self._running)

    def _make_room(self) -> None:
        """Whoever decodes needs room for one token."""
        while len(self._running) > 1 and self._held() + len(self._running) > self._speed.cache:
            newest = self._running.pop()
            newest.unread, newest.held = newest.unread + newest.held, 0
            self._waiting.appendleft(newest)
            self.gave_way += 1

    def _admit(self) -> None:
        promised = sum(s.held + s.unread for s in self._running)
        while self._waiting and len(self._running) < self._speed.places:
            needed = self._waiting[0].unread
            if promised + needed + len(self._running) + 1 > self._speed.cache:
                return
            promised += needed
            self._running.append(self._waiting.popleft())

    def _begin(self, now: float) -> None:
        self._make_room()
        self._admit()
        if not self._running:
            self._ends = None
            return
        budget, self._reads = self._speed.chunk, {}
        for sequence in self._running:
            reads = min(budget, sequence.unread)
            if reads:
                self._reads[sequence.key] = reads
                budget -= reads
        decoding = sum(not s.unread for s in self._running)
        read = self._speed.chunk - budget
        self._ends = now + self._speed.step + decoding * self._speed.sequence + read * self._speed.prompt

    def _end(self, at: float, told: list[Told]) -> None:
        for sequence in self._running:
            reads = self._reads.get(sequence.key, 0)
            sequence.unread -= reads
            sequence.held += reads
            if sequence.unread:
                continue
            sequence.held += 1
            sequence.left -= 1
            if not sequence.begun:
                sequence.begun = True
                told.append(Told(at, sequence.key, What.FIRST))
            if not sequence.left:
                told.append(Told(at, sequence.key, What.LAST))
        self._running = [s for s in self._running if s.left]


class Recent:
    """A value and a rate of the last seconds: what is older counts less and less."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._at = 0.0
        self.value = 0.0
        self.per_second = 0.0

    def seen(self, now: float, value: float) -> None:
        """One event at this time, when the value was that."""
        kept = math.exp(-(now - self._at) / self._seconds)
        self.value = kept * self.value + (1 - kept) * value
        self.per_second = kept * self.per_second + 1 / self._seconds
        self._at = now


def busy(load: Load, places: int) -> float:
    """How much of the engine is in use: of its places, those who wait counted too, or of its cache. May be above 1."""
    return max((load.running + load.waiting) / places, load.cache)


FULL = 20


def weight_of(use: float) -> int:
    """The weight of an engine that is so busy: how much of it is free, in thousandths.

    One that is full has FULL still: where all are, all have the same, and Envoy is back at comparing two of them.
    """
    return max(FULL, round(1000 * (1 - use)))


def asked(chance: random.Random) -> Request:
    """One request: both lengths are log-normal, and of fifty answers one is very long."""
    prompt = min(3000, max(8, round(chance.lognormvariate(math.log(200), 0.9))))
    if chance.random() < 0.02:
        return Request(prompt, chance.randrange(300, 500))
    return Request(prompt, min(300, max(2, round(chance.lognormvariate(math.log(60), 0.7)))))


def per_second(speed: Speed, *, requests: int = 2000, seed: int = 1) -> float:
    """Requests a second that an engine answers while it always has more to do."""
    chance, engine, now, done = random.Random(seed), Engine(speed), 0.0, 0
    for key in range(requests):
        engine.arrive(0.0, key, asked(chance))
    while done < requests // 2:  # the end is not like the rest: places are left empty
        now = engine.next_at or now
        done += sum(told.what is What.LAST for told in engine.advance(now))
    return done / now
