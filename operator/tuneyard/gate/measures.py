"""Times as percentiles and histograms. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from tuneyard.api.gatereports import Histogram, Side, Times
from tuneyard.gate.asking import Answer

_PER_OCTAVE = 4


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of ordered numbers: a time that was really seen."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def times(found: Iterable[float | None]) -> Times | None:
    """What is told of these milliseconds; None where there are none."""
    ordered = sorted(t for t in found if t is not None)
    if not ordered:
        return None
    p50, p95, p99 = (round(percentile(ordered, p), 2) for p in (50, 95, 99))
    return Times(p50=p50, p95=p95, p99=p99, histogram=histogram(ordered))


def histogram(found: Iterable[float]) -> Histogram:
    """Counts by buckets of a quarter of an octave; what is below 1 ms counts as 1."""
    buckets = Counter(math.ceil(_PER_OCTAVE * math.log2(max(1.0, t))) for t in found)
    first, last = min(buckets), max(buckets)
    return Histogram(first=first, counts=[buckets[n] for n in range(first, last + 1)])


def side(answers: Sequence[Answer]) -> Side:
    """What is told of one revision's answers."""
    whole = [a for a in answers if a.error is None]
    seconds = sum(a.e2e for a in whole) / 1000
    tokens = sum(a.tokens for a in whole)
    return Side(
        requests=len(answers),
        errors=len(answers) - len(whole),
        tokens_per_second=round(tokens / seconds, 3) if tokens and seconds else None,
        ttft=times(a.ttft for a in whole),
        itl=times(a.itl for a in whole),
        e2e=times(a.e2e for a in whole),
    )
