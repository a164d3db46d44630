"""Tuneyard's gateway, vllm-router and LiteLLM in front of one upstream, in one run; and the way with a pod's front.

Each proxy has one worker: one thread of Envoy's, one of vllm-router's runtime, one process of LiteLLM's. So requests/s
are per worker, and ratios are of those. What is measured:

- `added_…`, `requests_per_second_…`, `cpu_…`, `ratio_…`: the gateway alone, as peers are measured: between client and
  upstream. It does what an installation does: reads and rewrites the body, splits 90/10, reads tokens from the answer,
  writes the request log and the one for people, and a process beside it counts both for judges, metrics and bills;
- `whole_…`: the same through the front that every pod of ours has, which peers have nothing of: a second Envoy, with
  one worker too. A request of an installation takes this way;
- `bare_envoy_…`: an Envoy with no filter of ours, which only passes on: nothing built on Envoy is faster on this
  machine. Targets that even it misses were set on a faster one;
- vllm-router passes on to its one worker, LiteLLM translates for one model without keys or a database.

Peers run in an environment of their own (requirements/peers.txt, built once into the cache), know nothing of this
process's environment, and talk to nobody but the upstream.

python -m benchmarks.gateway_vs_peers [--seconds S] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import load
from benchmarks.bare import BARE, bare_envoy
from benchmarks.counting import counting
from benchmarks.report import REPORTED, write
from benchmarks.ways import SECONDS, Round, Way, added, measured, medians
from cluster import pythons
from tests.contract.dying import die_with_parent
from tests.contract.envoy import Front, Rig
from tests.contract.ports import free_port

ROUNDS = 5
SIZES = {"1kb": 1024, "100kb": 100 * 1024}
MODEL = "support"
DIRECT, GATEWAY, WHOLE, ROUTER, LITELLM = "direct", "gateway", "gateway + front", "vllm-router", "LiteLLM"
OURS = {GATEWAY: "", WHOLE: "whole_"}
"""Begin of the names of figures."""
PEERS = {ROUTER: "vllm_router", LITELLM: "litellm"}
OTHERS = {BARE: "bare_envoy", **PEERS}
_PATIENCE = 90.0
"""LiteLLM imports for half a minute on a slow disk."""
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    # one thread of the runtime that vllm-router is built on
    "TOKIO_WORKER_THREADS": "1",
    # otherwise it asks for a list of prices at its start
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOG": "ERROR",
    "NO_PROXY": "*",
}

Results = dict[str, list[Round]]


def router(programs: Path, port: int, upstream: int) -> list[str]:
    """The command of vllm-router."""
    return [
        *(str(programs / "vllm-router"), "--host", "127.0.0.1", "--port", str(port)),
        *("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "error"),
    ]


def litellm(programs: Path, port: int, upstream: int, folder: Path) -> list[str]:
    """The command of LiteLLM's proxy; writes its configuration into the folder."""
    given = {"model": "openai/engine", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    # JSON is YAML
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": MODEL, "litellm_params": given}],
                "litellm_settings": {"telemetry": False},
            }
        )
    )
    address = ("--host", "127.0.0.1", "--port", str(port))
    return [str(programs / "litellm"), "--config", str(config), *address, "--num_workers", "1"]


@contextmanager
def running(name: str, command: Sequence[str], port: int, folder: Path) -> Iterator[int]:
    """A proxy that answers; gives its process's id, and ends it."""
    log = folder / f"{PEERS[name]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**_ENVIRONMENT, "HOME": str(folder)},
            preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
        )
    try:
        _wait(name, process, port, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until a request of the benchmark's gets a 200; a port that is open does not say that workers are known."""
    request = load.request_of(load.body_of(MODEL, 1024))
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            answered = load.measure(port, request, connections=1, seconds=0.0)
            if answered.latencies and not answered.errors:
                return
        except (OSError, TimeoutError):
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{name} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


async def _run(folder: Path, rounds: int, seconds: float) -> tuple[dict[str, Results], float]:
    """Results by size and way, and the speed of the machine."""
    programs = pythons.venv("peers").parent
    upstream = free_port()
    with load.upstream(upstream), ExitStack() as stack:
        ways = {DIRECT: Way(upstream)}
        alone, whole = folder / "alone", folder / "whole"
        for one in (alone, whole):
            one.mkdir()
        async with (
            Front(folder, upstream) as front,
            Rig(alone, ads=alone / "ads.sock", count_usage=True) as gateway,
            Rig(whole, ads=whole / "ads.sock", count_usage=True) as before_front,
            bare_envoy(upstream, folder) as (bare_port, bare),
        ):
            for name, rig, pod, fronts in (
                (GATEWAY, gateway, f"127.0.0.1:{upstream}", ()),
                (WHOLE, before_front, front.address, (front.envoy.pid,)),
            ):
                heard = stack.enter_context(counting(rig.folder / "ads.sock", [pod], rig.folder))
                await rig.envoy.ready()
                ways[name] = Way(rig.port, (rig.envoy.pid, *fronts), (heard,))
            ways[BARE] = Way(bare_port, (bare,))
            ports = {name: free_port() for name in PEERS}
            commands = {
                ROUTER: router(programs, ports[ROUTER], upstream),
                LITELLM: litellm(programs, ports[LITELLM], upstream, folder),
            }
            for name, command in commands.items():
                process = await asyncio.to_thread(stack.enter_context, running(name, command, ports[name], folder))
                ways[name] = Way(ports[name], (process,))
            results, speeds = {}, []
            for size, length in SIZES.items():
                request = load.request_of(load.body_of(MODEL, length))
                results[size], speed = await measured(ways, request, rounds=rounds, seconds=seconds)
                speeds.append(speed)
            return results, statistics.median(speeds)


def figures_of(results: Mapping[str, Results]) -> dict[str, float]:
    """The figures, from rounds by size and way."""
    found: dict[str, float] = {}
    for size, ways in results.items():
        direct = ways[DIRECT]
        for name, begin in OURS.items():
            ours = medians(ways[name])
            found |= {
                f"{begin}added_ms_p50_{size}": statistics.median(added(ways[name], direct)),
                f"{begin}requests_per_second_{size}": ours.per_second,
                f"{begin}cpu_us_per_request_{size}": ours.cpu_us,
                f"{begin}counting_cpu_us_per_request_{size}": ours.counting_us,
            }
        found |= {
            f"direct_ms_p50_{size}": medians(direct).one,
            f"direct_requests_per_second_{size}": medians(direct).per_second,
        }
        for name, key in OTHERS.items():
            peer = medians(ways[name])
            found |= {
                f"{key}_added_ms_p50_{size}": statistics.median(added(ways[name], direct)),
                f"{key}_requests_per_second_{size}": peer.per_second,
                f"{key}_cpu_us_per_request_{size}": peer.cpu_us,
            }
    for key in OTHERS.values():
        for begin in OURS.values():
            rates = found[f"{begin}requests_per_second_1kb"], found[f"{key}_requests_per_second_1kb"]
            found[f"{begin}ratio_{key}"] = rates[0] / rates[1]
    return found


def _spread(results: Mapping[str, Results]) -> dict[str, str]:
    found = {}
    for size, ways in results.items():
        for name, begin in OURS.items():
            more, rates = added(ways[name], ways[DIRECT]), [r.per_second for r in ways[name]]
            found[f"{begin}added_ms_p50_{size}"] = f"{min(more):.3f} to {max(more):.3f}"
            found[f"{begin}requests_per_second_{size}"] = f"{min(rates):.0f} to {max(rates):.0f}"
    return found


def _unit(name: str) -> str:
    if "ratio" in name:
        return "times"
    return "us" if "cpu_us" in name else "requests/s" if "per_second" in name else "ms"


TARGETS = {
    "added_ms_p50_1kb": "<= 0.2",
    "added_ms_p50_100kb": "<= 0.35",
    "requests_per_second_1kb": ">= 10000",
    "requests_per_second_100kb": ">= 4500",
    "ratio_litellm": ">= 100",
    "ratio_vllm_router": ">= 1",
    **{f"whole_{name}_{size}": REPORTED for name in ("added_ms_p50", "requests_per_second") for size in SIZES},
    **{f"whole_ratio_{key}": REPORTED for key in OTHERS.values()},
    **{f"{key}_requests_per_second_1kb": REPORTED for key in OTHERS.values()},
    "ratio_bare_envoy": REPORTED,
    "bare_envoy_added_ms_p50_1kb": REPORTED,
}


def main(arguments: list[str]) -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway_vs_peers")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one way in one round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="gateway-vs-peers-") as folder:
        results, speed = asyncio.run(_run(Path(folder), given.rounds, given.seconds))
    figures = figures_of(results)
    return write(
        "gateway_vs_peers",
        {**figures, "machine_sha256_gb_per_second": speed},
        {**{name: _unit(name) for name in figures}, "machine_sha256_gb_per_second": "GB/s"},
        targets=TARGETS,
        spread=_spread(results),
        note=f"One worker each; client, upstream and proxies share the cores; medians of {given.rounds} rounds in "
        "turn; p50 at 1 connection, requests/s and CPU at 32. The gateway has tokens and logs on, and a process that "
        "counts; `whole_` is the same with a pod's front behind it; `bare_envoy` only passes on. Peers have no front, "
        "keys, split or log.",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
