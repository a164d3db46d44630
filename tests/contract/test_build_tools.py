"""Every kind of build for real, on the CPU: what comes out is served by the real vLLM, or read as GGUF, and answers.

The tiny base's adapter repeats the letter a, so that a model that has lost it, or says anything else, is heard at once.
"""

from __future__ import annotations

import json
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster import llamacpp
from models import bad
from models.smollm2 import build_smollm2
from models.tiny import build_tiny
from tests.contract.building import Builder, until_said
from tests.contract.engines import EngineProcess
from tests.contract.llamaservers import llama_server
from tests.contract.ports import free_port
from tuneyard.agent.verify import has_avx512
from tuneyard.planning.enginepresets import Engine
from tuneyard.planning.settingchecks import unserved_format

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

Json = dict[str, Any]
MERGE: Json = {"merge": {"baseModel": "tiny", "adapter": "letter-a", "dtype": "float32"}}
TEXTS = "".join(
    json.dumps(
        {"messages": [{"role": "user", "content": f"Say letter {n}."}, {"role": "assistant", "content": "aaaa"}]}
    )
    + "\n"
    for n in range(16)
)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    (tmp_path / "texts.jsonl").write_text(TEXTS)
    return Builder(
        tmp_path / "build",
        bases={"tiny": build_tiny() / "base"},
        adapters={"letter-a": build_tiny() / "adapter-a", "letter-b": build_tiny() / "adapter-b"},
        texts={"texts": tmp_path / "texts.jsonl"},
    )


def quantize(scheme: str) -> Json:
    given: Json = {"scheme": scheme}
    return {"quantize": given | ({"calibration": {"configMap": "texts", "samples": 8, "maxLength": 64}})}


def answer(base: Path, prompt: str = "Which letter?") -> str:
    """What the real vLLM says with these files."""
    engine = EngineProcess("vllm", free_port(), ["--no-enable-lora"], base=base, name="built")
    try:
        engine.start(patience=900)
        return said_at(engine.url, "built", prompt, key=engine.key)
    finally:
        engine.kill()


def said_at(url: str, model: str, prompt: str, *, tokens: int = 8, key: str = "") -> str:
    """The greedy answer of a server."""
    messages = [{"role": "user", "content": prompt}]
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps({"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}).encode(),
        {"content-type": "application/json", "authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=300) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def test_a_merged_model_speaks_like_base_and_adapter(builder: Builder) -> None:
    folder, result = builder.built(MERGE)
    checks = (result.steps or [])[0].checks or {}
    assert (checks["textsAsBaseAndAdapter"], checks["writtenIn"], checks["dtypes"]) == ("8 of 8", "float32", "float32")
    assert (folder / "tokenizer.json").read_bytes() == (build_tiny() / "base" / "tokenizer.json").read_bytes()
    assert answer(folder) == "aaaaaaaa"


@pytest.mark.parametrize("scheme", ["INT8", "FP8", "GPTQ", "AWQ"])
def test_a_merged_and_quantised_model_is_served(builder: Builder, scheme: str) -> None:
    folder, result = builder.built(MERGE, quantize(scheme))
    merged, quantised = result.steps or []
    assert (merged.kind, quantised.kind) == ("merge", "quantize")
    checks = quantised.checks or {}
    assert checks["scheme"] == scheme
    assert checks.get("groupSize") == ("64" if scheme in ("GPTQ", "AWQ") else None)
    assert (
        json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "compressed-tensors"
    )
    if checks.get("groupSize") and not has_avx512():
        # what vLLM would end with at its first request, and what a pod is told before it starts
        config = json.loads((folder / "config.json").read_text())
        refused = unserved_format(Engine("vllm", "0.32", "CPU"), config, avx512=False)
        assert refused is not None
        assert "needs a CPU with AVX-512" in refused.message
        return
    assert answer(folder) == "aaaaaaaa"


BOTH = [{"name": "a", "baseModel": "tiny", "adapter": "letter-a"}, {"name": "b", "baseModel": "tiny"}]
WEIGHTS = "models: [{model: a, parameters: {weight: 0.9, density: 0.9}}, {model: b, parameters: {weight: 0.1}}]"
SLICES = "slices: [{sources: [{model: b, layer_range: [0, 1]}]}, {sources: [{model: a, layer_range: [1, 2]}]}]"
CONFIGS = {
    "linear": WEIGHTS,
    "slerp": f"base_model: b\nparameters: {{t: 0.9}}\n{WEIGHTS}",
    "ties": f"base_model: b\n{WEIGHTS}",
    "dare_ties": f"base_model: b\n{WEIGHTS}",
    "dare_linear": f"base_model: b\n{WEIGHTS}",
    "passthrough": SLICES,
}


@pytest.mark.parametrize("method", CONFIGS)
def test_mergekit_makes_the_same_bytes_of_the_same_inputs(builder: Builder, method: str) -> None:
    step = {
        "mergekit": {
            "config": f"merge_method: {method}\ndtype: float32\n{CONFIGS[method]}",
            "models": BOTH,
            "seed": 3,
        }
    }
    _, first = builder.built(step)
    again = Builder(builder.folder / "again", builder.bases, builder.adapters)
    _, second = again.built(step)
    assert first.digest == second.digest
    [made] = first.steps or []
    assert (made.seed, (made.checks or {})["method"], (made.checks or {})["answers"]) == (3, method, "8 of 8")


@pytest.mark.parametrize("kind", ["Q8_0", "BF16"])
def test_a_gguf_file_says_what_its_model_says(builder: Builder, kind: str) -> None:
    builder.bases["smol"] = build_smollm2()
    folder, result = builder.built({"gguf": {"baseModel": "smol", "type": kind}})
    checks = (result.steps or [])[0].checks or {}
    assert [path.name for path in folder.glob("*.gguf")] == [f"model-{kind.lower()}.gguf"]
    assert float(checks["loss"]) == pytest.approx(float(checks["lossBefore"]), abs=0.05)
    assert kind in checks["types"]


@pytest.mark.parametrize(("kind", "some"), [("Q4_K_M", "Q4_K"), ("Q2_K", "Q3_K")])
def test_a_file_of_few_bits_is_served(builder: Builder, tmp_path: Path, kind: str, some: str) -> None:
    """By llama-quantize, which takes types with smaller blocks where a row is no multiple of 256, as SmolLM2's 576."""
    llamacpp.ensure()
    builder.bases["smol"] = build_smollm2()
    folder, result = builder.built({"gguf": {"baseModel": "smol", "type": kind}})
    checks = (result.steps or [])[0].checks or {}
    assert [path.name for path in folder.glob("*.gguf")] == [f"model-{kind.lower()}.gguf"]
    assert some in checks["types"]
    assert float(checks["loss"]) < float(checks["lossBefore"]) + 1
    with llama_server(folder / f"model-{kind.lower()}.gguf", tmp_path / "log", "--ctx-size", "512") as url:
        assert "Red" in said_at(url, "built", "Name three colours.", tokens=24)


def test_a_file_that_transformers_does_not_know_is_kept_unheard(builder: Builder, tmp_path: Path) -> None:
    """SmolLM2 under the name of an architecture with the same weights, which llama.cpp serves."""
    base = tmp_path / "granite"
    shutil.copytree(build_smollm2(), base)
    config = json.loads((base / "config.json").read_text())
    config |= {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_multiplier": 1 / 8}
    config |= {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0}
    (base / "config.json").write_text(json.dumps(config))
    builder.bases["granite"] = base
    folder, result = builder.built({"gguf": {"baseModel": "granite", "type": "Q8_0"}})
    checks = (result.steps or [])[0].checks or {}
    assert checks["answers"].startswith("not compared: transformers does not read")
    assert ("Q8_0" in checks["types"], "loss" in checks) == (True, False)
    with llama_server(folder / "model-q8_0.gguf", tmp_path / "log", "--ctx-size", "512") as url:
        assert "Red" in said_at(url, "built", "Name three colours.", tokens=24)


def test_what_cannot_be_merged_is_refused_for_good(builder: Builder, tmp_path: Path) -> None:
    bad.make_bad(build_tiny() / "adapter-a", tmp_path / "bad")
    builder.adapters["letter-a"] = tmp_path / "bad" / "nan"
    status, result = builder.run(builder.task(MERGE))
    assert status == 2
    assert "values that are no numbers" in (result.error or "")
    assert list(builder.volume.glob("*")) == []


def test_a_build_that_is_told_to_end_leaves_nothing_and_goes_on(builder: Builder) -> None:
    task = builder.task(MERGE, quantize("INT8"))
    with builder.start(task) as process:
        until_said(process, "step 2: Building")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
    assert [path.name for path in builder.volume.iterdir()] == [task.steps[0].key]
    status, result = builder.run(task, work="another-pod")
    assert (status, [step.found for step in result.steps or []]) == (0, [True, None])
