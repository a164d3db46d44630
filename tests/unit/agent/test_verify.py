"""The init container: the base is whole, can be split as asked, is the pinned one; and every end is told in words."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.tiny import build_tiny
from tests.fakes.llamaserver import fake_gguf
from tuneyard.agent import verify as module
from tuneyard.agent.enginetold import VLLM, EngineTold, engine_from
from tuneyard.agent.verify import BaseWanted, guarding_of, has_avx512, verify
from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.reasons import Reason
from tuneyard.planning.enginepresets import Engine
from tuneyard.planning.settingchecks import unserved_format
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.envoy.front import front_config

MOST_BYTES = 4096
"""The kubelet cuts a termination message here."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts" / "models" / "tiny"
    shutil.copytree(build_tiny() / "base", folder)
    return folder


def told(
    base: Path,
    size: int = 1,
    digest: str | None = None,
    memory: MemoryDemand | None = None,
    engine: EngineTold = VLLM,
) -> tuple[int, dict[str, Any], Path]:
    """Exit code, report, and where the front's configuration would be."""
    volumes = base.parents[1]
    front, log = volumes.parent / "run" / "front.yaml", volumes.parent / "termination-log"
    code = verify(BaseWanted("tiny", base, size, digest, volumes, memory, engine), front, log)
    assert log.stat().st_size <= MOST_BYTES
    return code, json.loads(log.read_text()), front


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_good_base_and_the_front_s_configuration(base: Path) -> None:
    digest = digest_of(base)
    for pinned in (None, digest.digest):
        code, report, front = told(base, 2, pinned)
        assert code == 0
        assert report == {
            "ok": True,
            "digest": digest.digest,
            "sizeBytes": digest.size_bytes,
            "architecture": "LlamaForCausalLM",
        }
        assert yaml.safe_load(front.read_text()) == front_config()


def refused(base: Path, size: int = 1, digest: str | None = None) -> tuple[Reason, str]:
    code, report, front = told(base, size, digest)
    assert code == 1
    assert report["ok"] is False
    assert not front.exists(), "no front without a base"
    assert len(report["message"]) > 30
    return Reason(report["reason"]), report["message"]  # type: ignore[call-arg]


def test_heads_that_cannot_be_shared_name_what_fits(base: Path) -> None:
    change(base / "config.json", num_attention_heads=9)
    reason, message = refused(base, 2)
    assert reason == Reason.TENSOR_PARALLEL_MISMATCH
    assert "1, 3, 9" in message


@pytest.mark.parametrize(
    ("demand", "reason", "words"),
    [
        ({"gpu_memory": 4 << 30, "max_loras": 8, "pipeline_parallel_size": 2}, None, ""),
        ({"gpu_memory": 256 << 20}, "GPUMemoryTooSmall", "and may use 235.5 MiB: raise tensorParallelSize"),
        (
            {"pipeline_parallel_size": 3},
            "UnsupportedSetting",
            "pipelineParallelSize 3 is more than the base's 2 layers",
        ),
        ({"expert_parallel": True}, "UnsupportedSetting", "config.json has none"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_hashed(
    base: Path, demand: dict[str, Any], reason: str | None, words: str
) -> None:
    code, report, front = told(base, 1, memory=MemoryDemand(**demand))
    assert (code, report.get("reason"), front.exists()) == (int(reason is not None), reason, reason is None)
    assert words in report.get("message", "")
    assert ("digest" in report) == (reason is None)


STATIC = {"config_groups": {"group_0": {"input_activations": {"type": "float", "dynamic": False}}}}


@pytest.mark.parametrize(
    ("quantization", "build", "words"),
    [
        ({"quant_method": "compressed-tensors"}, "CPU", None),
        ({"quant_method": "bitsandbytes"}, "CPU", "which vllm 0.32 (CPU) does not serve: quantise the base beforehand"),
        ({"quant_method": "bitsandbytes"}, "CUDA", "which vllm 0.32 (CUDA) does not serve: quantise the base"),
        ({"quant_method": "BitsAndBytes"}, "CPU", "which vllm 0.32 (CPU) does not serve"),
        # names of what it serves that are no values of the setting, and what nobody has tried
        ({"quant_method": "auto-round"}, "CUDA", None),
        ({"quant_method": "compressed_tensors"}, "CPU", None),
        ({"quant_method": "mxfp4"}, "CPU", None),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "CPU", "static scales"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, "CPU", None),
        ({"quant_method": "compressed-tensors", **STATIC}, "CPU", "static scales"),
        ({"quant_method": "compressed-tensors", **STATIC}, "CUDA", None),
        ({"quant_method": "bitsandbytes"}, "", None),
        ("bitsandbytes", "CPU", None),
    ],
)
def test_a_base_that_the_engine_cannot_read_is_refused_before_it_starts(
    base: Path, quantization: object, build: str, words: str | None
) -> None:
    change(base / "config.json", quantization_config=quantization)
    engine = engine_from({"TUNEYARD_ENGINE_VERSION": "0.32", "TUNEYARD_ENGINE_BUILD": build})
    code, report, _ = told(base, 1, engine=engine)
    assert (code, report.get("reason")) == ((0, None) if words is None else (1, "UnsupportedSetting"))
    assert (words or "") in report.get("message", "")


@pytest.mark.parametrize(("parts", "words"), [(1, ""), (2, "of which tensorParallelSize 2 makes no whole ones")])
def test_parts_that_cut_groups_are_refused(base: Path, parts: int, words: str) -> None:
    size = json.loads((base / "config.json").read_text())["intermediate_size"]
    weights = {"num_bits": 4, "strategy": "group", "group_size": size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    written = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}
    change(base / "config.json", quantization_config=written)
    engine = engine_from({"TUNEYARD_ENGINE_VERSION": "0.32", "TUNEYARD_ENGINE_BUILD": "CUDA"})
    code, report, _ = told(base, parts, engine=engine)
    assert (code, report.get("reason")) == ((1, "UnsupportedSetting") if words else (0, None))
    assert words in report.get("message", "")


@pytest.mark.parametrize(
    ("quantization", "needs"),
    [
        ({"quant_method": "awq", "bits": 4}, True),
        ({"quant_method": "gptq", "bits": 8}, False),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, True),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, False),
    ],
)
def test_weights_of_4_bits_need_a_cpu_with_avx_512(quantization: dict[str, Any], needs: bool) -> None:
    config = {"quantization_config": quantization}
    found = unserved_format(Engine("vllm", "0.32", "CPU"), config, avx512=False)
    assert (found is not None) == needs
    assert found is None or "needs a CPU with AVX-512" in found.message
    assert unserved_format(Engine("vllm", "0.32", "CPU"), config, avx512=True) is None
    assert unserved_format(Engine("vllm", "0.32", "CUDA"), config, avx512=False) is None


@pytest.mark.parametrize(
    ("told", "has"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", True),
        ("processor : 0\nflags\t\t: fpu avx2\n", False),
        ("processor : 0\nFeatures : fp asimd\n", True),
        (None, True),
    ],
)
def test_what_the_node_says_of_its_cpu(tmp_path: Path, told: str | None, has: bool) -> None:
    file = tmp_path / "cpuinfo"
    if told is not None:
        file.write_text(told)
    assert has_avx512(file) == has


def test_heads_of_a_nested_language_model_count(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    nested = {"architectures": ["X"], "num_attention_heads": 2, "text_config": {**config, "num_attention_heads": 9}}
    (base / "config.json").write_text(json.dumps(nested))
    assert refused(base, 2)[0] == Reason.TENSOR_PARALLEL_MISMATCH
    assert told(base, 3)[0] == 0


def test_another_digest_is_refused_and_both_are_named(base: Path) -> None:
    pinned = "sha256:" + "0" * 64
    reason, message = refused(base, digest=pinned)
    assert reason == Reason.DIGEST_MISMATCH
    assert pinned in message
    assert digest_of(base).digest in message


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (lambda b: (b / "config.json").unlink(), Reason.FILES_MISSING),
        (lambda b: (b / "config.json").write_text("{"), Reason.INVALID_CONFIG),
        (lambda b: (b / "config.json").write_text("[]"), Reason.INVALID_CONFIG),
        (lambda b: (b / "config.json").write_text("{}"), Reason.INVALID_CONFIG),
        (lambda b: (b / "model.safetensors").unlink(), Reason.FILES_MISSING),
        (lambda b: (b / "model.safetensors").rename(b / "model.bin"), Reason.FILES_MISSING),
        (lambda b: (b / "model.safetensors").write_bytes(b"\0" * 100), Reason.CORRUPT_WEIGHTS),
        (lambda b: (b / "tokenizer.json").unlink(), Reason.FILES_MISSING),
        (shutil.rmtree, Reason.ARTIFACT_NOT_FOUND),
        (
            lambda b: (b / "model.safetensors.index.json").write_text('{"weight_map": {"x": "other.safetensors"}}'),
            Reason.FILES_MISSING,
        ),
        (lambda b: (b / "model.safetensors.index.json").write_text("{}"), Reason.INVALID_CONFIG),
        (lambda b: (b / "more").symlink_to("/etc/hostname"), Reason.UNSAFE_PATH),
    ],
)
def test_what_is_missing_or_broken_is_told(base: Path, break_it: Any, reason: Reason) -> None:
    break_it(base)
    assert refused(base)[0] == reason


def test_truncated_weights_are_found_without_reading_them(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "digest_of", lambda *_, **__: pytest.fail("hashing comes last"))
    raw = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(raw[:-1])
    assert refused(base)[0] == Reason.CORRUPT_WEIGHTS
    (base / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + raw[8:])
    assert refused(base)[0] == Reason.CORRUPT_WEIGHTS


def test_half_a_character_ends_no_report(base: Path) -> None:
    """JSON can hold half of a surrogate pair, which no UTF-8 can: neither the kubelet nor the API server takes it."""
    index = base / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "\\ud800.safetensors"}}')
    reason, message = refused(base)
    assert reason is Reason.FILES_MISSING
    assert "?.safetensors first" in message
    index.unlink()
    change(base / "config.json", architectures=["Odd\ud800"])
    reason, message = refused(base)
    assert reason is Reason.INVALID_CONFIG
    assert "surrogates not allowed" in message


def test_a_path_that_is_on_no_volume(base: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert verify(BaseWanted("x", Path("/etc"), 1, None, tmp_path / "artifacts"), None, log) == 1
    assert json.loads(log.read_text())["reason"] == Reason.UNSAFE_PATH
    assert verify(BaseWanted("x", tmp_path / "artifacts", 1, None, tmp_path / "artifacts"), None, log) == 1


def test_a_bug_is_told_in_words_too(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("x" * 10_000)

    monkeypatch.setattr(module, "digest_of", broken)
    code, report, _ = told(base)
    assert code == 1
    assert "ZeroDivisionError" in report["message"]


@pytest.mark.lasting
def test_a_pod_that_is_deleted_while_its_base_comes_ends_at_once(tmp_path: Path) -> None:
    """As the first process of its container it must handle the signal; the kernel's default is to ignore it."""
    config = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config.write_text(
        yaml.safe_dump(
            {"clusters": [cluster], "users": [{"name": "u", "user": {}}], "contexts": [context], "current-context": "c"}
        )
    )
    identity = {"POD_NAME": "p", "POD_NAMESPACE": "n", "POD_UID": "u", "POD_IP": "10.0.0.1"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        source = {"s3": {"uri": "s3://models/", "endpoint": endpoint, "anonymous": True}}
        command = ["agent", "verify", "--base-model", "b", "--path", str(tmp_path / "model")]
        command += ["--source", json.dumps(source), "--cache", str(tmp_path / "cache")]
        command += ["--termination-log", str(tmp_path / "log")]
        process = subprocess.Popen(
            [sys.executable, "-m", "tuneyard", *command], env={**os.environ, **identity, "KUBECONFIG": str(config)}
        )
        try:
            with silent.accept()[0]:
                process.send_signal(signal.SIGTERM)
                assert process.wait(10) == 128 + signal.SIGTERM
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("engine", "weights", "ok"),
    [("vllm", "gguf", False), ("llamaCpp", "gguf", True), ("llamaCpp", "safetensors", False), ("custom", "gguf", True)],
)
def test_a_base_of_another_format_names_the_engine_that_serves_it(
    base: Path, engine: str, weights: str, ok: bool
) -> None:
    if weights == "gguf":
        shutil.rmtree(base)
        base.mkdir()
        (base / "model.gguf").write_bytes(fake_gguf())
    volumes = base.parents[1]
    front, log = volumes.parent / "run" / "front.yaml", volumes.parent / "termination-log"
    code = verify(BaseWanted("tiny", base, 1, None, volumes, engine=EngineTold(engine)), front, log)
    report = json.loads(log.read_text())
    assert (code == 0, report["ok"]) == (ok, ok)
    if ok:
        assert report["architecture"] == "llama"
        assert "front_models" in front.read_text()
    else:
        assert report["reason"] == Reason.ENGINE_UNSUITABLE
        other = "vllm, sglang or tgi" if weights == "safetensors" else "llamaCpp or ollama"
        assert f"use serving.engine {other}" in report["message"]


@pytest.mark.parametrize(
    ("engine", "weights", "reason"),
    [
        ("custom", "rank0.engine", None),
        ("vllm", "rank0.engine", Reason.FILES_MISSING),
        # what no digest covers could be changed without a word
        ("custom", "pytorch_model.bin", Reason.FILES_MISSING),
        ("custom", "model.onnx", Reason.FILES_MISSING),
    ],
)
def test_a_custom_engine_reads_a_format_of_its_own(
    base: Path, engine: str, weights: str, reason: Reason | None
) -> None:
    (base / "model.safetensors").rename(base / weights)
    (base / "tokenizer.json").unlink()
    change(base / "config.json", architectures=None)
    code, report, _ = told(base, engine=EngineTold(engine))
    assert (code, report.get("reason")) == (int(reason is not None), reason)
    if reason is None:
        assert report["digest"] == digest_of(base).digest
        assert told(base, digest="sha256:" + "0" * 64, engine=EngineTold(engine))[1]["reason"] == "DigestMismatch"
    elif engine == "custom":
        assert "neither hashed nor fetched" in report["message"]


@pytest.mark.parametrize(("engine", "ok"), [("llamaCpp", True), ("ollama", False)])
def test_a_base_in_parts_is_none_for_an_engine_that_imports_one_file(base: Path, engine: str, ok: bool) -> None:
    shutil.rmtree(base)
    base.mkdir()
    for part in (1, 2):
        (base / f"model-0000{part}-of-00002.gguf").write_bytes(fake_gguf())
    volumes, log = base.parents[1], base.parents[2] / "termination-log"
    verify(BaseWanted("tiny", base, 1, None, volumes, engine=EngineTold(engine)), None, log)
    report = json.loads(log.read_text())
    assert report["ok"] == ok
    if not ok:
        assert report["reason"] == Reason.ENGINE_UNSUITABLE
        assert "llama-gguf-split --merge" in report["message"]


def test_the_front_of_an_engine_without_metrics_has_an_empty_page(tmp_path: Path) -> None:
    pages = {name: guarding_of(EngineTold(name), tmp_path / "models") for name in ("ollama", "llamaCpp", "vllm")}
    assert {name: page.metrics if page else None for name, page in pages.items()} == {
        "ollama": False,
        "llamaCpp": True,
        "vllm": None,
    }
