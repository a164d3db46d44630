"""What each engine can do, and what is refused because it cannot."""

from __future__ import annotations

from typing import Any

import pytest

from tests.builders import adapter, base_model, deployment, revision
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ArtifactVolume, CustomEngine, EnvVar, LoRASettings, ServingSpec, VolumeClaim
from tuneyard.planning import engines
from tuneyard.planning.engines import Loading, capabilities
from tuneyard.planning.observations import Problem
from tuneyard.planning.pools import placement, pools_of
from tuneyard.planning.presetcontainers import environment
from tuneyard.planning.resolvedserving import GPU, resolved_serving
from tuneyard.planning.servingchecks import violation
from tuneyard.planning.settings import Settings

CLAIM = ArtifactVolume(name="models", persistent_volume_claim=VolumeClaim(claim_name="c"))
RUN = CustomEngine(command=["serve"])
LOADS = CustomEngine(command=["serve"], adapters="AtRunTime", health_path="/ready", model_name="m")


def problem(**serving: Any) -> Problem | None:
    return violation(base_model(), resolved_serving(ServingSpec(artifact_volumes=[CLAIM], **serving)), Settings())


def test_when_each_engine_takes_adapters_and_what_it_reads() -> None:
    assert {name: (row.adapters, sorted(row.weights)) for name, row in engines.ENGINES.items()} == {
        "vllm": (Loading.AT_RUN_TIME, ["safetensors"]),
        "llamaCpp": (Loading.AT_START, ["gguf"]),
        "ollama": (Loading.NEVER, ["gguf"]),
        "sglang": (Loading.NEVER, ["safetensors"]),
        "tgi": (Loading.NEVER, ["safetensors"]),
        "custom": (Loading.NEVER, ["gguf", "safetensors"]),
    }


def test_a_custom_engine_is_what_is_said_of_it() -> None:
    found = capabilities("custom", LOADS)
    assert (found.adapters, found.health_path, found.model_name) == (Loading.AT_RUN_TIME, "/ready", "m")
    assert capabilities("custom", RUN).adapters is Loading.NEVER


@pytest.mark.parametrize(
    ("engine", "gpus"),
    [("vllm", 2), ("sglang", 2), ("tgi", 2), ("llamaCpp", None), ("ollama", None), ("custom", None)],
)
def test_who_asks_for_gpus_by_itself(engine: str, gpus: int | None) -> None:
    found = resolved_serving(ServingSpec(engine=engine, tensor_parallel_size=2)).resources
    assert found.limits == ({GPU: gpus} if gpus else None)


@pytest.mark.parametrize(
    ("serving", "reason", "words"),
    [
        ({"engine": "llamaCpp"}, None, ""),
        ({"engine": "llamaCpp", "max_model_len": 2048}, None, ""),
        ({"engine": "ollama", "image": "i", "max_model_len": 2048}, None, ""),
        (
            {"engine": "ollama", "image": "i", "extra_args": ["--verbose"]},
            Reason.ENGINE_UNSUITABLE,
            "engine ollama takes no arguments: write its OLLAMA_... variables into serving.env",
        ),
        ({"engine": "sglang", "image": "i", "tensor_parallel_size": 2}, None, ""),
        ({"engine": "custom", "image": "i", "custom": RUN}, None, ""),
        ({"engine": "sglang"}, Reason.INVALID_SPEC, "serving.image must name the image of engine sglang"),
        ({"engine": "custom", "image": "i"}, Reason.INVALID_SPEC, "needs serving.custom"),
        ({"engine": "vllm", "custom": RUN}, Reason.INVALID_SPEC, "describes the engine custom"),
        (
            {"engine": "llamaCpp", "tensor_parallel_size": 2},
            Reason.ENGINE_UNSUITABLE,
            "engine llamaCpp does not take tensorParallelSize 2: use vllm, sglang or tgi",
        ),
        (
            {"engine": "custom", "image": "i", "custom": RUN, "max_model_len": 2048},
            Reason.ENGINE_UNSUITABLE,
            "write it into serving.custom.args",
        ),
        ({"engine": "llamaCpp", "extra_args": ["--lora=x"]}, Reason.INVALID_SPEC, "may not set --lora"),
        ({"engine": "tgi", "image": "i", "extra_args": ["--num-shard", "2"]}, Reason.INVALID_SPEC, "--num-shard"),
        ({"engine": "sglang", "image": "i", "extra_args": ["--tp-s", "2"]}, Reason.INVALID_SPEC, "may not set --tp-s:"),
    ],
)
def test_what_an_engine_cannot_do_is_said_before_its_pods_are_made(
    serving: dict[str, Any], reason: Reason | None, words: str
) -> None:
    found = problem(**serving)
    assert (found.reason if found else None) == reason
    assert words in (found.message if found else "")


INHERITED = "remove it, or use another BaseModel where this one's block has it"


@pytest.mark.parametrize(
    ("over", "base", "reason", "words"),
    [
        # nothing uses it there, and no answer is another one for it
        (
            {"engine": "sglang", "image": "i"},
            {"compileCache": {"persistentVolumeClaim": {"claimName": "c"}}},
            None,
            None,
        ),
        (
            {"engine": "vllm"},
            {"engine": "custom", "image": "i", "custom": {}},
            Reason.INVALID_SPEC,
            f"serving.custom describes the engine custom, this pool's is vllm: {INHERITED}",
        ),
    ],
)
def test_what_another_engine_inherits_and_cannot_use_is_refused(
    over: dict[str, Any], base: dict[str, Any], reason: Reason | None, words: str | None
) -> None:
    """The API server sees one block at a time."""
    below = ServingSpec.from_dict(base).over(ServingSpec(artifact_volumes=[CLAIM]))
    found = violation(base_model(), resolved_serving(ServingSpec.from_dict(over), below), Settings())
    assert (found and found.reason, found and found.message) == (reason, words)


@pytest.mark.parametrize(
    ("serving", "refused"),
    [
        ({"engine": "vllm"}, False),
        ({"engine": "llamaCpp"}, False),
        ({"engine": "custom", "image": "i", "custom": LOADS}, False),
        ({"engine": "custom", "image": "i", "custom": RUN}, True),
        ({"engine": "ollama", "image": "i"}, True),
        ({"engine": "tgi", "image": "i"}, True),
    ],
)
def test_adapters_have_no_place_where_the_base_would_answer_for_them(serving: dict[str, Any], refused: bool) -> None:
    base = base_model(serving=ServingSpec(artifact_volumes=[CLAIM], **serving))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1", "a")])])
    found = placement(pool, [adapter("a")], ())
    assert [a.metadata.name for a in found.planned] == ([] if refused else ["a"])
    if refused:
        assert found.refused["a"].reason is Reason.ADAPTERS_NOT_SERVED
        assert "use vllm or llamaCpp, or merge the adapter" in found.refused["a"].message


def test_engines_that_are_started_without_adapters_get_none() -> None:
    base = base_model(serving=ServingSpec(artifact_volumes=[CLAIM], lora=LoRASettings(enabled=False)))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1", "a")])])
    found = placement(pool, [adapter("a")], ())
    assert not found.planned
    assert found.refused["a"].reason is Reason.ADAPTERS_NOT_SERVED
    assert "remove serving.lora.enabled" in found.refused["a"].message


def test_nobody_s_variables_have_ollama_listen_elsewhere() -> None:
    """There it would answer without a key."""
    given = [EnvVar(name="OLLAMA_HOST", value="0.0.0.0:11434"), EnvVar(name="OLLAMA_NUM_PARALLEL", value="8")]
    base = base_model(serving=ServingSpec(engine="ollama", image="i", artifact_volumes=[CLAIM], env=given))
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    settings = Settings(engine_env={"OLLAMA_HOST": "0.0.0.0", "OLLAMA_KEEP_ALIVE": "5m"})
    found = {v["name"]: v["value"] for v in environment(pool, base, settings)}
    assert found["OLLAMA_HOST"] == "127.0.0.1:8000"
    assert (found["OLLAMA_NUM_PARALLEL"], found["OLLAMA_KEEP_ALIVE"]) == ("8", "5m")
