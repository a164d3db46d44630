"""What became of requests, for Prometheus: counts and histograms by namespace, deployment and revision.

Rules:
- a revision has series from its first answer on, and loses them when it is not routed any more;
- unlike evidence, all answers count, also those to requests that named their revision;
- a duration is that of an answer that ended well, a time to the first token that of any stream that had one;
- thousands of revisions have tens of thousands of lines: the texts before the numbers are made once, and the event loop
  gets its turn between the revisions of a page.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tuneyard.gateway.routemetrics import RouteMetrics
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.envoy.answers import Answer, Outcome

REQUESTS, FEEDBACK = "tuneyard_requests_total", "tuneyard_feedback_total"


class _Kind(NamedTuple):
    """A histogram."""

    name: str
    help: str
    edges: tuple[float, ...]
    """In seconds."""


DURATION = _Kind(
    "tuneyard_request_duration_seconds",
    "Time from a whole request to its whole answer, of those that ended well.",
    (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
FIRST_TOKEN = _Kind(
    "tuneyard_time_to_first_token_seconds",
    "Time from a whole request to the first token of its stream.",
    (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60),
)
BETWEEN_TOKENS = _Kind(
    "tuneyard_inter_token_latency_seconds",
    "Mean time between two tokens, of each stream.",
    (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1),
)
KINDS = (DURATION, FIRST_TOKEN, BETWEEN_TOKENS)
_AT_A_TIME = 50
"""Revisions whose lines are made without a turn for others: about a millisecond."""


class _Histogram:
    """One histogram of one revision."""

    __slots__ = ("_counts", "_edges", "_prefixes", "_sum")

    def __init__(self, kind: _Kind, labels: str) -> None:
        self._edges = kind.edges
        self._counts = [0] * (len(kind.edges) + 1)
        self._sum = 0.0
        bounds = [f'{kind.name}_bucket{{{labels},le="{edge}"}} ' for edge in (*map(float, kind.edges), "+Inf")]
        self._prefixes = (*bounds, f"{kind.name}_sum{{{labels}}} ", f"{kind.name}_count{{{labels}}} ")

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._edges, seconds)] += 1
        self._sum += seconds

    def lines(self) -> Iterator[str]:
        total = 0
        *bounds, sum_, count = self._prefixes
        for prefix, number in zip(bounds, self._counts, strict=True):
            total += number
            yield f"{prefix}{total}\n"
        yield f"{sum_}{self._sum}\n"
        yield f"{count}{total}\n"


class _Revision:
    """All series of one revision."""

    __slots__ = ("_labels", "histograms", "outcomes", "ratings")

    def __init__(self, deployment: str, revision: str) -> None:
        namespace, _, name = deployment.partition("/")
        # names of Kubernetes objects: nothing in them needs escaping
        self._labels = f'namespace="{namespace}",deployment="{name}",revision="{revision}"'
        self.outcomes: dict[Outcome, int] = {}
        self.ratings: dict[str, int] = {}
        self.histograms: dict[str, _Histogram] = {}

    def take(self, answer: Answer) -> None:
        self.outcomes[answer.outcome] = self.outcomes.get(answer.outcome, 0) + 1
        if answer.outcome is Outcome.OK:
            self._observe(DURATION, answer.took)
        if answer.ttft is not None:
            self._observe(FIRST_TOKEN, answer.ttft)
        if answer.itl is not None:
            self._observe(BETWEEN_TOKENS, answer.itl)

    def _observe(self, kind: _Kind, milliseconds: float) -> None:
        histogram = self.histograms.get(kind.name)
        if histogram is None:
            histogram = self.histograms[kind.name] = _Histogram(kind, self._labels)
        histogram.observe(milliseconds / 1000)

    def requests(self) -> Iterator[str]:
        for outcome, count in self.outcomes.items():
            yield f'{REQUESTS}{{{self._labels},outcome="{outcome.value}"}} {count}\n'

    def feedback(self) -> Iterator[str]:
        for rating, count in self.ratings.items():
            yield f'{FEEDBACK}{{{self._labels},rating="{rating}"}} {count}\n'


class AnswerMetrics:
    """One instance per process."""

    def __init__(self) -> None:
        self._routed: dict[str, frozenset[tuple[str, str]]] = {}
        """By model, its revisions: (`namespace/name` of the deployment, revision)."""
        self._uses: dict[tuple[str, str], int] = {}
        """How many models route a revision: two for a while, where a deployment changes its model's name."""
        self._revisions: dict[tuple[str, str], _Revision] = {}
        self._routes = RouteMetrics()

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """A model is routed like this from now on, None: not any more."""
        self._routes.routed(model, routes)
        before, after = self._routed.pop(model, frozenset()), frozenset[tuple[str, str]]()
        if routes is not None:
            after = frozenset((f"{routes.namespace}/{routes.deployment}", r.name) for r in routes.revisions)
            self._routed[model] = after
        for key in after - before:
            self._uses[key] = self._uses.get(key, 0) + 1
        for key in before - after:
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
                self._revisions.pop(key, None)

    def answered(self, answers: Iterable[Answer]) -> None:
        """Requests have ended."""
        for answer in answers:
            key = (answer.deployment, answer.revision)
            revision = self._revisions.get(key)
            if revision is None:
                if key not in self._uses:
                    continue
                revision = self._revisions[key] = _Revision(*key)
            revision.take(answer)

    def rated(self, answer: Answer, bad: bool) -> None:
        """A user said what an answer was worth."""
        revision = self._revisions.get((answer.deployment, answer.revision))
        if revision is not None:
            rating = "bad" if bad else "good"
            revision.ratings[rating] = revision.ratings.get(rating, 0) + 1

    async def page(self) -> str:
        """All series as Prometheus reads them."""
        revisions = list(self._revisions.values())
        parts = [f"# HELP {REQUESTS} Requests that went to a revision, by how they ended.\n# TYPE {REQUESTS} counter\n"]
        parts += [line for revision in revisions for line in revision.requests()]
        parts.append(f"# HELP {FEEDBACK} Answers that were rated; bad: below 0.\n# TYPE {FEEDBACK} counter\n")
        parts += [line for revision in revisions for line in revision.feedback()]
        for kind in KINDS:
            parts.append(f"# HELP {kind.name} {kind.help}\n# TYPE {kind.name} histogram\n")
            for number, revision in enumerate(revisions, 1):
                histogram = revision.histograms.get(kind.name)
                if histogram is not None:
                    parts.extend(histogram.lines())
                if not number % _AT_A_TIME:
                    await asyncio.sleep(0)
        parts.extend(self._routes.page())
        return "".join(parts)
