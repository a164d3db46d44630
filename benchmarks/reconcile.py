"""How long until a thousand ModelDeployments have a status, how soon an edit shows, and what memory that takes.

A real etcd and kube-apiserver without pods, and the operator as a process of its own; all share the machine's cores
with this client. Measured from outside, by a watch: a status counts when it has the generation of the spec.
Two shapes: twenty namespaces whose fifty tenants each share one base and have an adapter each, and a thousand tenants
on a single base with a hundred adapters.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import percentile, write
from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import (
    BASE_SPEC,
    NAMESPACE,
    Cluster,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tuneyard.systems.kube.client import Api
from tuneyard.systems.kube.informers import Informer

DEPLOYMENTS = 1000
SPREAD, ONE_BASE = (20, 1000), (1, 100)
"""Namespaces (with one base each) and adapters in all."""
ROUNDS = 3
EDITS = 300
EDITS_PER_SECOND = 20.0

Key = tuple[str, str]


class Watching:
    """When each ModelDeployment's status came to have a generation."""

    def __init__(self, api: Api) -> None:
        self._changed = threading.Condition()
        self.seen: dict[tuple[Key, int], float] = {}
        self._informer = Informer(api, "/apis/tuneyard.dev/v1alpha1/modeldeployments", self._on_change)
        self._informer.start()

    def _on_change(self, _: str, item: dict[str, Any]) -> None:
        generation = (item.get("status") or {}).get("observedGeneration")
        metadata = item["metadata"]
        if generation is None:
            return
        with self._changed:
            self.seen.setdefault(((metadata["namespace"], metadata["name"]), generation), time.monotonic())
            self._changed.notify_all()

    def wait(self, wanted: set[tuple[Key, int]], within: float) -> None:
        """Wait until all of these were seen."""
        with self._changed:
            if not self._changed.wait_for(lambda: wanted <= self.seen.keys(), within):
                raise SystemExit(
                    f"{len(wanted - self.seen.keys())} of {len(wanted)} have no status after {within:.0f} s"
                )

    def stop(self) -> None:
        """End the watch."""
        self._informer.stop()


@dataclass(frozen=True)
class Round:
    """One start of an operator and the edits after it."""

    all_status: float
    settled: float
    edits: list[float]
    peak_mb: float
    passes: float
    writes: float


def _spec(cluster: Cluster, name: str, weight: int, adapters: int) -> dict[str, Any]:
    adapter = f"adapter-{int(name.rpartition('-')[2]) % adapters}"
    spec = deployment_spec("base", {"base": 100 - weight, "tuned": weight}, {"tuned": adapter})
    return {**spec, "modelName": f"{cluster.namespace}/{name}"}


def _fill(server: ApiServer, namespaces: int, adapters: int) -> list[tuple[Cluster, str]]:
    """The objects; returns the deployments."""
    clusters = [Cluster(server, f"team-{n}") for n in range(namespaces)]
    for cluster in clusters:
        serving = {**BASE_SPEC["serving"], "lora": {"maxCpuLoras": 1024}}
        cluster.apply("BaseModel", "base", {**BASE_SPEC, "serving": serving})
    made = [(clusters[n % namespaces], f"model-{n}") for n in range(DEPLOYMENTS)]

    def make(entry: tuple[Cluster, str]) -> None:
        cluster, name = entry
        cluster.apply("ModelDeployment", name, _spec(cluster, name, 10, adapters))

    with ThreadPoolExecutor(16) as pool:
        spread = ((clusters[n % namespaces], f"adapter-{n}") for n in range(adapters))
        list(pool.map(lambda a: a[0].apply("LoRAAdapter", a[1], adapter_spec("base", a[1])), spread))
        list(pool.map(make, made))
    return made


def _edit(watching: Watching, made: list[tuple[Cluster, str]], adapters: int) -> list[float]:
    """Weight edits at a steady pace; seconds from just before each request to its status."""
    sent: dict[tuple[Key, int], float] = {}

    def edit(number: int) -> None:
        cluster, name = made[number * 7 % len(made)]
        began = time.monotonic()
        stored = cluster.apply("ModelDeployment", name, _spec(cluster, name, 20, adapters))
        sent[(cluster.namespace, name), stored["metadata"]["generation"]] = began

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        waiting = []
        for number in range(EDITS):
            time.sleep(max(0.0, began + number / EDITS_PER_SECOND - time.monotonic()))
            waiting.append(pool.submit(edit, number))
        for future in waiting:
            future.result()
    watching.wait(set(sent), 60)
    return [watching.seen[key] - at for key, at in sent.items()]


def _peak_mb(pid: int) -> float:
    """The highest resident size so far, in MB of 1,000,000 bytes."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _measure(namespaces: int, adapters: int, folder: Path) -> Round:
    with ApiServer(folder=folder) as server:
        server.install_crds()
        server.namespace(NAMESPACE)
        made = _fill(server, namespaces, adapters)
        watching = Watching(server.api())
        try:
            began = time.monotonic()
            with OperatorProcess(server, folder / "operator") as operator:
                first = {((c.namespace, name), 1) for c, name in made}
                watching.wait(first, 300)
                all_status = max(watching.seen[key] for key in first) - began
                eventually(lambda: _idle(operator), "the queue is empty", 120)
                settled = time.monotonic() - began
                edits = _edit(watching, made, adapters)
                assert operator.process is not None
                return Round(
                    all_status,
                    settled,
                    edits,
                    _peak_mb(operator.process.pid),
                    operator.metric("tuneyard_reconcile_passes_total"),
                    operator.metric("tuneyard_writes_total"),
                )
        finally:
            watching.stop()


def _idle(operator: OperatorProcess) -> bool:
    """Whether nothing has been done for half a second."""
    before = operator.metric("tuneyard_reconcile_passes_total")
    time.sleep(0.5)
    return operator.metric("tuneyard_reconcile_passes_total") == before > 0


def main() -> int:
    """Measure and write the figures."""
    load = os.getloadavg()[0]
    rounds: dict[tuple[int, int], list[Round]] = {SPREAD: [], ONE_BASE: []}
    for number in range(ROUNDS):
        for (namespaces, adapters), done in rounds.items():
            with tempfile.TemporaryDirectory(prefix="reconcile-") as folder:
                found = _measure(namespaces, adapters, Path(folder))
            done.append(found)
            print(
                f"round {number + 1}, {namespaces} base(s): all status {found.all_status:.1f} s, "
                f"settled {found.settled:.1f} s, edit p50 {statistics.median(found.edits) * 1e3:.0f} ms, "
                f"p99 {percentile(found.edits, 0.99) * 1e3:.0f} ms, {found.peak_mb:.0f} MB, "
                f"{found.passes:.0f} passes, {found.writes:.0f} writes",
                flush=True,
            )
    spread, one = rounds[SPREAD], rounds[ONE_BASE]
    figures = {
        "all_status_seconds": statistics.median(r.all_status for r in spread),
        "edit_p99_seconds": statistics.median(percentile(r.edits, 0.99) for r in spread),
        "operator_rss_mb": max(r.peak_mb for r in spread + one),
        "edit_p50_seconds": statistics.median(statistics.median(r.edits) for r in spread),
        "settled_seconds": statistics.median(r.settled for r in spread),
        "one_base_all_status_seconds": statistics.median(r.all_status for r in one),
        "one_base_edit_p99_seconds": statistics.median(percentile(r.edits, 0.99) for r in one),
    }
    return write(
        "reconcile",
        figures,
        {key: "MB" if key.endswith("_mb") else "s" for key in figures},
        targets={"all_status_seconds": "<= 60", "edit_p99_seconds": "<= 1", "operator_rss_mb": "<= 300"},
        spread={
            "all_status_seconds": _range([r.all_status for r in spread]),
            "edit_p99_seconds": _range([percentile(r.edits, 0.99) for r in spread]),
            "operator_rss_mb": _range([r.peak_mb for r in spread + one]),
            "one_base_all_status_seconds": _range([r.all_status for r in one]),
            "one_base_edit_p99_seconds": _range([percentile(r.edits, 0.99) for r in one]),
        },
        note=f"{DEPLOYMENTS} ModelDeployments and as many adapters, 20 bases (one_base: a single one, 100 adapters); "
        f"{EDITS} edits at {EDITS_PER_SECOND:.0f}/s; from the start of the process; memory is the peak; medians of "
        f"{ROUNDS} rounds; API server, etcd, operator and client share the cores. Load average before: {load:.1f}.",
    )


def _range(values: list[float]) -> str:
    return f"{min(values):.3g} to {max(values):.3g}"


if __name__ == "__main__":
    sys.exit(main())
