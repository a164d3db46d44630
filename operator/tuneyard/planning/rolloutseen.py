"""What the rollout's decisions are made from: one deployment, its revisions, and what gateways serve of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tuneyard.api.evidence import EvidenceRecord
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentSpec
from tuneyard.api.rollout import RolloutSpec, RolloutStatus
from tuneyard.planning.answers import Answers
from tuneyard.planning.demand import DemandView
from tuneyard.planning.gateobservations import GateObservation
from tuneyard.planning.observations import ChildObservation
from tuneyard.planning.promqueries import Evaluations
from tuneyard.planning.revisions import RevisionState
from tuneyard.planning.settings import Settings
from tuneyard.planning.timestamps import rfc3339


@dataclass(frozen=True)
class Seen:
    """One deployment at one moment."""

    deployment: ModelDeploymentResource
    before: RolloutStatus | None
    """Where it stood: from its status, else what is left of it in the record; None: nobody knows of it yet."""
    states: Mapping[str, RevisionState]
    hashes: Mapping[str, str | None]
    """Per revision, see contents.content_hash."""
    ready: Mapping[str, int]
    """Ready endpoints per revision."""
    confirmed: Mapping[str, int]
    """Per revision, the weight that the stored status gives it, where every gateway says that it serves just that."""
    now: datetime
    on_demand: frozenset[str] = frozenset()
    """Revisions that are loaded when somebody asks for them; see idling.py."""
    served: Mapping[str, int] = field(default_factory=dict)
    """Per revision, the weight that the stored status gives it."""
    answers: Answers = field(default_factory=Answers)
    """What gateways tell of answers."""
    evidence: EvidenceRecord | None = None
    """What was known of them at the last look."""
    demand: DemandView = field(default_factory=DemandView)
    """What is asked at gateways; it says how far a gate is."""
    gates: GateObservation | None = None
    """None: nobody has looked; see gates.under_way."""
    record: ChildObservation | None = None
    """The ConfigMap that outlives the deployment."""
    settings: Settings = field(default_factory=Settings)
    checks: Evaluations = field(default_factory=dict)
    """What Prometheus has answered of late."""

    @property
    def spec(self) -> ModelDeploymentSpec:
        """Its spec."""
        return self.deployment.spec

    @property
    def rollout(self) -> RolloutSpec:
        """spec.rollout."""
        return self.spec.rollout or RolloutSpec()

    @property
    def listed(self) -> list[str]:
        """Names of its revisions, in their order."""
        return [r.name for r in self.spec.revisions]

    def allowed_before(self, revision: str) -> int:
        """How far the revision had come; 0 where nothing is known of it, and for one that was rejected.

        Such a one may serve on (verdicts.serves_on); that is no position to go on from.
        """
        return 0 if self.was_rejected(revision) else self.limit_before(revision)

    def limit_before(self, revision: str) -> int:
        """The most that gateways might give the revision until now."""
        return ((self.before.allowed if self.before else None) or {}).get(revision, 0)

    def was_rejected(self, revision: str) -> bool:
        """Whether the contents that the name stands for had a verdict; while they are not known, whether it had."""
        return self.before is not None and self.before.rejects(self.hashes.get(revision), revision) is not None

    @property
    def stamp(self) -> str:
        """The moment as text."""
        return rfc3339(self.now)
