"""Fifty adapters, and how soon they serve again: on a pod that begins where they lie already, and after an engine died.

The adapters came from a real S3 server into the node's cache; when the second pod begins, that server is stopped, so
that nothing can come from there. The engine is started again at once, as the kubelet does; the clock of its figure
begins when the agent has noticed that it is healthy.

python -m benchmarks.adapter_recovery [--engine fake|vllm] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.hot_load import ADAPTER, copies
from benchmarks.report import write
from models.smollm2 import build_smollm2
from tests.contract.agents import AgentRig
from tests.contract.engines import EngineProcess
from tests.contract.pods import pod_engine
from tests.contract.s3server import S3Server
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.sources import Source
from tuneyard.systems.artifacts.store import Store

ADAPTERS = 50
ROUNDS = 5
_PATIENCE = 600.0


@dataclass
class Seen:
    """Seconds, one of each kind a round."""

    pod: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)


def _planned(s3: S3Server, files: list[Path]) -> list[PlannedAdapter]:
    """Entries of a plan for adapters that lie in the bucket."""
    s3.bucket("models")
    planned = []
    for number, folder in enumerate(files):
        for path in folder.iterdir():
            s3.client.upload_file(str(path), "models", f"a{number}/{path.name}")
        source = {"s3": {**s3.source(f"models/a{number}/").to_dict(), "credentials": {"name": "reader"}}}
        planned.append(PlannedAdapter(name=f"a{number}", source=Source.from_dict(source)))
    return planned


@contextmanager
def _started(engine: EngineProcess) -> Iterator[EngineProcess]:
    engine.start()
    try:
        yield engine
    finally:
        engine.kill()


class Node:
    """One cache, and pods that begin there one after the other."""

    def __init__(self, kind: str, folder: Path, s3: S3Server) -> None:
        self._kind = kind
        self._folder = folder
        self._s3 = s3
        self._pods = 0

    def engine(self) -> EngineProcess:
        """A new one, not started."""
        return pod_engine(self._kind, build_smollm2(), "smollm2", max_cpu_loras=64)

    def pod(self, engine: EngineProcess) -> AgentRig:
        """A pod that has nothing of its own yet."""
        self._pods += 1
        obtainer = Obtainer(Store(self._folder / "cache"), lambda _: self._s3.root)
        return AgentRig(engine, self._folder / f"pod-{self._pods}", max_cpu_loras=64, obtainer=obtainer)


async def _until_all(rig: AgentRig, planned: list[PlannedAdapter]) -> list[PlannedAdapter]:
    """Wait until all serve; returns the plan with the digests that were found."""
    told = await rig.until_loaded(*(p.name for p in planned), within=_PATIENCE)
    return [p.model_copy(update={"digest": told[p.name].digest}) for p in planned]


async def _run(kind: str, rounds: int, folder: Path) -> Seen:
    seen = Seen()
    files = copies(folder / "files", ADAPTERS, ADAPTER)
    with S3Server(folder / "s3") as s3:
        node = Node(kind, folder, s3)
        planned = _planned(s3, files)
        with _started(node.engine()) as engine:
            async with node.pod(engine) as rig:
                rig.plan(*planned)
                planned = await _until_all(rig, planned)
        s3.stop()
        for _ in range(rounds):
            with _started(node.engine()) as engine:
                began = time.monotonic()
                async with node.pod(engine) as rig:
                    rig.plan(*planned)
                    await _until_all(rig, planned)
                    seen.pod.append(time.monotonic() - began)
                    engine.kill()
                    await rig.until(lambda r: r.engine == "Starting", "it is unpublished", within=30)
                    await asyncio.to_thread(engine.start)
                    await rig.agent.knowledge.until(lambda state: state.engine.healthy)
                    noticed = time.monotonic()
                    await _until_all(rig, planned)
                    seen.engine.append(time.monotonic() - noticed)
    return seen


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapter_recovery", description=__doc__)
    parser.add_argument("--engine", choices=["fake", "vllm"], default="fake")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="adapter-recovery-") as folder:
        seen = asyncio.run(_run(given.engine, given.rounds, Path(folder)))
    return write(
        "adapter_recovery" if given.engine == "fake" else "adapter_recovery_vllm",
        {
            "pod_restart_seconds": statistics.median(seen.pod),
            "engine_restart_seconds": statistics.median(seen.engine),
            "adapters": ADAPTERS,
        },
        {"pod_restart_seconds": "s", "engine_restart_seconds": "s"},
        targets={"pod_restart_seconds": "<= 5", "engine_restart_seconds": "<= 5"} if given.engine == "fake" else {},
        spread={
            "pod_restart_seconds": f"{min(seen.pod):.2f} to {max(seen.pod):.2f}",
            "engine_restart_seconds": f"{min(seen.engine):.2f} to {max(seen.engine):.2f}",
        },
        note=f"{given.engine} engine, {ADAPTERS} adapters of SmolLM2-135M from the node's cache, medians of "
        f"{given.rounds} rounds; pod: from the agent's start beside a running engine; engine: from healthy to all",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
