"""From GGUF to a Hugging Face folder, on a model small enough to be written in the test."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.gguf import GGUF
from models.smollm2 import hugging_face_name, write_model
from models.tensors import Float32, bfloat16, read_safetensors

HIDDEN, HEADS, KV_HEADS, FEED, VOCAB = 64, 4, 2, 96, 6


def packed(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(item: Any) -> bytes:
    """A metadata value: its type, then its bytes."""
    match item:
        case bool():
            return struct.pack("<I?", 7, item)
        case int():
            return struct.pack("<II", 4, item)
        case float():
            return struct.pack("<If", 6, item)
        case str():
            return struct.pack("<I", 8) + packed(item)
        case list():
            kind = 8 if isinstance(item[0], str) else 4
            body = b"".join(packed(i) if kind == 8 else struct.pack("<I", i) for i in item)
            return struct.pack("<IIQ", 9, kind, len(item)) + body
    raise TypeError(item)


def gguf_file(metadata: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> bytes:
    """A version 3 file; tensors are name -> (type, shape in torch's order, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, item in metadata.items():
        out += packed(key) + value(item)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        dims = tuple(reversed(shape))
        out += packed(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(data))
        data += raw
    return out + b"\0" * (-len(out) % 32) + data


def f32(values: Float32) -> tuple[int, tuple[int, ...], bytes]:
    return 0, values.shape, values.astype("<f4").tobytes()


def test_q8_0_is_scale_times_integer() -> None:
    block = struct.pack("<e", 0.5) + np.arange(-16, 16, dtype=np.int8).tobytes()
    read = GGUF(gguf_file({}, {"t": (8, (1, 32), block)})).tensor("t")
    assert read.tolist() == [[i * 0.5 for i in range(-16, 16)]]


def test_q4_1_is_low_nibbles_then_high_scaled_from_the_minimum() -> None:
    nibbles = bytes(low | (15 - low) << 4 for low in range(16))
    block = struct.pack("<ee", 0.25, -1.0) + nibbles
    read = GGUF(gguf_file({}, {"t": (3, (32,), block)})).tensor("t")
    assert read.tolist() == [low * 0.25 - 1.0 for low in range(16)] + [(15 - low) * 0.25 - 1.0 for low in range(16)]


def test_dimensions_come_in_torchs_order_and_data_is_aligned() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    read = GGUF(gguf_file({"odd": "x" * 13}, {"first": f32(np.ones(3, np.float32)), "second": f32(values)}))
    assert read.names() == ["first", "second"]
    assert (read.tensor("second") == values).all()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04", "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 2, 0, 0), "version 2"),
        (gguf_file({}, {"t": (14, (32,), b"")}), "tensor type 14"),
    ],
)
def test_other_files_are_refused(raw: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GGUF(raw)


def test_tensors_that_llama_lacks_are_refused() -> None:
    assert hugging_face_name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    for name in ("blk.0.attn_q.bias", "blk.0.ssm_in.weight", "output.weight"):
        with pytest.raises(ValueError, match=name):
            hugging_face_name(name)


def interleaved(values: Float32, heads: int) -> Float32:
    """Rows as llama.cpp's converter puts them: the two halves of a head take turns."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def small_model() -> tuple[bytes, dict[str, Float32]]:
    """A GGUF file of one layer, and its tensors as Hugging Face has them."""
    random = np.random.RandomState(0)
    layer = "model.layers.0"
    kv = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "token_embd": ("model.embed_tokens", (VOCAB, HIDDEN)),
        "output_norm": ("model.norm", (HIDDEN,)),
        "blk.0.attn_norm": (f"{layer}.input_layernorm", (HIDDEN,)),
        "blk.0.attn_q": (f"{layer}.self_attn.q_proj", (HIDDEN, HIDDEN)),
        "blk.0.attn_k": (f"{layer}.self_attn.k_proj", (kv, HIDDEN)),
        "blk.0.attn_v": (f"{layer}.self_attn.v_proj", (kv, HIDDEN)),
        "blk.0.attn_output": (f"{layer}.self_attn.o_proj", (HIDDEN, HIDDEN)),
        "blk.0.ffn_norm": (f"{layer}.post_attention_layernorm", (HIDDEN,)),
        "blk.0.ffn_gate": (f"{layer}.mlp.gate_proj", (FEED, HIDDEN)),
        "blk.0.ffn_up": (f"{layer}.mlp.up_proj", (FEED, HIDDEN)),
        "blk.0.ffn_down": (f"{layer}.mlp.down_proj", (HIDDEN, FEED)),
    }
    wanted: dict[str, Float32] = {}
    stored = {}
    for name, (target, shape) in shapes.items():
        values = random.standard_normal(shape).astype(np.float32)
        wanted[f"{target}.weight"] = values
        heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV_HEADS}.get(name)
        stored[f"{name}.weight"] = f32(interleaved(values, heads) if heads else values)
    metadata = {
        "llama.block_count": 1,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FEED,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.freq_base": 10000.0,
        "llama.vocab_size": VOCAB,
        "tokenizer.ggml.tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab"],
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }
    return gguf_file(metadata, stored), wanted


def test_a_model_becomes_a_hugging_face_folder(tmp_path: Path) -> None:
    raw, wanted = small_model()
    write_model(GGUF(raw), tmp_path)
    assert read_safetensors(tmp_path / "model.safetensors") == {name: bfloat16(v) for name, v in wanted.items()}
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 16)
    assert (config["num_hidden_layers"], config["vocab_size"], config["eos_token_id"]) == (1, VOCAB, 2)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert tokenizer["model"]["vocab"]["ab"] == 5
    assert tokenizer["model"]["merges"] == [["a", "b"]]
    assert [t["content"] for t in tokenizer["added_tokens"]] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer["pre_tokenizer"]["pretokenizers"][0] == {"type": "Digits", "individual_digits": True}
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["chat_template"]) == ("<|im_end|>", "{{ messages }}")


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    raw, _ = small_model()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_model(GGUF(raw), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
