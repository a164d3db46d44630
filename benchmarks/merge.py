"""Whether a merged model says what base and adapter say, and what serving an adapter costs against serving it merged.

The merge is the build's own tool on SmolLM2 and an adapter of the examples: greedy texts of fifty prompts, base and
adapter in float32 against merged in float32, and against the same rounded to bfloat16. Then two real vLLM on the CPU,
one with the base and the adapter, one with the merged model, are asked for the same tokens in turns: each round asks
both, the one that begins changes, so that whatever else the machine does hits both.

python -m benchmarks.merge [--rounds N] [--tokens N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import write
from cluster import pythons
from models.smollm2 import build_smollm2
from tests.contract.apiserver import ROOT
from tests.contract.engines import EngineProcess
from tests.contract.ports import free_port
from tuneyard.build.tooling import Tools

ADAPTER = ROOT / "examples" / "adapters" / "acme-support-v1"
PROMPTS, ROUNDS, TOKENS = 50, 20, 64
_NAME = "adapter"


def merged(folder: Path) -> tuple[Path, dict[str, str]]:
    """The merged model in bfloat16, as vLLM serves the base, and what was compared."""
    tools = Tools(folder, str(pythons.venv("build")), str(ROOT / "operator"))
    settings = {"base": str(build_smollm2()), "adapter": str(ADAPTER), "dtype": "bfloat16", "compared": PROMPTS}
    found = tools.run("merge", settings, folder / "merged", lambda what, _: print(f"  {what}", file=sys.stderr))
    return folder / "merged", found["checks"]


def same(text: str) -> int:
    """The first number of `49 of 50`."""
    return int(text.split(maxsplit=1)[0])


def engine(base: Path, name: str, *flags: str) -> EngineProcess:
    """A real engine; one without adapters is started without what serves them."""
    made = EngineProcess("vllm", free_port(), list(flags), base=base, name=name)
    made.start(patience=900)
    return made


def load(running: EngineProcess) -> None:
    """Load the adapter."""
    running.asked("/v1/load_lora_adapter", {"lora_name": _NAME, "lora_path": str(ADAPTER)})


def seconds(running: EngineProcess, model: str, tokens: int) -> float:
    """How long so many tokens take, from one request."""
    body: dict[str, object] = {
        "model": model,
        "messages": [{"role": "user", "content": "How do I reset my password?"}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    began = time.perf_counter()
    running.asked("/v1/chat/completions", body)
    return time.perf_counter() - began


def overhead(with_adapter: EngineProcess, alone: EngineProcess, rounds: int, tokens: int) -> list[float]:
    """Percent that each round took longer with the adapter."""
    both = ((with_adapter, _NAME), (alone, alone.name))
    for running, model in both:
        seconds(running, model, tokens)  # kernels are compiled, caches are filled
    found = []
    for number in range(rounds):
        took = {model: seconds(running, model, tokens) for running, model in (both if number % 2 else both[::-1])}
        found.append(100 * (took[_NAME] / took[alone.name] - 1))
    return found


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merge", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    given = parser.parse_args(arguments)
    engines: list[EngineProcess] = []
    with tempfile.TemporaryDirectory(prefix="merge-") as folder:
        whole, checks = merged(Path(folder))
        try:
            engines.append(engine(build_smollm2(), "base", "--max-loras", "1", "--max-cpu-loras", "1"))
            engines.append(engine(whole, "merged", "--no-enable-lora"))
            load(engines[0])
            percent = overhead(engines[0], engines[1], given.rounds, given.tokens)
        finally:
            for running in engines:
                running.kill()
    low, middle, high = statistics.quantiles(percent, n=4)
    figures = {
        "identical_of_50": same(checks["textsAsBaseAndAdapter"]),
        "identical_of_50_bfloat16": same(checks["textsInBfloat16"]),
        "adapter_overhead_percent": round(middle, 1),
    }
    return write(
        "merge",
        dict(figures),
        {"adapter_overhead_percent": "%"},
        targets={
            "identical_of_50": "50",
            "identical_of_50_bfloat16": "reported",
            "adapter_overhead_percent": "reported",
        },
        spread={"adapter_overhead_percent": f"quartiles {low:.1f} to {high:.1f}"},
        note=f"SmolLM2-135M; scores differ by {checks['largestDifferenceOfScores']} in float32. Overhead: real vLLM on "
        f"the CPU, {given.rounds} rounds of {given.tokens} tokens, one request at a time; 2-5 % is often quoted.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
