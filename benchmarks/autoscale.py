"""Replicas by load: a simulated day of three patterns with two seeds each, beside a plain HPA, and how long it takes
from a gateway's report to replicas that are asked for, by the real operator on a real API server.

The day is simulated (scalingworld.py) with the operator's own rule and with Kubernetes' documented one, both told the
same at the same moment: a real HPA hears of it later, by way of Prometheus. `oscillations` are changes of direction
that the load did not cause, where what waits because pods still start is load, too. Both rules are run with the target
waitingRequests as well, which says nothing of how many replicas would do.

python -m benchmarks.autoscale [--rounds N] [--seeds N ...]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import REPORTED, percentile, write
from benchmarks.scalingworld import PATTERNS, Day, Hpa, Ours, simulated
from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import OperatorProcess, eventually
from tests.contract.test_operator_autoscaling import replicas, served
from tuneyard.api.autoscaling import Autoscaling, AutoscalingTargets

SEEDS = (3, 4)
"""The rule's numbers were chosen with seeds 1 and 2: those would say nothing of days that it has not seen."""
TARGET = 12
MOST = 20
BY_REQUESTS = AutoscalingTargets(in_flight_requests=TARGET)
BY_QUEUE = AutoscalingTargets(waiting_requests=2)


def _days(
    targets: AutoscalingTargets, rule: type[Ours] | type[Hpa], seeds: Sequence[int]
) -> dict[tuple[str, int], Day]:
    settings = Autoscaling(min_replicas=1, max_replicas=MOST, targets=targets)
    found = {}
    for name, make in PATTERNS.items():
        for seed in seeds:
            pattern = make(seed)
            found[name, seed] = simulated(pattern, rule(settings), seed, TARGET, math.ceil(pattern(0)))
    return found


def _figures(prefix: str, days: dict[tuple[str, int], Day]) -> dict[str, float]:
    hours, ideal = sum(d.pod_hours for d in days.values()), sum(d.ideal_hours for d in days.values())
    return {
        f"{prefix}oscillations": sum(d.oscillations for d in days.values()),
        f"{prefix}late_percent": 100 * sum(d.late_seconds for d in days.values()) / (86_400 * len(days)),
        f"{prefix}pod_hours_of_ideal": hours / ideal,
    }


def _decision_seconds(rounds: int) -> list[float]:
    """Each load needs one replica more than the one before."""
    settings = {
        "maxReplicas": rounds + 1,
        "targets": {"inFlightRequests": 100},
        "scaleUp": {"maxStep": rounds + 1},
    }
    found = []
    with tempfile.TemporaryDirectory() as folder, ApiServer() as server, FakeGateway("one") as gateway:
        server.install_crds()
        server.namespace("tuneyard-system")
        with OperatorProcess(server, Path(folder), gateways=gateway.entry):
            cluster = served(server, "autoscale", autoscaling=settings)
            eventually(lambda: replicas(cluster) == 1, "it begins with one")
            for number in range(1, rounds + 1):
                time.sleep(1.5)  # as gateways do, one at a time: no faster than they tell
                begun = time.monotonic()
                gateway.demanded(f"{cluster.namespace}/m", v1=110.0 * number + 90)
                eventually(lambda number=number: replicas(cluster) == number + 1, f"replica {number + 1}")  # type: ignore[misc]
                found.append(time.monotonic() - begun)
    return found


def main() -> int:
    """Measure, and say so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    took = _decision_seconds(given.rounds)
    days = {name: _days(BY_REQUESTS, rule, given.seeds) for name, rule in (("", Ours), ("hpa_", Hpa))}
    queues = {name: _days(BY_QUEUE, rule, given.seeds) for name, rule in (("queue_", Ours), ("hpa_queue_", Hpa))}
    figures = {"decision_seconds": max(took), "decision_seconds_p50": percentile(took, 0.5)}
    for name, found in {**days, **queues}.items():
        figures |= _figures(name, found)
    own = days[""]
    for pattern in PATTERNS:
        figures[f"{pattern}_oscillations"] = sum(d.oscillations for (name, _), d in own.items() if name == pattern)
    units = {name: "s" if name.startswith("decision") else "" for name in figures}
    targets = dict.fromkeys(figures, REPORTED) | {
        "decision_seconds": "<= 2",
        "oscillations": "0",
        **{f"{pattern}_oscillations": "0" for pattern in PATTERNS},
    }
    note = "days are simulated (benchmarks/scalingworld.py); the plain HPA hears what the operator hears, without delay"
    return write("autoscale", figures, units, targets=targets, note=note)


if __name__ == "__main__":
    sys.exit(main())
