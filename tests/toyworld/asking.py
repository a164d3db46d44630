"""What asks Prometheus, as the operator's process has it: it remembers what was answered, until it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tests.builders import SETTINGS
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.promqueries import Evaluation, Evaluations, under_way
from tuneyard.planning.settings import PrometheusSettings, Settings

_WITH_SERVER = SETTINGS.model_copy(update={"prometheus": PrometheusSettings(url="http://prometheus:9090")})


@dataclass
class Asking:
    """One process; `answers` is what each check's query gives: a number, or words where it gives none."""

    answers: dict[str, float | str] = field(default_factory=dict)
    settings: Settings = _WITH_SERVER
    remembered: dict[str, list[Evaluation]] = field(default_factory=dict)

    def evaluate(self, deployment: ModelDeploymentResource, now: datetime) -> list[Evaluation]:
        """Ask everything that is to be asked now, once."""
        asked = []
        for query in under_way(deployment):
            answer = self.answers.get(query.check, "no answer")
            value, trouble = (None, answer) if isinstance(answer, str) else (answer, "")
            asked.append(Evaluation(query.text, now.timestamp(), value, trouble))
            self.remembered.setdefault(query.check, []).append(asked[-1])
        return asked

    def restart(self) -> None:
        """Another process remembers nothing."""
        self.remembered.clear()

    def seen_by(self, deployment: ModelDeploymentResource) -> Evaluations:
        """What is known of the deployment."""
        return {name: tuple(found) for name, found in self.remembered.items()} if under_way(deployment) else {}
