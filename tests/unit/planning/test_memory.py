"""The memory that a pool needs, from the headers of a base's files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.gpumemory import checked_demand, gpu_memory
from tuneyard.planning.memory import Room, estimate, gpu_memory_too_small, room
from tuneyard.planning.modelsize import Division, ModelSize, Part, model_size
from tuneyard.planning.quantities import is_quantity, whole
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.settings import Settings

GIB = 1 << 30
Tensor = tuple[str, str, tuple[int, ...]]

LLAMA_70B = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}


def llama(config: dict[str, object], dtype: str = "BF16", *, tied: bool = False) -> Iterator[Tensor]:
    """The tensors of a Llama of these sizes."""
    hidden, inner = int(str(config["hidden_size"])), int(str(config["intermediate_size"]))
    keys = hidden // int(str(config["num_attention_heads"])) * int(str(config["num_key_value_heads"]))
    vocabulary = int(str(config["vocab_size"]))
    shapes = {
        "q_proj": (hidden, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, hidden),
    }
    mlp = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    yield "model.embed_tokens.weight", dtype, (vocabulary, hidden)
    if not tied:
        yield "lm_head.weight", dtype, (vocabulary, hidden)
    yield "model.norm.weight", dtype, (hidden,)
    for layer in range(int(str(config["num_hidden_layers"]))):
        begin = f"model.layers.{layer}"
        yield from ((f"{begin}.self_attn.{name}.weight", dtype, shape) for name, shape in shapes.items())
        yield from ((f"{begin}.mlp.{name}.weight", dtype, shape) for name, shape in mlp.items())
        yield f"{begin}.input_layernorm.weight", dtype, (hidden,)


@pytest.fixture(scope="module")
def size() -> ModelSize:
    return model_size(LLAMA_70B, llama(LLAMA_70B))


def test_the_size_is_told_apart_by_what_is_done_with_each_part(size):
    assert (size.layers, size.kv_layers, size.kv_heads, size.head_size, size.positions) == (80, 80, 8, 128, 131072)
    assert (size.dtype, size.tied, size.adapters_to_output, size.vocabulary) == ("bfloat16", False, True, 128256)
    assert size.parts == {
        Division.COLUMNS: Part(linear=80 * (8192 + 2 * 28672) * 8192, inputs=80 * 3 * 8192, outputs=80 * 65536),
        Division.KEYS: Part(linear=80 * 2 * 1024 * 8192, inputs=80 * 2 * 8192, outputs=80 * 2 * 1024),
        Division.ROWS: Part(linear=80 * (8192 + 28672) * 8192, inputs=80 * 36864, outputs=80 * 2 * 8192),
        Division.WHOLE: Part(other=81 * 8192),
    }


@pytest.mark.parametrize(
    ("demand", "weights", "kv_per_token"),
    [
        # 70.6 billion numbers of 2 bytes; 2 x 80 layers x 8 heads x 128 numbers of 2 bytes
        ({}, 131.4, 327680),
        ({"tensor_parallel_size": 4}, 32.9, 81920),
        ({"tensor_parallel_size": 8}, 16.5, 40960),
        # heads of keys are whole: beyond eight GPUs, each has one
        ({"tensor_parallel_size": 16}, 8.4, 40960),
        ({"pipeline_parallel_size": 2}, 65.7, 163840),
        ({"pipeline_parallel_size": 3}, 45.0, 110592),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 16.5, 40960),
        ({"kv_cache_dtype": "fp8"}, 131.4, 163840),
        ({"dtype": "float32"}, 262.9, 655360),
        # linear modules alone, neither embedding nor output layer
        ({"quantization": "fp8"}, 67.7, 327680),
        ({"data_parallel_size": 2}, 131.4, 327680),
    ],
)
def test_weights_and_kv_cache_by_parallelism_and_format(size, demand, weights, kv_per_token):
    found = estimate(size, MemoryDemand(**demand))
    assert (round(found.weights / GIB, 1), found.kv_per_token) == (weights, kv_per_token)


@pytest.mark.parametrize(
    ("demand", "mib"),
    [
        ({"max_loras": 0}, 0),
        # per rank and slot: 80 x 161792 rows of the layers, 2 x (128256 + 8192) of embedding and output layer
        ({"max_loras": 8, "max_rank": 16}, 3227),
        ({"max_loras": 8, "max_rank": 32}, 6453),
        ({"max_loras": 8, "max_rank": 16, "tensor_parallel_size": 4}, 1697),
        ({"max_loras": 8, "max_rank": 16, "tensor_parallel_size": 4, "fully_sharded": True}, 857),
        ({"max_loras": 8, "max_rank": 16, "lora_dtype": "float16", "dtype": "float32"}, 3227),
    ],
)
def test_slots_for_adapters(size, demand, mib):
    assert round(estimate(size, MemoryDemand(**demand)).adapters / (1 << 20)) == mib


def test_adapters_in_the_pods_memory_are_whole_and_of_the_layers_alone(size):
    demand = MemoryDemand(tensor_parallel_size=4, max_loras=1, max_rank=16, max_cpu_loras=10)
    rows = 80 * (3 * 8192 + 65536 + 2 * 8192 + 2048 + 36864 + 16384)
    assert estimate(size, demand).adapters_in_memory == 10 * 16 * 2 * rows


def test_what_is_left_for_the_kv_cache(size):
    demand = MemoryDemand(tensor_parallel_size=4, max_model_len=16384, gpu_memory=80 * GIB, max_num_seqs=256)
    found = estimate(size, demand)
    left = room(found, demand)
    assert left is not None
    assert left.usable == int(80 * GIB * 0.92)
    assert left.kv_cache == left.usable - found.fixed
    assert left.tokens == left.kv_cache // 81920 // 16 * 16
    assert left.requests == left.tokens / 16384
    assert 25 < left.requests < 35


def test_on_cpus_the_engine_is_told_what_to_take(size):
    demand = MemoryDemand(build="CPU", cpu_cache=4 * GIB, max_model_len=1024)
    assert room(estimate(size, demand), demand) == Room(4 * GIB, 4 * GIB, 13056, 12.75)
    assert room(estimate(size, MemoryDemand(build="CPU")), MemoryDemand(build="CPU")) is None


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        ({"tensor_parallel_size": 4, "gpu_memory": 80 * GIB, "max_model_len": 16384}, None),
        ({"tensor_parallel_size": 1, "max_model_len": 16384}, None),  # nobody says how much a GPU has
        ({"tensor_parallel_size": 1, "build": "CPU", "cpu_cache": GIB}, None),
        (
            {"tensor_parallel_size": 1, "gpu_memory": 80 * GIB, "max_model_len": 16384},
            "raise tensorParallelSize or pipelineParallelSize, quantise the base, or lower lora.maxLoras or maxRank",
        ),
        (
            {"tensor_parallel_size": 4, "gpu_memory": 40 * GIB},
            "lower maxModelLen to at most ",
        ),
        # 1.04 of what there is: the engine has the last word
        ({"tensor_parallel_size": 4, "gpu_memory": 37 * GIB, "max_model_len": 16}, None),
    ],
)
def test_only_what_surely_does_not_fit_is_refused(size, demand, words):
    found = gpu_memory_too_small(size, MemoryDemand(**demand))
    assert (found is None) == (words is None)
    assert found is None or words in found.message


def test_the_refusal_has_the_numbers(size):
    demand = MemoryDemand(gpu_memory=80 * GIB, max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=1024)
    found = gpu_memory_too_small(size, demand)
    assert found is not None
    assert found.message == (
        "a GPU would need 133.0 GiB (weights 131.4 GiB, adapters 0 B, working memory 1.2 GiB, KV cache of one request "
        "of 1024 tokens 320.0 MiB) with the model over 1 GPUs, and may use 73.6 GiB: raise tensorParallelSize or "
        "pipelineParallelSize, quantise the base, or lower lora.maxLoras or maxRank"
    )


def test_packed_weights_stay_as_they_are_and_their_modules_have_the_shapes_of_config_json():
    config = {**LLAMA_70B, "num_hidden_layers": 1, "quantization_config": {"quant_method": "awq"}}
    tensors = [
        ("model.layers.0.self_attn.o_proj.qweight", "I32", (8192, 1024)),
        ("model.layers.0.self_attn.o_proj.qzeros", "I32", (64, 1024)),
        ("model.layers.0.self_attn.o_proj.scales", "F16", (64, 8192)),
    ]
    size = model_size(config, tensors)
    assert size.parts == {
        Division.ROWS: Part(linear=64 * 8192, packed=4 * (8192 + 64) * 1024, inputs=8192, outputs=8192)
    }
    assert size.quantized
    half, whole_ = (estimate(size, MemoryDemand(tensor_parallel_size=n)).weights for n in (2, 1))
    rotary = 131072 * 128 * 2
    assert (whole_ - rotary) == 2 * (half - rotary) == 4 * 8256 * 1024 + 2 * 64 * 8192


def test_experts_are_divided_over_the_copies_too():
    config = {"model_type": "mixtral", "num_hidden_layers": 1, "num_local_experts": 2, "torch_dtype": "bfloat16"}
    tensors = [
        (f"model.layers.0.block_sparse_moe.experts.{n}.{name}.weight", "BF16", shape)
        for n in (0, 1)
        for name, shape in (("w1", (64, 32)), ("w2", (32, 64)), ("w3", (64, 32)))
    ]
    size = model_size(config, [*tensors, ("model.layers.0.block_sparse_moe.gate.weight", "BF16", (2, 32))])
    assert size.parts == {
        Division.EXPERTS: Part(linear=2 * 3 * 64 * 32, inputs=2 * 2 * 32, outputs=2 * 2 * 64),
        Division.WHOLE: Part(linear=64, inputs=32, outputs=2),
    }
    assert (size.expert_rows.inputs, size.expert_rows.outputs, size.experts) == (2 * 64, 2 * 32, 2)
    divided = MemoryDemand(tensor_parallel_size=2, data_parallel_size=2)
    assert estimate(size, divided).weights == 2 * (2 * 3 * 64 * 32 // 4 + 64)


def test_one_latent_of_all_heads_and_layers_without_attention():
    config = {"num_hidden_layers": 4, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "num_attention_heads": 16}
    latent = model_size({**config, "hidden_size": 2048}, [])
    assert estimate(latent, MemoryDemand(tensor_parallel_size=8)).kv_per_token == 4 * 576 * 2
    kinds = ["linear_attention", "linear_attention", "full_attention", "sliding_attention"]
    mixed = model_size({"num_hidden_layers": 4, "layer_types": kinds, "num_attention_heads": 2, "hidden_size": 8}, [])
    found = estimate(mixed, MemoryDemand())
    assert (found.kv_per_token, found.notes) == (2 * 2 * 2 * 4 * 2, ("the fixed state of layers without attention",))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("80Gi", 80 * GIB),
        (2, 2),
        ("1.5k", 1500),
        ("500m", 0),
        ("2e3", 2000),
        ("1E", 10**18),
        (".5Gi", GIB // 2),
        ("80 GB", None),
        ("", None),
        ("1e999", None),
        ("9" * 100, None),
    ],
)
def test_quantities(text, number):
    assert whole(text) == number
    assert number is None or is_quantity(str(text))


@pytest.mark.parametrize(
    ("fields", "chart", "wanted"),
    [
        ({}, "", None),
        ({}, "48Gi", 48 * GIB),
        ({"nodeSelector": {"nvidia.com/gpu.memory": "81559"}}, "48Gi", 81559 << 20),
        ({"nodeSelector": {"nvidia.com/gpu.memory": "many"}}, "48Gi", 48 * GIB),
        ({"gpuMemory": "80Gi", "nodeSelector": {"nvidia.com/gpu.memory": "81559"}}, "48Gi", 80 * GIB),
        ({"resources": {"limits": {"memory": "6Gi"}}}, "48Gi", None),
    ],
)
def test_who_says_how_much_a_gpu_has(fields, chart, wanted):
    assert gpu_memory(resolved_serving(ServingSpec.from_dict(fields)), Settings(gpu_memory=chart)) == wanted


def test_pods_of_which_nothing_new_is_asked_are_told_nothing():
    assert checked_demand(resolved_serving(ServingSpec(tensor_parallel_size=4)), Settings()) is None
    told = checked_demand(resolved_serving(ServingSpec(pipeline_parallel_size=2)), Settings())
    assert told is not None
    assert (told.pipeline_parallel_size, told.max_loras, told.gpu_memory) == (2, 8, None)


def test_engines_without_adapters_have_no_room_for_them():
    off = ServingSpec(gpu_memory="24Gi", lora=LoRASettings(enabled=False))
    told = checked_demand(resolved_serving(off), Settings())
    assert told is not None
    assert (told.max_loras, told.max_cpu_loras) == (0, 0)


@pytest.mark.parametrize("argument", ["--quantization=fp8", "--cpu_offload_gb", "--hf-overrides.rope"])
def test_what_extra_arguments_say_of_memory_is_not_known_better(argument):
    spec = ServingSpec(gpu_memory="24Gi", extra_args=[argument])
    assert checked_demand(resolved_serving(spec), Settings()) is None
    assert (
        checked_demand(resolved_serving(spec.model_copy(update={"extra_args": ["--seed=1"]})), Settings()) is not None
    )
