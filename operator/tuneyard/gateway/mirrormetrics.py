"""What mirrors tell Prometheus. Labels are names of Kubernetes objects, and nothing comes from prompts or answers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_OF = ["namespace", "deployment", "revision"]
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 1)
_RATIOS = (0.1, 0.25, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 2, 4, 10)


class MirrorMetrics:
    """One instance per process; `revision` is always the mirrored one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.copies = Counter(
            "tuneyard_mirror_copies",
            "Copies of requests, by what became of them.",
            [*_OF, "outcome"],
            registry=registry,
        )
        self.under_way = Gauge("tuneyard_mirror_under_way", "Copies that are under way.", _OF, registry=registry)
        self.pairs = Counter("tuneyard_mirror_pairs", "Requests that both have answered.", _OF, registry=registry)
        self.errors = Counter(
            "tuneyard_mirror_errors", "Of these, answers that failed.", [*_OF, "answer"], registry=registry
        )
        self.refusals = Counter(
            "tuneyard_mirror_refusals", "Of these, answers that refuse.", [*_OF, "answer"], registry=registry
        )
        self.first = Histogram(
            "tuneyard_mirror_first_token_seconds",
            "Of these, time until the first token.",
            [*_OF, "answer"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "tuneyard_mirror_duration_seconds",
            "Of these, time until the answer was whole.",
            [*_OF, "answer"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.similarity = Histogram(
            "tuneyard_mirror_similarity",
            "How much the texts of both answers have in common, 1: all.",
            _OF,
            buckets=_SHARES,
            registry=registry,
        )
        self.length = Histogram(
            "tuneyard_mirror_length_ratio",
            "Length of the mirrored answer by that of the user's.",
            _OF,
            buckets=_RATIOS,
            registry=registry,
        )

    def forget(self, labels: tuple[str, str, str]) -> None:
        """Remove the series of a mirror that is no more."""
        gone = dict(zip(_OF, labels, strict=True))
        for metric in vars(self).values():
            metric.remove_by_labels(gone)
