"""How Envoy asks the gateway process for a tenant with limits (lua/quota.lua), and how it tells that a request ended.

Every line of the request log (requestlog.py) has the mark under which the request was asked for. What an Envoy that is
killed has not written is not heard of: planning/quotas.py lets such a request end after a while.
Who leaves before an answer begins has had an engine read the prompt: that counts, or budgets would not hold for those
who leave in time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tuneyard.systems.envoy.answers import BYTES_PER_TOKEN, ENGINE, Outcome, answer_of, tenant_of
from tuneyard.systems.envoy.documents import script
from tuneyard.systems.envoy.requestlog import Line, number

QUOTA_PATH = "/quota"
MARK_HEADER = "x-tuneyard-quota"
SIZE_HEADER, MOST_HEADER, CHOICES_HEADER = "x-tuneyard-size", "x-tuneyard-most", "x-tuneyard-choices"
"""Bytes of the body; most tokens of an answer, below 0 where the body says nothing; how many answers it wants."""
QUOTA_SECONDS = 3.0
"""How long Envoy waits for the process: longer than that waits for the other gateways."""
UNASKED = "-"
"""The mark of a request for which the process could not be asked."""


def quota_script() -> str:
    """What stands before `extract` beside tenants.lua."""
    return f"local QUOTA_MILLISECONDS = {int(QUOTA_SECONDS * 1000)}\n" + script("quota")


class Spent(NamedTuple):
    """A request of a tenant with limits has ended."""

    mark: str
    tenant: str
    size: int
    prompt: int
    completion: int
    counted: bool
    """By the engine, and for the whole answer."""

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.prompt + self.completion


def spent_of(lines: Iterable[Line]) -> list[Spent]:
    """What lines tell of requests that were asked for."""
    return [_spent(line) for line in lines if line.quota]


def _spent(line: Line) -> Spent:
    mark, tenant, size = line.quota, tenant_of(line), number(line.received)
    prompt, completion = number(line.prompt), number(line.completion)
    if line.whole:
        return Spent(mark, tenant, size, prompt, completion, True)
    chunks = number(line.chunks)
    answered = line.details == ENGINE and number(line.status) < 400
    if not chunks and not answered and not _left(line):
        return Spent(mark, tenant, size, 0, 0, False)
    return Spent(mark, tenant, size, prompt or size // BYTES_PER_TOKEN, max(completion, chunks), False)


def _left(line: Line) -> bool:
    """Whether its client did not wait for the answer of an engine that was asked."""
    if not number(line.attempt):
        return False
    answer = answer_of(line)
    return answer is not None and answer.outcome is Outcome.CLIENT_LEFT
