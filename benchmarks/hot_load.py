"""How long a new adapter takes from its apply to its first token through the gateway, on running engines.

On a cluster of its own (`--where cluster`): a LoRAAdapter and a ModelDeployment with one revision more are applied as
kubectl applies them (server-side, without the start of kubectl in the figure), and the new revision is asked for by
`x-revision` until it answers. The files are on the node.

`--where agent` hands the plan to an agent beside one engine, without a cluster: what is left is what loading costs.

python -m benchmarks.hot_load [--where cluster|agent] [--engine vllm|fake] [--loads N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks.report import percentile, write
from demo.kubectl import ready
from demo.session import session
from demo.system import MODELS_NAMESPACE, System
from models.smollm2 import build_smollm2
from tests.contract.pods import ModelPods, pod_engine
from tests.e2e.world import adapter
from tuneyard.api import names
from tuneyard.api.documents import PlannedAdapter
from tuneyard.systems.kube.client import APPLY, Api, connect

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ADAPTER = EXAMPLES / "adapters" / "acme-support-v1"
MODEL = "hot-load"
LOADS = 200
_KEPT = 8
"""Adapters that are loaded at a time: the oldest goes when a new one comes."""
_MOST_SECONDS = 60.0

Act = Callable[[int], Awaitable[None]]


async def first_token(client: aiohttp.ClientSession, url: str, model: str, revision: str = "") -> str:
    """Ask until the model (a revision of it) answers, and wait for its first token; returns the name in the answer.

    An unknown model (404) and one without a ready pod (503) are asked again after 10 ms.
    """
    message = [{"role": "user", "content": "How do I reset my password?"}]
    body = {"model": model, "messages": message, "max_tokens": 1, "stream": True}
    headers = {"x-revision": revision} if revision else {}
    deadline = time.monotonic() + _MOST_SECONDS
    while time.monotonic() < deadline:
        async with client.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
            if response.status == 200:
                async for line in response.content:
                    if line.startswith(b"data: {"):
                        return str(json.loads(line[6:])["model"])
            elif response.status not in (404, 503):
                raise SystemExit(f"{model}: {response.status} {(await response.text())[:300]}")
        await asyncio.sleep(0.01)
    raise SystemExit(f"{model} did not answer within {_MOST_SECONDS} s")


async def measure(url: str, loads: int, name: Callable[[int], tuple[str, str]], apply: Act, retire: Act) -> list[float]:
    """Seconds from the beginning of `apply(i)` to the first token of `name(i)` (model, revision), for each load.

    `retire(i)` takes the adapter i away; it is called when it is no longer among the newest ones, off the clock.
    """
    seconds = []
    async with aiohttp.ClientSession() as client:
        for number in range(loads):
            began = time.perf_counter()
            await apply(number)
            await first_token(client, url, *name(number))
            seconds.append(time.perf_counter() - began)
            if number >= _KEPT:
                await retire(number - _KEPT)
    return seconds


def copies(folder: Path, count: int, like: Path = ADAPTER) -> list[Path]:
    """`count` adapters that differ in their digest only."""
    made = []
    for number in range(count):
        target = folder / f"adapter-{number}"
        shutil.copytree(like, target, dirs_exist_ok=True)
        config = json.loads((target / "adapter_config.json").read_text())
        (target / "adapter_config.json").write_text(json.dumps({**config, "revision": f"copy {number}"}))
        made.append(target)
    return made


class OnCluster:
    """Adapters that come and go on an installation; one ModelDeployment has a revision for each."""

    def __init__(self, system: System, api: Api) -> None:
        self._system = system
        self._api = api
        self._there: list[int] = []

    def prepare(self, loads: int) -> None:
        """Files on the node, base on its pods, a first adapter to warm up."""
        self._system.kubectl.apply(EXAMPLES / "quickstart" / "base.yaml", MODELS_NAMESPACE)
        for path in copies(self._system.provider.artifacts() / "adapters", loads + 1):
            for one in (path, *path.iterdir()):
                one.chmod(0o755 if one.is_dir() else 0o644)
        self._apply("modeldeployments", self._deployment())
        self._system.kubectl.wait_for("mdep", MODEL, ready, namespace=MODELS_NAMESPACE, timeout=900)

    def _apply(self, plural: str, document: dict[str, Any]) -> None:
        group = f"/apis/{names.API_VERSION}/namespaces/{MODELS_NAMESPACE}/{plural}"
        query = {"fieldManager": "kubectl", "force": "true"}
        self._api.request(
            "PATCH", f"{group}/{document['metadata']['name']}", query=query, body=document, content_type=APPLY
        )

    def _deployment(self) -> dict[str, Any]:
        adapters = [{"name": f"a{n}", "baseModel": "smollm2", "adapter": f"hot-{n}"} for n in self._there]
        spec = {
            "revisions": [{"name": "base", "baseModel": "smollm2"}, *adapters],
            "traffic": [{"revision": "base", "weight": 100}],
            "routing": {"allowRevisionHeader": True},
        }
        return {
            "apiVersion": names.API_VERSION,
            "kind": "ModelDeployment",
            "metadata": {"name": MODEL, "namespace": MODELS_NAMESPACE},
            "spec": spec,
        }

    def add(self, number: int) -> None:
        """What a person applies: the adapter, and the deployment with a revision for it."""
        self._there.append(number)
        self._apply("loraadapters", yaml.safe_load(adapter(f"hot-{number}", f"adapters/adapter-{number}")))
        self._apply("modeldeployments", self._deployment())

    def remove(self, number: int) -> None:
        """The revision first: an adapter in use cannot be deleted."""
        self._there.remove(number)
        self._apply("modeldeployments", self._deployment())
        self._system.kubectl.delete_unused("lora", f"hot-{number}", MODELS_NAMESPACE)


async def _on_cluster(system: System, loads: int) -> list[float]:
    os.environ["KUBECONFIG"] = str(system.provider.kubeconfig())
    world = OnCluster(system, connect())
    await asyncio.to_thread(world.prepare, loads)

    async def add(number: int) -> None:
        await asyncio.to_thread(world.add, number)

    async def remove(number: int) -> None:
        await asyncio.to_thread(world.remove, number)

    async with aiohttp.ClientSession() as client:
        await add(loads)  # one to warm up
        await first_token(client, system.gateway, MODEL, f"a{loads}")
    return await measure(system.gateway, loads, lambda n: (MODEL, f"a{n}"), add, remove)


async def _with_agent(kind: str, loads: int, folder: Path) -> list[float]:
    files = copies(folder / "files", loads + 1)
    engine = pod_engine(kind, build_smollm2(), "smollm2", max_cpu_loras=64)
    async with ModelPods(folder, [engine], max_cpu_loras=64) as pods:
        planned: dict[int, PlannedAdapter] = {}

        async def apply(number: int) -> None:
            planned[number] = pods.has(f"a{number}", files[number])
            pods.plan(*planned.values())

        async def retire(number: int) -> None:
            del planned[number]
            pods.plan(*planned.values())

        pods.plan()
        await pods.rigs[0].until(lambda r: r.engine == "Ready", "the base answers", within=300)
        await pods.gateway.serve()
        await apply(loads)  # one to warm up
        await pods.rigs[0].until_loaded(f"a{loads}")
        return await measure(pods.url, loads, lambda n: (f"a{n}", ""), apply, retire)


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hot_load", description=__doc__)
    parser.add_argument("--where", choices=["cluster", "agent"], default="cluster")
    parser.add_argument("--engine", choices=["vllm", "fake"], default="vllm", help="with --where agent")
    parser.add_argument("--loads", type=int, default=LOADS)
    given = parser.parse_args(arguments)
    if given.where == "cluster":
        with session() as system:
            seconds = asyncio.run(_on_cluster(system, given.loads))
        note = "real vLLM, SmolLM2-135M on two pods of a real cluster; from the apply to the first token through the "
        note += "gateway, by the header x-revision; the start of kubectl is not in it"
    else:
        with tempfile.TemporaryDirectory(prefix="hot-load-") as folder:
            seconds = asyncio.run(_with_agent(given.engine, given.loads, Path(folder)))
        note = f"{given.engine} engine, one pod, no cluster; from the agent's plan to the first token"
    return write(
        "hot_load" if given.where == "cluster" else "hot_load_agent",
        {"p50_seconds": percentile(seconds, 0.5), "p99_seconds": percentile(seconds, 0.99), "loads": len(seconds)},
        {"p50_seconds": "s", "p99_seconds": "s", "loads": ""},
        targets={"p50_seconds": "<= 1.5", "p99_seconds": "<= 4"},
        spread={"p50_seconds": f"{min(seconds):.3f} to {max(seconds):.3f}"},
        note=note,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
