"""How many answers were good or bad by a deployment's own objectives, for Prometheus.

The histograms of answermetrics.py have the same edges for everybody, and a threshold rarely lies on one of them. These
counters are exact at the thresholds of `spec.rollout.analysis.slo`: they are the ones that candidates are judged by
(evidence.py says what counts), without what is only compared with stable. Both verdicts of a judged objective are
always there: a share needs both.
"""

from __future__ import annotations

import asyncio

from tuneyard.api.documents import EvidenceReport
from tuneyard.planning.evidence import UNNAMED

SLO_ANSWERS = "tuneyard_slo_answers_total"
_HELP = "Answers that were judged by an objective of spec.rollout.analysis.slo, by what they were."
_AT_A_TIME = 50
"""Deployments whose lines are made without a turn for others."""


async def slo_page(report: EvidenceReport) -> str:
    """The series as Prometheus reads them."""
    parts = [f"# HELP {SLO_ANSWERS} {_HELP}\n# TYPE {SLO_ANSWERS} counter\n"]
    for number, (deployment, evidence) in enumerate(report.deployments.items(), 1):
        namespace, _, name = deployment.partition("/")
        for revision, objectives in evidence.counts.items():
            for objective, tallies in objectives.items():
                if objective in UNNAMED:
                    continue
                judged = sum(tally[0] for tally in tallies.values())
                bad = sum(tally[1] for tally in tallies.values())
                # names of Kubernetes objects: nothing in them needs escaping
                labels = f'namespace="{namespace}",deployment="{name}",revision="{revision}",objective="{objective}"'
                parts.append(f'{SLO_ANSWERS}{{{labels},verdict="good"}} {judged - bad}\n')
                parts.append(f'{SLO_ANSWERS}{{{labels},verdict="bad"}} {bad}\n')
        if not number % _AT_A_TIME:
            await asyncio.sleep(0)
    return "".join(parts)
