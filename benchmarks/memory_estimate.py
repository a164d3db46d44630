"""The memory that a pool is said to need, against what vLLM takes: weights, slots for adapters, tokens of KV cache.

The engine is the real one on the CPU, in five configurations; its tensors are looked at (memoryprobe.py). Working
memory is not among the figures: the estimate of it is for GPUs. Weights are bfloat16: on a CPU that packs these
(AVX-512), or in float32, they lie where no tensor shows them, and the probe says so.

python -m benchmarks.memory_estimate
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import write
from cluster import pythons
from models.smollm2 import build_smollm2
from models.tiny import build_tiny
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.gpumemory import memory_demand
from tuneyard.planning.memory import estimate, room
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.settings import Settings
from tuneyard.planning.vllmflags import setting_flags
from tuneyard.systems.artifacts.basefiles import read_size

PROBE = Path(__file__).with_name("memoryprobe.py")
CACHE_GIB = 1
_PATIENCE = 900.0
_COMMON = {
    "engineBuild": "CPU",
    "maxModelLen": 1024,
    "resources": {},
    "env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": str(CACHE_GIB)}],
}
_LARGE_LORA = {"maxLoras": 8, "maxRank": 64, "maxCpuLoras": 8, "dtype": "float16"}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny, 4 adapters of rank 16": ("tiny", {"lora": {"maxLoras": 4}}),
    "tiny over 2 processes, fully sharded": (
        "tiny",
        {"tensorParallelSize": 2, "lora": {"maxLoras": 4, "fullySharded": True}},
    ),
    "SmolLM2, 4 adapters of rank 8": ("smollm2", {"lora": {"maxLoras": 4, "maxRank": 8}}),
    "SmolLM2, blocks of 32, 8 adapters of rank 64": ("smollm2", {"blockSize": 32, "lora": _LARGE_LORA}),
    "SmolLM2, 1 adapter of rank 256": ("smollm2", {"lora": {"maxLoras": 1, "maxRank": 256}}),
}
"""What it is called -> the base, and the serving block."""


@dataclass(frozen=True)
class Compared:
    """One number of a configuration."""

    what: str
    said: int
    measured: int

    @property
    def error_percent(self) -> float:
        """By how much the estimate is off, of what was measured."""
        return 100 * abs(self.said - self.measured) / self.measured if self.measured else 0.0


def arguments(folder: Path, serving: Serving) -> list[str]:
    """What a pool's engine is told that decides about memory."""
    lora = serving.lora
    return [
        *("--model", str(folder), "--enforce-eager", "--enable-lora"),
        *("--max-loras", str(lora.max_loras), "--max-lora-rank", str(lora.max_rank)),
        *("--max-cpu-loras", str(lora.max_cpu_loras), "--tensor-parallel-size", str(serving.tensor_parallel_size)),
        *("--max-model-len", str(serving.max_model_len)),
        *setting_flags(serving, "/artifacts"),
    ]


def measured(folder: Path, serving: Serving) -> dict[str, int]:
    """What the fullest process of the engine takes."""
    environment = {
        **os.environ,
        **serving.env,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # a function is sent to the workers
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    }
    done = subprocess.run(
        [str(pythons.venv("vllm-cpu")), str(PROBE), *arguments(folder, serving)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("[{")]
    if done.returncode or not answers:
        raise RuntimeError(f"the engine did not tell:\n{done.stdout[-3000:]}")
    workers = json.loads(answers[-1])
    return {key: max(worker[key] for worker in workers) for key in workers[0]}


def compared(folder: Path, serving: Serving) -> list[Compared]:
    """The estimate beside what the engine takes."""
    demand = memory_demand(serving, Settings())
    said = estimate(read_size(folder), demand)
    left = room(said, demand)
    found = measured(folder, serving)
    return [
        Compared("weights", said.weights, found["weights"]),
        Compared("adapters", said.adapters, found["adapters"]),
        Compared("tokens", left.tokens if left else 0, found["tokens"]),
    ]


def main() -> int:
    """Measure all configurations."""
    folders = {"tiny": build_tiny() / "base", "smollm2": build_smollm2()}
    worst: dict[str, float] = {}
    for name, (base, block) in CONFIGURATIONS.items():
        for each in compared(folders[base], resolved_serving(ServingSpec.from_dict({**_COMMON, **block}))):
            print(
                f"{name}: {each.what} said {each.said}, measured {each.measured}: {each.error_percent:.2f} %",
                flush=True,
            )
            worst[each.what] = max(worst.get(each.what, 0.0), each.error_percent)
    figures = {"worst_error_percent": max(worst.values())}
    figures |= {f"{what}_error_percent": error for what, error in worst.items()}
    note = f"{len(CONFIGURATIONS)} configurations on vLLM's CPU build, {CACHE_GIB} GiB of KV cache each"
    targets = {"worst_error_percent": "<= 10"}
    return write("memory_estimate", figures, dict.fromkeys(figures, "%"), targets=targets, note=note)


if __name__ == "__main__":
    sys.exit(main())
