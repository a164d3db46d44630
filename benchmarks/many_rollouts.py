"""Fifty rollouts at once that are judged by their answers: is any step missed, and what does the operator need for it?

A real etcd and kube-apiserver, the operator as a process of its own, and three gateways that tell every second what
they have counted for every deployment; all share the machine's cores. Measured from outside, by a watch. A step is
missed when it is left out, or taken more than LATE seconds after its hold is over; so is a rejection that never comes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.processes import cpu_seconds
from benchmarks.report import percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.rollout import RolloutStatus
from tuneyard.planning.traffic import effective
from tuneyard.systems.kube.informers import Informer

ROLLOUTS = 50
BAD = 5
"""Of these; a fifth of their candidates' answers is bad."""
GATEWAYS = 3
HOLD = 20.0
STEPS = [1, 5, 25]
LATE = 5.0
REQUESTS = 3000
"""Answers per second, gateway and deployment: enough for a Pass at the first weight within its hold."""
WITHIN = 180.0
ADAPTERS = {"one": "sha256:" + "ab" * 32, "two": "sha256:" + "cd" * 32}
REVISIONS: dict[str, str | None] = {"v1": "one", "v2": "two"}


@dataclass
class Course:
    """How one rollout goes."""

    weights: dict[str, int] = field(default_factory=dict)
    climbed: list[tuple[int, float]] = field(default_factory=list)
    """The candidate's weights, and when it got them."""
    stable: str | None = None
    rejected: float | None = None
    began: float = 0.0


class Following:
    """Gateways that serve what the stored objects allow, and count answers by it."""

    def __init__(self, cluster: Cluster, gateways: list[FakeGateway]) -> None:
        self.courses: dict[str, Course] = defaultdict(Course)
        self.rolling = False
        self._gateways = gateways
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._informer = Informer(cluster.api, cluster.path("modeldeployments"), self._on_change)
        self._thread = threading.Thread(target=self._count, daemon=True)

    def start(self) -> None:
        """Begin to watch and to count."""
        self._informer.start()
        self._thread.start()

    def stop(self) -> None:
        """End both."""
        self._stopping.set()
        self._thread.join()
        self._informer.stop()

    def _on_change(self, change: str, item: dict[str, Any]) -> None:
        if change == "DELETED":
            return
        found = ModelDeploymentResource.from_dict(item)
        rollout = found.status.rollout or RolloutStatus()
        ready = {t.revision: t.ready_endpoints for t in found.status.traffic}
        served = dict(effective(found.spec, ready, stable=rollout.stable, allowed=rollout.allowed).weights)
        now = time.monotonic()
        with self._lock:
            course = self.courses[f"{found.metadata.namespace}/{found.metadata.name}"]
            changed = course.weights != served
            weight = served.get("v2", 0)
            if weight and weight != course.weights.get("v2", 0):
                course.climbed.append((weight, now))
            course.weights, course.stable = served, rollout.stable
            if rollout.verdicts and course.rejected is None:
                course.rejected = now
        for gateway in self._gateways:
            gateway.judges(item)
            if changed:
                gateway.applied(item, served)

    def _count(self) -> None:
        """Once a second; one in two hundred answers is bad, of a bad candidate one in five."""
        while not self._stopping.wait(1.0):
            with self._lock:
                served = [(n, name, c.weights) for n, (name, c) in enumerate(sorted(self.courses.items()))]
            told = [
                (name, revision, judged, judged // (5 if revision == "v2" and n < BAD else 200))
                for n, name, weights in served
                for revision, weight in weights.items()
                if (judged := REQUESTS * weight // 100)
            ]
            for gateway in self._gateways:
                gateway.counted_at_once(told)


def _spec(weights: dict[str, int]) -> dict[str, Any]:
    rollout = {
        "mode": "Progressive",
        "steps": [{"weight": w, "hold": f"{HOLD:.0f}s"} for w in STEPS],
        "analysis": {"slo": {"errorRate": "1%"}, "minRequests": 100, "warmUp": "5s"},
    }
    return {**deployment_spec("base", weights, REVISIONS), "rollout": rollout}


def _prepared(server: ApiServer) -> Cluster:
    """A base, its pod, two adapters."""
    server.install_crds()
    server.namespace(NAMESPACE)
    cluster = Cluster(server, "team")
    cluster.apply("BaseModel", "base", BASE_SPEC)
    for name, digest in ADAPTERS.items():
        cluster.apply("LoRAAdapter", name, {**adapter_spec("base"), "digest": digest})
    cluster.pod("pod-0", "base")
    cluster.verified("pod-0", "sha256:" + "00" * 32)
    cluster.report("pod-0", "base", ADAPTERS)
    return cluster


def _missed(course: Course, bad: bool) -> tuple[int, list[float]]:
    """Steps that were missed, and how late the others were."""
    if bad:
        return int(course.rejected is None or course.stable == "v2"), []
    wanted = [*STEPS, 100]
    if [w for w, _ in course.climbed] != wanted:
        return sum(w not in [c for c, _ in course.climbed] for w in wanted) or 1, []
    times = [at for _, at in course.climbed]
    late = [after - before - HOLD for before, after in pairwise(times)]
    return sum(seconds > LATE for seconds in late) + (course.stable != "v2"), late


def main() -> int:
    """Measure and write the figures."""
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rollouts-")))
        server = stack.enter_context(ApiServer(folder=folder))
        cluster = _prepared(server)
        gateways = [stack.enter_context(FakeGateway(f"g{n}")) for n in range(GATEWAYS)]
        entries = ",".join(g.entry for g in gateways)
        operator = stack.enter_context(OperatorProcess(server, folder / "operator", gateways=entries))
        names = [f"m-{n:02}" for n in range(ROLLOUTS)]
        for name in names:
            cluster.apply("ModelDeployment", name, _spec({"v1": 100}))
        following = Following(cluster, gateways)
        following.start()
        stack.callback(following.stop)
        courses = following.courses
        eventually(lambda: all(courses[f"team/{n}"].stable == "v1" for n in names), "v1 is stable", 120)
        assert operator.process is not None
        before, began = cpu_seconds(operator.process.pid), time.monotonic()
        for name in names:
            courses[f"team/{name}"].began = time.monotonic()
            cluster.apply("ModelDeployment", name, _spec({"v1": 0, "v2": 100}))
        over = began + WITHIN
        while time.monotonic() < over and not all(c.stable == "v2" or c.rejected for c in courses.values()):
            time.sleep(0.2)
        wall = time.monotonic() - began
        cores = (cpu_seconds(operator.process.pid) - before) / wall
        writes = operator.metric("tuneyard_writes_total")
        ends = [_missed(courses[f"team/{n}"], number < BAD) for number, n in enumerate(names)]
        rejections = [c.rejected - c.began for c in courses.values() if c.rejected is not None]
    late = [seconds for _, each in ends for seconds in each]
    by_step = [percentile(list(each), 0.5) for each in zip(*(each for _, each in ends if each), strict=False)]
    print("late after each step, median:", " ".join(f"{seconds:.1f} s" for seconds in by_step))
    figures = {
        "missed_steps": float(sum(missed for missed, _ in ends)),
        "operator_cores": cores,
        "step_late_p50_seconds": percentile(late, 0.5),
        "step_late_p99_seconds": percentile(late, 0.99),
        "rejected": float(len(rejections)),
        "writes_per_second": writes / wall,
    }
    return write(
        "many_rollouts",
        figures,
        {"missed_steps": "steps", "operator_cores": "cores", "rejected": "rollouts", "writes_per_second": "1/s"}
        | dict.fromkeys(("step_late_p50_seconds", "step_late_p99_seconds"), "s"),
        targets={"missed_steps": "0", "operator_cores": "<= 1", "rejected": f"{BAD}"},
        note=f"{ROLLOUTS} rollouts at once, steps {STEPS} of {HOLD:.0f} s, then 100 %; {GATEWAYS} gateways that "
        f"tell every second; {BAD} candidates with 20 % errors. Late: after the hold, which counts in whole seconds. "
        f"API server, etcd, operator and gateways share the cores. Load average before: {load:.1f}.",
    )


if __name__ == "__main__":
    sys.exit(main())
