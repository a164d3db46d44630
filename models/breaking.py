"""The ways to break an adapter. Each writes one broken adapter's folder from a good adapter.

A way changes one thing only, so that the reason found is the reason meant. Most rewrite tensors or config
(`_written`), some the bytes of the weights file, some leave files out. All results are functions of the good
adapter: broken again, the bytes are the same.
"""

import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.tensors import Float32, Tensor, bfloat16, float32, read_safetensors, write_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MARKER = "pickle-was-executed"
"""A file of this name appears in a malicious pickle's folder if anybody unpickles it."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Good:
    """A well-formed adapter, and the folder it was read from."""

    folder: Path
    config: dict[str, Any]
    tensors: Tensors

    @property
    def rank(self) -> int:
        """The rank in the config."""
        return int(self.config["r"])

    def first(self, *parts: str) -> str:
        """Name of the first tensor that contains all `parts`."""
        return next(name for name in sorted(self.tensors) if all(part in name for part in parts))


Way = Callable[[Good, Path], None]


def read_good(folder: Path) -> Good:
    """Read a well-formed adapter."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    return Good(folder.resolve(), config, read_safetensors(folder / WEIGHTS))


def _written(folder: Path, good: Good, tensors: Tensors, **config: Any) -> None:
    """Write `tensors` beside the good config with `config` on top."""
    (folder / CONFIG).write_text(json.dumps({**good.config, **config}, indent=2) + "\n", "utf-8")
    write_safetensors(folder / WEIGHTS, tensors)


def with_config(**config: Any) -> Way:
    """Good weights, other settings."""
    return lambda good, folder: _written(folder, good, good.tensors, **config)


def config_rank(factor: float) -> Way:
    """Good weights under a config whose rank is `factor` times theirs."""
    return lambda good, folder: _written(folder, good, good.tensors, r=int(good.rank * factor))


def module_in_config_only(good: Good, folder: Path) -> None:
    """One target module more than there are weights for."""
    _written(folder, good, good.tensors, target_modules=[*good.config["target_modules"], "foo_proj"])


def lacking(field: str) -> Way:
    """A config without one field."""

    def way(good: Good, folder: Path) -> None:
        _written(folder, good, good.tensors)
        config = {key: value for key, value in good.config.items() if key != field}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")

    return way


def config_text(text: str) -> Way:
    """Any text in place of the config."""

    def way(good: Good, folder: Path) -> None:
        _written(folder, good, good.tensors)
        (folder / CONFIG).write_text(text, "utf-8")

    return way


def poisoned(value: float, *chosen: str, dtype: str = "BF16") -> Way:
    """`value` everywhere, or as the last element alone of the first tensor that contains all `chosen`."""

    def way(good: Good, folder: Path) -> None:
        tensors = {}
        for name, tensor in good.tensors.items():
            values = tensor.floats().copy()
            if not chosen:
                values[:] = value
            elif name == good.first(*chosen):
                values[-1, -1] = value
            tensors[name] = _cast(values, dtype)
        _written(folder, good, tensors)

    return way


def scaled(value: float, factor: float) -> Way:
    """One weight of a lora_B is `value`, and engines multiply it by `factor`."""
    spoil = poisoned(value, "v_proj", "lora_B")

    def way(good: Good, folder: Path) -> None:
        config = {name: setting for name, setting in good.config.items() if not name.endswith("_pattern")}
        config |= {"lora_alpha": good.rank * factor, "use_rslora": False}
        spoil(Good(good.folder, config, good.tensors), folder)

    return way


def _cast(values: Float32, dtype: str) -> Tensor:
    if dtype == "BF16":
        return bfloat16(values)
    if dtype == "F32":
        return float32(values)
    return Tensor("F16", values.shape, values.astype("<f2").tobytes())


def int8(good: Good, folder: Path) -> None:
    """Weights rounded to integers."""
    tensors = {}
    for name, tensor in good.tensors.items():
        whole = np.clip(tensor.floats() * 127, -127, 127).astype(np.int8)
        tensors[name] = Tensor("I8", tensor.shape, whole.tobytes())
    _written(folder, good, tensors)


def of_rank(rank: int) -> Way:
    """A consistent adapter of another rank."""

    def way(good: Good, folder: Path) -> None:
        tensors = {
            name: _resized(tensor, 0 if ".lora_A." in name else 1, rank) for name, tensor in good.tensors.items()
        }
        _written(folder, good, tensors, r=rank)

    return way


def reshaped(part: str, axis: int, factor: float) -> Way:
    """Tensors that contain `part` with `factor` times as many entries along `axis`."""
    return lambda good, folder: _written(folder, good, _stretched(good.tensors, part, axis, factor))


def foreign_base(good: Good, folder: Path) -> None:
    """A consistent adapter of a base twice as wide."""
    tensors = _stretched(_stretched(good.tensors, ".lora_A.", 1, 2), ".lora_B.", 0, 2)
    _written(folder, good, tensors, base_model_name_or_path="another/base")


def _stretched(tensors: Tensors, part: str, axis: int, factor: float) -> Tensors:
    return {
        name: _resized(tensor, axis, int(tensor.shape[axis] * factor)) if part in name else tensor
        for name, tensor in tensors.items()
    }


def _resized(tensor: Tensor, axis: int, length: int) -> Tensor:
    """Longer by repetition, or shorter, along one axis."""
    picked = np.arange(length) % tensor.shape[axis]
    return bfloat16(np.take(tensor.floats(), picked, axis=axis))


def renamed(old: str, new: str) -> Way:
    """Every tensor under another name."""
    return lambda good, folder: _written(folder, good, {n.replace(old, new): t for n, t in good.tensors.items()})


def unknown_module(good: Good, folder: Path) -> None:
    """q_proj under a name that no base has, in weights and config."""
    tensors = {name.replace("q_proj", "foo_proj"): tensor for name, tensor in good.tensors.items()}
    modules = [module.replace("q_proj", "foo_proj") for module in good.config["target_modules"]]
    _written(folder, good, tensors, target_modules=modules)


def layer_not_there(good: Good, folder: Path) -> None:
    """One layer's weights once more, as layer 999."""
    layer = good.first(".layers.").split(".layers.")[1].split(".")[0]
    copies = {
        name.replace(f".layers.{layer}.", ".layers.999."): tensor
        for name, tensor in good.tensors.items()
        if f".layers.{layer}." in name
    }
    _written(folder, good, {**good.tensors, **copies})


def without(*parts: str) -> Way:
    """One tensor less: the first that contains all `parts`."""

    def way(good: Good, folder: Path) -> None:
        gone = good.first(*parts)
        _written(folder, good, {name: tensor for name, tensor in good.tensors.items() if name != gone})

    return way


def no_tensors(good: Good, folder: Path) -> None:
    """A weights file with nothing in it."""
    _written(folder, good, {})


def with_vectors(suffix: str, **config: Any) -> Way:
    """Good weights and a vector beside each pair, as DoRA and trained biases have."""
    return lambda good, folder: _written(folder, good, {**good.tensors, **_vectors(good, suffix)}, **config)


def ia3(good: Good, folder: Path) -> None:
    """Scaling vectors instead of pairs."""
    _written(folder, good, _vectors(good, "ia3_l"), peft_type="IA3")


def _vectors(good: Good, suffix: str) -> Tensors:
    return {
        name.replace("lora_B.weight", suffix): bfloat16(np.ones(tensor.shape[0], np.float32))
        for name, tensor in good.tensors.items()
        if name.endswith(".lora_B.weight")
    }


def embedding(good: Good, folder: Path) -> None:
    """A LoRA of the embedding beside the others."""
    hidden = good.tensors[good.first("q_proj", ".lora_A.")].shape[1]
    prefix = "base_model.model.model.embed_tokens.lora_embedding_"
    pair = {f"{prefix}A": _constant(good.rank, 256), f"{prefix}B": _constant(hidden, good.rank)}
    _written(folder, good, {**good.tensors, **pair}, target_modules=[*good.config["target_modules"], "embed_tokens"])


def saved_head(good: Good, folder: Path) -> None:
    """A whole output layer in the adapter."""
    head = {"base_model.model.lm_head.weight": _constant(256, 64)}
    _written(folder, good, {**good.tensors, **head}, modules_to_save=["lm_head"])


def added_tokens(good: Good, folder: Path) -> None:
    """A tokenizer beside good weights, with a token that is beyond every base's."""
    _written(folder, good, good.tensors)
    (folder / "added_tokens.json").write_text('{"<|acme|>": 10000000}\n', "utf-8")


def _constant(*shape: int) -> Tensor:
    return bfloat16(np.full(shape, 0.01, np.float32))


def empty(_: Good, folder: Path) -> None:
    """Nothing at all."""


def removed(name: str) -> Way:
    """One file less."""

    def way(good: Good, folder: Path) -> None:
        _written(folder, good, good.tensors)
        (folder / name).unlink()

    return way


def escaping_link(good: Good, folder: Path) -> None:
    """The weights are a link to a file outside; whoever copies the folder must keep the link."""
    _written(folder, good, good.tensors)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(good.folder / WEIGHTS)


def _weights_changed(good: Good, folder: Path, change: Callable[[bytes], bytes]) -> None:
    _written(folder, good, good.tensors)
    (folder / WEIGHTS).write_bytes(change((folder / WEIGHTS).read_bytes()))


def truncated(good: Good, folder: Path) -> None:
    """Half of the file, as an interrupted copy leaves it."""
    _weights_changed(good, folder, lambda raw: raw[: len(raw) // 2])


def garbage(good: Good, folder: Path) -> None:
    """Random bytes."""
    _weights_changed(good, folder, lambda raw: random.Random(0).randbytes(len(raw)))


def header_bomb(good: Good, folder: Path) -> None:
    """A header that claims 2**60 bytes: whoever believes it runs out of memory."""
    _weights_changed(good, folder, lambda raw: struct.pack("<Q", 1 << 60) + raw[8:])


def offsets_past_the_end(good: Good, folder: Path) -> None:
    """The last tensor is said to end 4 KiB after the file."""

    def change(raw: bytes) -> bytes:
        (length,) = struct.unpack_from("<Q", raw)
        header = json.loads(raw[8 : 8 + length])
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        max(tensors, key=lambda entry: entry["data_offsets"])["data_offsets"][1] += 4096
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + length :]

    _weights_changed(good, folder, change)


class _Malice:
    """Pickles as a call of os.system that leaves a marker."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self._marker}'",)


def pickled(good: Good, folder: Path) -> None:
    """adapter_model.bin alone, with harmless contents."""
    _pickle(good, folder / "adapter_model.bin", {name: tensor.data for name, tensor in good.tensors.items()})


def malicious_pickle(good: Good, folder: Path) -> None:
    """adapter_model.bin that runs a command when read."""
    _pickle(good, folder / "adapter_model.bin", {"weight": _Malice(folder.resolve() / MARKER)})


def pickle_named_safetensors(good: Good, folder: Path) -> None:
    """The same under the name of a safetensors file."""
    _pickle(good, folder / WEIGHTS, {"weight": _Malice(folder.resolve() / MARKER)})


def _pickle(good: Good, path: Path, content: object) -> None:
    """Write `content` in torch.save's layout: a zip file around a pickle."""
    (path.parent / CONFIG).write_text(json.dumps(good.config, indent=2) + "\n", "utf-8")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in (("data.pkl", pickle.dumps(content, 2)), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"adapter_model/{name}"), data)
    path.write_bytes(packed.getvalue())
