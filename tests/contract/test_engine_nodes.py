"""A replica that spans nodes on the real vLLM: two processes on loopback, started as their pods would start them.

Marked slow: two engines on a machine without a GPU take their time.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import pythons
from models.tiny import build_tiny
from tests.builders import SETTINGS, VOLUME, base_model, deployment, revision
from tests.contract.dying import die_with_parent
from tests.contract.ports import free_port
from tuneyard.api import names
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.children import pool_workload
from tuneyard.planning.podvolumes import base_path
from tuneyard.planning.pools import pools_of

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]

KEY = "key-of-the-tests"
_SERVING = ServingSpec(
    artifact_volumes=[VOLUME],
    tensor_parallel_size=2,
    nodes_per_replica=2,
    max_model_len=512,
    lora=LoRASettings(max_loras=2, max_rank=16, max_cpu_loras=4),
    extra_args=["--enforce-eager"],
)
_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}


class Nodes:
    """The engine containers of one replica, with loopback in place of their nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.front, self._master = free_port(), free_port(), free_port()
        base = base_model("tiny", serving=_SERVING)
        (pool,) = pools_of(base, [deployment(revisions=[revision("v0", base="tiny")])])
        template = pool_workload(pool, base, SETTINGS)["spec"]["leaderWorkerTemplate"]
        self._path = base_path(base)
        self._engines = [template[f"{who}Template"]["spec"]["containers"][0] for who in ("leader", "worker")]

    @contextmanager
    def running(self, rank: int) -> Iterator[subprocess.Popen[bytes]]:
        """The container of this rank."""
        engine = self._engines[min(rank, 1)]
        given = {e["name"]: e["value"] for e in engine["env"] if "value" in e}
        ours = {"LWS_LEADER_ADDRESS": "127.0.0.1", "LWS_WORKER_INDEX": str(rank), "LWS_GROUP_SIZE": "2"}
        home = {"HOME": str(self.folder), "VLLM_CACHE_ROOT": str(self.folder / "cache"), "PATH": self._path_of_python()}
        home["PYTHONPATH"] = self._named_as_for_gpus()
        key = {"VLLM_API_KEY": KEY} if rank == 0 else {}
        environment = {**os.environ, **given, **ours, **_CPU, **home, **key}
        command = [self._here(part, environment) for part in (*engine["command"], *engine["args"])]
        with self.log(rank).open("wb") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
            )
        try:
            yield process
        finally:
            end(process)

    def log(self, rank: int) -> Path:
        return self.folder / f"rank-{rank}.log"

    def said(self) -> str:
        logs = (self.log(rank) for rank in (0, 1))
        return "\n\n".join(f"{log.name}:\n{log.read_text()[-4000:]}" for log in logs if log.exists())

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        request.add_header("Authorization", f"Bearer {KEY}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    def healthy(self) -> bool:
        try:
            self.ask("/health")
        except OSError:
            return False
        return True

    def _path_of_python(self) -> str:
        """`python3` is the engine image's."""
        programs = self.folder / "bin"
        programs.mkdir(exist_ok=True)
        python = programs / "python3"
        if not python.exists():
            # not a link: the environment's packages are found by where its own program lies
            python.write_text(f'#!/bin/sh\nexec {pythons.venv("vllm-cpu")} "$@"\n')
            python.chmod(0o755)
        return f"{programs}:{os.environ['PATH']}"

    def _named_as_for_gpus(self) -> str:
        """vLLM's command asks which version of the package `vllm` this is; the one for CPUs has another name."""
        told = self.folder / "named" / "vllm-0.dist-info"
        told.mkdir(parents=True, exist_ok=True)
        (told / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        return str(told.parent)

    def _here(self, part: str, environment: dict[str, str]) -> str:
        """A part of the command with paths and ports of this machine, and variables as the kubelet puts them in."""
        for name in ("LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"):
            part = part.replace(f"$({name})", environment[name])
        part = part.replace(f":{names.FRONT_PORT}/health", f":{self.front}/health")
        whole = {
            self._path: str(build_tiny() / "base"),
            str(names.ENGINE_PORT): str(self.port),
            "29501": str(self._master),
            "python3": str(pythons.venv("vllm-cpu")),
        }
        return whole.get(part, part)


def end(process: subprocess.Popen[bytes]) -> None:
    """With all that it started."""
    subprocess.run(["kill", "-9", "--", f"-{process.pid}"], check=False, capture_output=True)
    process.wait()


def test_two_nodes_are_one_engine_with_adapters_and_nobody_joins_later(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path)
    with ExitStack() as stack:
        leader, worker = (stack.enter_context(nodes.running(rank)) for rank in (0, 1))
        until = time.monotonic() + 400
        while not nodes.healthy():
            assert leader.poll() is None, nodes.said()
            assert worker.poll() is None, nodes.said()
            assert time.monotonic() < until, nodes.said()
            time.sleep(0.5)
        question = {"model": "tiny", "prompt": "a", "max_tokens": 4, "temperature": 0}
        alone = nodes.ask("/v1/completions", question)["choices"][0]["text"]
        assert alone
        adapter = {"lora_name": "a-1", "lora_path": str(build_tiny() / "adapter-a")}
        nodes.ask("/v1/load_lora_adapter", adapter)
        tuned = nodes.ask("/v1/completions", {**question, "model": "a-1"})["choices"][0]["text"]
        assert tuned.strip("a") == "", f"the adapter repeats the letter a on both ranks: {tuned!r}"
        assert tuned != alone
        nodes.ask("/v1/unload_lora_adapter", {"lora_name": "a-1"})
        assert [m["id"] for m in nodes.ask("/v1/models")["data"]] == ["tiny"]

        late = Nodes(tmp_path / "late")
        late.folder.mkdir()
        late.front = nodes.port  # where a front would answer for the leader's engine
        with late.running(1) as other:
            assert other.wait(60) == 1
        assert "the whole group has to begin anew" in late.said()
        assert nodes.ask("/v1/completions", question)["choices"][0]["text"] == alone
