"""What the operator keeps of the evidence on a candidate: a ConfigMap `<deployment>-evidence`, key `record.json`.

How far gateways have been read, and what follows from what was read, stand in one object and are written at once. So
whatever crashes, whoever leads next, and however old a copy is: what came since is counted again from there, and no
answer is ever counted twice.
"""

from __future__ import annotations

from typing import Any, Literal

from tuneyard.api.analysis import Slo
from tuneyard.api.base import ApiModel
from tuneyard.api.documents import Counted
from tuneyard.api.drift import KeptFeedback
from tuneyard.api.rollout import StableContents


class CheckRecord(ApiModel):
    """What is known of one check of Prometheus since the candidate has traffic."""

    query: str
    """A hash of it with the names in it; another one begins anew."""
    counts_from: float | None = None
    """Evaluations count that were asked since then: every gateway served the candidate, and it had warmed up. Before
    step_since: gateways have not confirmed the step's weight."""
    at: float | None = None
    """When the last evaluation was asked that gave a number."""
    value: float | None = None
    failing: int = 0
    """Evaluations in a row that gave a number out of bounds."""
    trouble: str | None = None
    """Why the evaluations since then gave none."""


class EvidenceRecord(ApiModel):
    """Of one rollout; between two, how stable's answers come. Times are seconds since 1970."""

    version: Literal[1] = 1
    deployment: str
    uid: str
    """The ModelDeployment's."""
    slo: Slo
    """With another one evidence begins anew."""
    stable: StableContents
    candidate: StableContents | None = None
    weight: int = 0
    """The candidate's, since the last change of weights."""
    since: float | None = None
    """When the candidate's traffic began; None: it has had none."""
    step_since: float = 0.0
    """When its weight changed."""
    looked: float
    seen: dict[str, Counted] = {}
    """Per process of a gateway, its counters at that look, of the two revisions."""
    unnamed: bool = False
    """`seen` has what is counted whatever the spec names, too. An older operator left it out."""
    analysis: dict[str, Any]
    """planning/analysisrecord.py."""
    own: dict[str, Any] = {}
    """Stable against its own objectives, by objective."""
    own_since: float = 0.0
    broken: str | None = None
    """How stable breaks an objective, in one sentence."""
    broken_before: bool = False
    """It did so before the candidate had traffic."""
    checks: dict[str, CheckRecord] = {}
    """By name."""
    feedback: list[KeptFeedback] = []
    """Of those that were stable lately, where `rollout.drift.feedback` asks for it (planning/feedbackdrift.py)."""
