"""What Prometheus is asked for the checks of a rollout, and what one answer is.

Rules:
- a check is evaluated while the candidate has traffic and its answers are judged; of whom nothing is to be known
  (between rollouts, rejected, stable before) nothing is asked;
- who was promoted by a command to all traffic needs no evidence, so of him nothing is asked either; below that, steps
  are left, and checks hold;
- names take the place of whole words only, so that the `$` of an expression, and of other tools' variables, stays;
- an answer that is no finite number says nothing: a rate over nothing is NaN, and something over nothing infinite.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuneyard.api.analysis import AnalysisSpec
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.names import short_hash
from tuneyard.api.promchecks import DEFAULT_INTERVAL, PrometheusCheck
from tuneyard.api.rollout import RolloutStatus
from tuneyard.api.schema import seconds

_NAMES = re.compile(r"\$(candidate|stable|deployment|namespace)\b")


@dataclass(frozen=True)
class Query:
    """One check's query as it is sent."""

    check: str
    """Its name."""
    text: str
    interval: int
    """Seconds."""

    @property
    def id(self) -> str:
        """Stands for the text where that is too long."""
        return short_hash(self.text)


@dataclass(frozen=True)
class Evaluation:
    """What came of asking once."""

    query: str
    at: float
    """When it was asked: seconds since 1970."""
    value: float | None = None
    """None: there is no number."""
    trouble: str = ""
    """Why."""

    @property
    def number(self) -> float | None:
        """The value, where it says something."""
        return self.value if self.value is not None and math.isfinite(self.value) else None

    @property
    def words(self) -> str:
        """Why it says nothing."""
        return self.trouble or ("the answer is not a number" if math.isnan(self.value or 0.0) else "it is infinite")


Evaluations = Mapping[str, Sequence[Evaluation]]
"""By the check's name, oldest first."""


def filled_in(query: str, **names: str) -> str:
    """The query with the names for `$candidate` and the others. Names are DNS-like; what ends a string is escaped."""
    return _NAMES.sub(lambda found: json.dumps(names[found[1]])[1:-1], query)


def interval_of(check: PrometheusCheck) -> int:
    """Seconds between two evaluations."""
    return seconds(check.interval) if check.interval else DEFAULT_INTERVAL


def queries(spec: AnalysisSpec, deployment: tuple[str, str], candidate: str, stable: str) -> tuple[Query, ...]:
    """What is to be asked of a candidate of a deployment (namespace, name)."""
    namespace, name = deployment
    return tuple(
        Query(
            check.name,
            filled_in(check.query, candidate=candidate, stable=stable, deployment=name, namespace=namespace),
            interval_of(check),
        )
        for check in spec.prometheus or ()
    )


def commanded(before: RolloutStatus | None, candidate: str) -> bool:
    """Whether a command has brought the candidate past all steps."""
    return before is not None and (before.promoted_to or {}).get(candidate) == 100


def under_way(deployment: ModelDeploymentResource) -> tuple[Query, ...]:
    """What is to be asked now, as the stored status has it."""
    spec, rollout = deployment.spec.analysis, deployment.status.rollout
    if spec is None or rollout is None or rollout.analysis is None or not deployment.spec.progressive:
        return ()
    if rollout.candidate is None or rollout.stable is None or not rollout.weight:
        return ()
    if commanded(rollout, rollout.candidate):
        return ()
    return queries(spec, deployment.metadata.key, rollout.candidate, rollout.stable)
