"""What the whole way through Tuneyard adds to a request: gateway's chain and pod's front, log and counting on.

Five ways to one upstream, in turn, so that a slow moment of the machine hits all: directly; through an Envoy that does
nothing but pass on; through two of those, which is what two hops cost at least; through a pod's front; through gateway
and front. One worker each; client, upstream, both Envoys and the process that counts answers share the machine's cores.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import load
from benchmarks.bare import BARE, bare_envoy
from benchmarks.counting import counting
from benchmarks.report import write
from benchmarks.ways import Round, Way, added, measured, medians
from tests.contract.envoy import Front, Rig
from tests.contract.ports import free_port

ROUNDS = 5
DIRECT, TWO_BARE = "direct", "two bare Envoys"
FRONT, WHOLE = "front", "gateway + front"


async def _run(folder: Path) -> tuple[dict[str, list[Round]], float]:
    port = free_port()
    socket = folder / "ads.sock"
    with load.upstream(port), ExitStack() as stack:
        async with (
            Front(folder, port) as front,
            Rig(folder, ads=socket, count_usage=True) as rig,
            bare_envoy(port, folder) as (bare_port, bare),
            bare_envoy(bare_port, folder, "before") as (before_port, before),
        ):
            heard = stack.enter_context(counting(socket, [front.address], folder))
            await rig.envoy.ready()
            ways = {
                DIRECT: Way(port),
                BARE: Way(bare_port, (bare,)),
                TWO_BARE: Way(before_port, (before, bare)),
                FRONT: Way(front.port, (front.envoy.pid,)),
                WHOLE: Way(rig.port, (rig.envoy.pid, front.envoy.pid), (heard,)),
            }
            return await measured(ways, load.request_of(load.body_of("support", 1024)), rounds=ROUNDS)


def main() -> int:
    """Measure, write and print."""
    with tempfile.TemporaryDirectory(prefix="gateway-overhead-") as folder:
        results, speed = asyncio.run(_run(Path(folder)))
    middle = {name: medians(rounds) for name, rounds in results.items()}
    for name, m in middle.items():
        print(
            f"{name:16} p50 at 1: {m.one:.3f} ms   at 32: {m.per_second:8.0f} requests/s, p50 {m.many:.2f} ms, "
            f"Envoy CPU {m.cpu_us:.0f} us, counting {m.counting_us:.0f} us"
        )
    more = added(results[WHOLE], results[DIRECT])
    rates = [r.per_second for r in results[WHOLE]]
    figures = {
        "added_ms_p50_1kb": statistics.median(more),
        "requests_per_second_1kb": statistics.median(rates),
        "cpu_us_per_request": middle[WHOLE].cpu_us,
        "counting_cpu_us_per_request": middle[WHOLE].counting_us,
        "front_added_ms_p50_1kb": middle[FRONT].one - middle[DIRECT].one,
        "direct_ms_p50_1kb": middle[DIRECT].one,
        "direct_requests_per_second_1kb": middle[DIRECT].per_second,
        "bare_envoy_added_ms_p50_1kb": middle[BARE].one - middle[DIRECT].one,
        "bare_envoy_requests_per_second_1kb": middle[BARE].per_second,
        "bare_envoy_cpu_us_per_request": middle[BARE].cpu_us,
        "two_bare_envoys_added_ms_p50_1kb": middle[TWO_BARE].one - middle[DIRECT].one,
        "two_bare_envoys_requests_per_second_1kb": middle[TWO_BARE].per_second,
        "added_over_two_bare_envoys_ratio": (middle[WHOLE].one - middle[DIRECT].one)
        / (middle[TWO_BARE].one - middle[DIRECT].one),
        "machine_sha256_gb_per_second": speed,
    }
    units = {"machine_sha256_gb_per_second": "GB/s", "added_over_two_bare_envoys_ratio": ""}
    for name in figures:
        units.setdefault(name, "requests/s" if "_second" in name else "us" if "cpu" in name else "ms")
    return write(
        "gateway_overhead",
        figures,
        units,
        targets={"added_ms_p50_1kb": "<= 0.25", "requests_per_second_1kb": ">= 8000"},
        spread={
            "added_ms_p50_1kb": f"{min(more):.3f} to {max(more):.3f}",
            "requests_per_second_1kb": f"{min(rates):.0f} to {max(rates):.0f}",
        },
        note="1 KB body; one worker per Envoy; client, upstream and Envoys share the cores; medians of "
        f"{ROUNDS} rounds in turn. bare_envoy: an Envoy that only passes on, as yardstick. SHA-256 says how fast the "
        "machine was at the time; the targets were set on one with 2.07 GB/s.",
    )


if __name__ == "__main__":
    sys.exit(main())
