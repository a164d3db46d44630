"""`tuneyard plan`: pools and memory of manifests, without a cluster."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from models.tiny import build_tiny
from tuneyard.cli.errors import UserError
from tuneyard.cli.main import run
from tuneyard.cli.manifestread import read_manifests

MANIFEST = """
apiVersion: v1
kind: List
items:
  - apiVersion: tuneyard.dev/v1alpha1
    kind: BaseModel
    metadata: {name: tiny}
    spec:
      source: {volume: {name: models, path: tiny}}
      serving:
        replicas: 2
        maxModelLen: 1024
        gpuMemory: 4Gi
        lora: {maxLoras: 4}
        artifactVolumes: [{name: models, hostPath: {path: /var/lib/models}}]
---
apiVersion: tuneyard.dev/v1alpha1
kind: ModelDeployment
metadata: {name: acme}
spec:
  revisions:
    - {name: v1, baseModel: tiny}
    - {name: v2, baseModel: tiny, serving: {tensorParallelSize: 2, replicas: 1, kvCacheDtype: fp8}}
  traffic: [{revision: v1, weight: 100}]
---
apiVersion: v1
kind: Secret
metadata: {name: nobody-s-business}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(MANIFEST)
    return path


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, object]]]:
    code = run(["plan", *arguments, "-o", "json"])
    return code, json.loads(capsys.readouterr().out)["pools"]


def test_pools_gpus_arguments_and_memory(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, (shared, own) = planned(capsys, str(manifest), "--model", f"tiny={build_tiny() / 'base'}")
    assert code == 0
    assert {k: shared[k] for k in ("name", "usedBy", "engine", "pods", "gpusPerPod", "gpus")} == {
        "name": "tiny",
        "usedBy": ["acme"],
        "engine": "vllm 0.32 (CUDA)",
        "pods": 2,
        "gpusPerPod": 1,
        "gpus": 2,
    }
    assert (own["gpusPerPod"], own["gpus"]) == (2, 2)
    assert own["arguments"][-2:] == ["--kv-cache-dtype", "fp8"]  # type: ignore[index]
    memory, halved = shared["memory"], own["memory"]
    assert isinstance(memory, dict)
    assert isinstance(halved, dict)
    assert (memory["weights"], memory["adapters"], memory["kvPerToken"]) == (377472, 361728, 512)
    assert memory["usable"] == int(0.92 * (4 << 30))
    assert memory["kvTokens"] == (memory["usable"] - 377472 - 361728 - memory["working"]) // (512 * 16) * 16
    assert memory["requestsAtFullContext"] == round(memory["kvTokens"] / 1024, 1)
    # half the heads in half the bytes
    assert halved["kvPerToken"] == 128


def test_for_people(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", str(manifest), "--model", f"tiny={build_tiny() / 'base'}"]) == 0
    out = capsys.readouterr().out
    assert "Pool tiny of tiny, used by acme\n  2 pods of 1 GPU: 2 in all\n" in out
    assert "MEMORY OF THE FULLEST GPU" in out
    assert "KV cache of one request of 1024 tokens, 512 B each" in out


def test_a_pool_that_is_refused_makes_it_fail(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(MANIFEST.replace("gpuMemory: 4Gi", "gpuMemory: 512Mi"))
    code, (shared, _) = planned(capsys, str(manifest), "--model", f"tiny={build_tiny() / 'base'}")
    assert code == 1
    assert str(shared["problem"]).startswith("GPUMemoryTooSmall: a GPU would need ")


def test_what_extra_arguments_change_is_shown_and_refuses_nothing(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pods are told nothing of memory then, and start."""
    small = "gpuMemory: 512Mi\n        extraArgs: [--cpu-offload-gb=40]"
    manifest.write_text(MANIFEST.replace("gpuMemory: 4Gi", small))
    arguments = [str(manifest), "--model", f"tiny={build_tiny() / 'base'}"]
    code, (shared, _) = planned(capsys, *arguments)
    memory = shared["memory"]
    assert isinstance(memory, dict)
    assert (code, shared.get("problem")) == (0, None)
    assert memory["needed"] > memory["usable"]
    assert memory["notChecked"] == "what --cpu-offload-gb in extraArgs does to it is not known"
    assert run(["plan", *arguments]) == 0
    assert "no reason to refuse the pool: what --cpu-offload-gb" in capsys.readouterr().out


def test_a_base_that_its_pods_would_refuse_as_it_is_quantised(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(build_tiny() / "base", folder)
    config = json.loads((folder / "config.json").read_text())
    said = {}
    for method in ("bitsandbytes", "awq"):
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        code, (shared, _) = planned(capsys, str(manifest), "--model", f"tiny={folder}")
        said[method] = (code, str(shared.get("problem")))
    assert said["awq"] == (0, "None")
    assert said["bitsandbytes"][0] == 1
    words = "UnsupportedSetting: the base is quantised by bitsandbytes, which vllm 0.32 (CUDA) does not serve: "
    assert said["bitsandbytes"][1].startswith(words)


ONE_POOL = MANIFEST.replace("        gpuMemory: 4Gi\n", "").replace(
    "    - {name: v2, baseModel: tiny, serving: {tensorParallelSize: 2, replicas: 1, kvCacheDtype: fp8}}\n", ""
)
ON_LLAMA_CPP = ONE_POOL.replace("replicas: 2", "engine: llamaCpp")


def test_a_base_in_a_format_that_the_engine_does_not_read(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its pods find out when they have read it."""
    manifest.write_text(ON_LLAMA_CPP)
    code, (pool,) = planned(capsys, str(manifest), "--model", f"tiny={build_tiny() / 'base'}")
    words = "EngineUnsuitable: the base is safetensors, which engine llamaCpp does not serve: use serving.engine vllm"
    assert code == 1
    assert str(pool["problem"]).startswith(words)


def test_a_base_in_gguf_is_told_apart_and_not_estimated(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no config.json, and its engines need none."""
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(b"GGUF")
    said = {}
    for text in (ON_LLAMA_CPP, ONE_POOL):
        manifest.write_text(text)
        code, (pool,) = planned(capsys, str(manifest), "--model", f"tiny={folder}")
        said[str(pool["engine"]).split()[0]] = (code, pool.get("problem"), pool.get("memoryUnknown"))
    unknown = "not estimated, for the base is GGUF"
    words = (
        "EngineUnsuitable: the base is GGUF, which engine vllm does not serve: use serving.engine llamaCpp or ollama"
    )
    assert said == {"llamaCpp": (0, None, unknown), "vllm": (1, words, unknown)}
    (folder / "other.gguf").write_bytes(b"GGUF")
    assert run(["plan", str(manifest), "--model", f"tiny={folder}"]) == 1
    assert "there are 2 GGUF files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ("engine: sglang\n        image: 'lmsysorg/sglang:v0.5'", "AdaptersNotServed: Tuneyard loads no adapters into"),
        ("tensorParallelSize: 2\n        nodesPerReplica: 2", "AdaptersNotShared: the pool's replicas span nodes"),
        ("replicas: 2", None),
    ],
)
def test_an_adapter_on_pods_that_take_none(
    serving: str, words: str | None, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operator would give it no place, and the revision would serve nobody."""
    text = ONE_POOL.replace("replicas: 2", serving)
    said = []
    for revision in ("{name: v1, baseModel: tiny, adapter: acme-v1}", "{name: v1, baseModel: tiny}"):
        manifest.write_text(text.replace("{name: v1, baseModel: tiny}", revision))
        code, (pool,) = planned(capsys, str(manifest))
        said.append((code, str(pool.get("problem", ""))[: len(words or "")]))
    assert said == [(1, words) if words else (0, ""), (0, "")]


def test_a_base_that_is_not_in_the_files_is_told(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be in the cluster: no fault."""
    manifest.write_text(MANIFEST.replace("{name: v1, baseModel: tiny}", "{name: v1, baseModel: tinny}"))
    assert run(["plan", str(manifest)]) == 0
    words = "note: BaseModel tinny of namespace default is not in the files, so the pools of acme with it are not shown"
    assert words in capsys.readouterr().out
    assert run(["plan", str(manifest), "-o", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["notes"]) == 1
    manifest.write_text(MANIFEST)
    run(["plan", str(manifest), "-o", "json"])
    assert "notes" not in json.loads(capsys.readouterr().out)


def test_another_engine_is_shown_with_its_own_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST.replace("        replicas: 2\n", "        replicas: 2\n        engine: llamaCpp\n")
    (tmp_path / "llama.yaml").write_text(text.replace("        gpuMemory: 4Gi\n", ""))
    _, pools = planned(capsys, str(tmp_path / "llama.yaml"))
    assert {(pool["engine"], pool["image"]) for pool in pools} == {("llamaCpp", "tuneyard/llama-cpp:0.1.0")}


def test_without_the_files_the_memory_is_not_known(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, pools = planned(capsys, str(manifest))
    words = "not known, for the base is not on the network: give --model tiny=DIR"
    assert (code, [p.get("memory") for p in pools], {p["memoryUnknown"] for p in pools}) == (0, [None, None], {words})


BUILT = """
apiVersion: tuneyard.dev/v1alpha1
kind: BaseModel
metadata: {name: small}
spec:
  source:
    build:
      output: {volume: {claimName: models}}
      steps:
      - merge: {baseModel: tiny, adapter: letters}
      - gguf: {type: Q4_K_M}
  serving: {engine: llamaCpp}
"""


def test_a_base_that_is_built_first_is_no_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "built.yaml"
    path.write_text(BUILT)
    code, (pool,) = planned(capsys, str(path))
    assert (code, pool["builtBy"], pool.get("problem")) == (0, ["merge", "gguf"], None)
    assert "not known before the base is built" in str(pool["memoryUnknown"])
    assert run(["plan", str(path)]) == 0
    assert "made first, by a Job: merge, then gguf" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            ("engine: llamaCpp", "engine: vllm"),
            "InvalidSpec: BaseModel small is built as GGUF, which vllm does not read",
        ),
        (("output: {", "scratch: {size: much}\n      output: {"), "InvalidSpec: source.build.scratch.size"),
    ],
)
def test_what_is_wrong_with_a_build_is_told_before(
    changed: tuple[str, str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "built.yaml"
    path.write_text(BUILT.replace(*changed))
    code, (pool,) = planned(capsys, str(path))
    assert code == 1
    assert str(pool["problem"]).startswith(words)


def test_a_base_that_nothing_refers_to_is_shown_too(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest.write_text(MANIFEST.partition("---")[0])
    code, (only,) = planned(capsys, str(manifest), "--model", f"tiny={build_tiny() / 'base'}")
    assert (code, only["name"], only.get("usedBy"), only["gpus"]) == (0, "tiny", None, 2)


def test_gpus_that_were_left_out_are_warned_of(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = MANIFEST.replace("kvCacheDtype: fp8}", "resources: {requests: {memory: 64Gi}}}")
    assert text != MANIFEST
    manifest.write_text(text)
    code, (shared, own) = planned(capsys, str(manifest))
    assert (code, own["gpus"], "warning" in shared) == (0, 0, False)
    assert "set nvidia.com/gpu there to 2" in str(own["warning"])


def test_what_the_chart_says_counts(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("allowedHostPathPrefixes: [/srv]\nimages: {vllm: 'vllm/vllm-openai:v0.99.0'}\n")
    code, (shared, own) = planned(capsys, str(manifest), "--config", str(config))
    assert code == 1
    assert str(shared["problem"]).startswith("HostPathNotAllowed: ")
    assert "warning" not in shared
    assert str(own["warning"]).startswith("UnknownEngineVersion: nothing is known of vllm 0.99 (CUDA)")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "other=/tmp"], "--model names other, which is no BaseModel of the manifests"),
        (["--model", "tiny=/nonexistent"], "/nonexistent is no folder"),
        (["--gpu-memory", "much"], "--gpu-memory much is not a size such as 80Gi"),
        (["--config", "/nonexistent"], "/nonexistent cannot be read"),
    ],
)
def test_wrong_use_is_said(
    manifest: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run(["plan", str(manifest), *arguments]) != 0
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "m.yaml: not valid YAML"),
        (
            "apiVersion: tuneyard.dev/v1alpha1\nkind: BaseModel\nmetadata: {name: a}\nspec: {}",
            "would refuse (spec.source",
        ),
    ],
)
def test_manifests_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        read_manifests([("m.yaml", text)])


def test_what_is_no_object_of_tuneyard_is_passed_over() -> None:
    found = read_manifests([("m.yaml", "- 1\n---\nkind: BaseModel\napiVersion: v1\n---\n")])
    assert (found.bases, found.deployments) == ([], [])


def test_groups_of_a_replica_over_nodes_are_counted_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wide.yaml"
    wide = "replicas: 2\n        nodesPerReplica: 2\n        pipelineParallelSize: 4"
    path.write_text(MANIFEST.replace("replicas: 2", wide, 1))
    _, (shared, *_) = planned(capsys, str(path))
    assert [shared[field] for field in ("pods", "groups", "gpusPerPod", "gpus")] == [4, 2, 2, 8]
    arguments = shared["arguments"]
    assert isinstance(arguments, list)
    assert arguments[arguments.index("--nnodes") + 1] == "2"
    run(["plan", str(path)])
    assert "4 pods in 2 groups of 2 GPUs: 8 in all" in capsys.readouterr().out
