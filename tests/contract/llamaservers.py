"""llama.cpp for contract tests: the loop of its container with the fake server or the real one in it, and its bases.

The real one serves SmolLM2 as GGUF, with random adapters; the fake one a header of the tiny base's size.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from cluster import llamacpp
from models import smollm2
from tests.contract.dying import die_with_parent
from tests.contract.engines import BASE, ROOT, EngineProcess
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port
from tests.contract.processes import answers, running
from tests.fakes.llamaserver import fake_gguf
from tuneyard.planning.llamacppcontainer import LOOP, ORDERS

KUBELET = 'while :; do "$@"; sleep 0.3; done'
"""Starts a container again that has ended."""


@dataclass
class LlamaProcess(EngineProcess):
    """The engine's container: the loop, which waits for an agent's orders."""

    folder: Path = field(default_factory=Path)

    def start(self, patience: float = 0.0) -> None:
        """Start the loop; there is a server once an agent has said with what."""
        orders = self.folder / "adapters" / Path(ORDERS).name
        orders.parent.mkdir(exist_ok=True)
        given = ["--host", "127.0.0.1", "--port", str(self.port), "--alias", self.name, "--metrics", "--no-slots"]
        given += ["--no-webui", "--ctx-size", "2048", "--parallel", "2"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["sh", "-c", KUBELET, "kubelet", sys.executable, "-ISc", LOOP, str(orders), *given],
                env={**os.environ, "PATH": f"{self._programs()}:{os.environ['PATH']}", "TUNEYARD_TESTS": str(ROOT)},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )

    def _programs(self) -> Path:
        if self.kind == "llama-server":
            return llamacpp.ensure() / "bin"
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        program = folder / "llama-server"
        paths = f"PYTHONPATH={ROOT}/operator:{ROOT}"
        program.write_text(f'#!/bin/sh\n{paths} exec {sys.executable} -m tests.fakes.llamaserver "$@"\n')
        program.chmod(0o755)
        return folder


def llama_process(kind: str, folder: Path) -> LlamaProcess:
    """A container that is not started yet; whoever starts it kills it."""
    base = folder / "base"
    base.mkdir()
    if kind == "llama-server":
        (base / "model.gguf").write_bytes(smollm2_file())
    else:
        (base / "model.gguf").write_bytes(fake_gguf())
    return LlamaProcess(kind, free_port(), base=base, name=BASE, folder=folder)


@contextmanager
def llama_server(model: Path, log: Path, *arguments: str) -> Iterator[str]:
    """The real server alone with one file, healthy; its URL."""
    port, program = free_port(), llamacpp.ensure() / "bin" / "llama-server"
    url = f"http://127.0.0.1:{port}"
    with running(log, program, *arguments, "--host", "127.0.0.1", "--port", port, "--model", model) as process:
        eventually(lambda: process.poll() is not None or answers(f"{url}/health"), lambda: log.read_text()[-3000:], 120)
        assert process.poll() is None, log.read_text()[-3000:]
        yield url


@cache
def smollm2_file() -> bytes:
    """SmolLM2 as its package has it."""
    return smollm2._fetch()


def random_adapter(folder: Path, seed: int, layers: int = 30, width: int = 576, keys: int = 192) -> Path:
    """A LoRA adapter for SmolLM2 that changes what it says."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(layers):
        for module, outputs in (("q_proj", width), ("v_proj", keys)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            tensors[f"{name}A.weight"] = random.normal(0, 0.05, (8, width)).astype(np.float32)
            tensors[f"{name}B.weight"] = random.normal(0, 0.05, (outputs, 8)).astype(np.float32)
    header, body = {}, b""
    for name, values in tensors.items():
        places = [len(body), len(body) + values.nbytes]
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": places}
        body += values.tobytes()
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
