"""How many tokens a request will take, before it has: an upper estimate, learned from the tenant's answers.

Rules:
- what the body says (max_tokens, max_completion_tokens, for each of its choices) bounds the answer; where it says
  nothing, the answer may be as long as the tenant's longest of late;
- the prompt is guessed by the request's bytes, at the most tokens a byte that the tenant's requests had of late;
- both go up at once and down slowly: a guess that is too low lets a budget be passed, one that is too high is given
  back when the answer ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuneyard.planning.limits import TOKENS, Kind, Limits

_DOWN = 0.05
"""Of the distance to what was seen, with each answer."""


@dataclass
class Guess:
    """Of one tenant."""

    per_byte: float = 0.5
    answer: float = 512.0

    def learn(self, size: int, prompt: int, completion: int) -> None:
        """An engine has counted."""
        if size:
            self.per_byte = _towards(self.per_byte, min(1.0, prompt / size))
        self.answer = _towards(self.answer, float(completion))

    def needs(self, limits: Limits, size: int, most: int | None, choices: int) -> dict[Kind, int]:
        """What a request takes of each limit. Where only a guess is over a limit, it is the limit."""
        prompt = math.ceil(size * self.per_byte)
        needs = {}
        for kind, limit in limits.items():
            if kind not in TOKENS:
                needs[kind] = 1
            elif most is not None:
                needs[kind] = prompt + most * choices
            else:
                needs[kind] = max(prompt, min(limit, prompt + math.ceil(self.answer) * choices))
        return needs


def _towards(now: float, seen: float) -> float:
    return seen if seen > now else now + (seen - now) * _DOWN
