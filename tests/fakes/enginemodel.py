"""What the fake engine thinks with: adapters as vLLM 0.32 treats them, without a model behind.

Rules, each measured on the real one (tests/contract runs the same suite on both):
- loading refuses what vLLM refuses and swallows what vLLM swallows (NaN, lora_alpha 0, wrong ranks, layers that are not
  there, modules under other names than the base's, of which none has an effect);
- names live apart from weights: unloading forgets the name, running requests keep their weights;
- at most `max_cpu_loras` weights are kept, the least recently used go first and are read again from their folder; a
  folder that is gone then ends the engine with every stream;
- at most `max_loras` adapters generate at a time; others wait, and nobody waits behind them;
- a request to an adapter with NaN leaves everybody's answers empty, for ever.

Answers are a function of the prompt and the adapter's effective weights: an adapter without effect answers as the base.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_KNOWN = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head", "embed_tokens"}
)
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F64": 8, "I64": 8, "I32": 4, "BOOL": 1}
_PREFIX = "base_model.model."
_IN_BASE = re.compile(rf"({re.escape(_PREFIX)})?model\.layers\.\d")
"""The engine looks modules up by their full names, and leaves out what has another, without a word."""
_INFINITE = {"F32": ("<I", 0x7F800000), "F16": ("<H", 0x7C00), "BF16": ("<H", 0x7F80)}
_WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch marsh nadir ocean plume".split()  # noqa: SIM905


class RefusedError(Exception):
    """The engine refuses a request: an HTTP status and a message."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class DeadError(Exception):
    """The engine's core has ended."""


@dataclass(frozen=True)
class Weights:
    """What of an adapter has an effect."""

    fingerprint: bytes
    poisonous: bool


BASE = Weights(b"", poisonous=False)


@dataclass(frozen=True)
class Lora:
    """A name that is loaded, with the engine's own number for it."""

    name: str
    path: str
    number: int


@dataclass
class Model:
    """The engine's core."""

    base_name: str
    max_loras: int = 2
    max_cpu_loras: int = 16
    max_rank: int = 16
    hidden: int | None = None
    """The base's width, for the shapes; None: any shape is accepted."""
    vocabulary: int | None = None
    loras: dict[str, Lora] = field(default_factory=dict)
    poisoned: bool = False
    dead: bool = False
    running: Counter[str] = field(default_factory=Counter)
    """Requests per adapter name that have had their first token."""
    waiting: int = 0
    _cache: OrderedDict[int, Weights] = field(default_factory=OrderedDict)
    _active: Counter[int] = field(default_factory=Counter)
    _numbers: int = 0
    _freed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def load(self, name: str, path: str) -> None:
        """Load an adapter; raises RefusedError."""
        if name == self.base_name:
            raise RefusedError(
                400, f"The lora adapter '{name}' conflicts with a served base model.", "InvalidUserInput"
            )
        if name in self.loras:
            raise RefusedError(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not Path(path).is_dir() or not (Path(path) / "adapter_config.json").is_file():
            raise RefusedError(404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError")
        self._numbers += 1
        lora = Lora(name, path, self._numbers)
        self._cached(lora)
        self.loras[name] = lora

    def unload(self, name: str) -> None:
        """Forget a name; raises RefusedError."""
        if self.loras.pop(name, None) is None:
            raise RefusedError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")

    def lora(self, model: str) -> Lora | None:
        """The adapter of a request, None for the base; raises RefusedError."""
        if model == self.base_name:
            return None
        if model not in self.loras:
            raise RefusedError(404, f"The model `{model}` does not exist.", "NotFoundError")
        return self.loras[model]

    @asynccontextmanager
    async def slot(self, lora: Lora | None) -> AsyncIterator[Weights]:
        """A place among those that generate; raises DeadError when the engine dies over it."""
        if lora is None:
            yield self._weights(None)
            return
        self.waiting += 1
        try:
            async with self._freed:
                await self._freed.wait_for(lambda: self._active[lora.number] or self._used() < self.max_loras)
                self._active[lora.number] += 1
        finally:
            self.waiting -= 1
        try:
            yield self._weights(lora)
        finally:
            self._active[lora.number] -= 1
            async with self._freed:
                self._freed.notify_all()

    @contextmanager
    def counted(self, lora: Lora | None) -> Iterator[None]:
        """Count a request with its adapter, from its first token on: only then the real engine's metrics name it."""
        name = lora.name if lora else ""
        self.running[name] += 1
        try:
            yield
        finally:
            self.running[name] -= 1

    def die(self) -> None:
        """End the core: nothing is answered any more."""
        self.dead = True

    def _used(self) -> int:
        return sum(1 for count in self._active.values() if count)

    def _weights(self, lora: Lora | None) -> Weights:
        if self.dead:
            raise DeadError
        if lora is None:
            return BASE
        try:
            weights = self._cached(lora)
        except (RefusedError, OSError) as error:
            self.die()
            raise DeadError from error
        self.poisoned |= weights.poisonous
        return weights

    def _cached(self, lora: Lora) -> Weights:
        if lora.number in self._cache:
            self._cache.move_to_end(lora.number)
            return self._cache[lora.number]
        weights = read_adapter(Path(lora.path), self.max_rank, self.hidden, self.vocabulary)
        while len(self._cache) >= self.max_cpu_loras:
            self._cache.popitem(last=False)
        self._cache[lora.number] = weights
        return weights


def tokens(weights: Weights, prompt: str, count: int) -> list[str]:
    """The answer, word by word."""
    seed = hashlib.blake2b(weights.fingerprint + prompt.encode(), digest_size=32).digest()
    return [_WORDS[seed[i % 32] % 16] + " " for i in range(count)]


def logprobs(weights: Weights, prompt: str, count: int) -> list[dict[str, float]]:
    """How sure it was of each word."""
    seed = hashlib.blake2b(weights.fingerprint + b"\1" + prompt.encode(), digest_size=32).digest()
    return [{word: -0.01 * (1 + seed[i % 32])} for i, word in enumerate(tokens(weights, prompt, count))]


def read_adapter(folder: Path, max_rank: int, hidden: int | None, vocabulary: int | None = None) -> Weights:
    """An adapter's weights; raises RefusedError (500) for what vLLM refuses."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank, alpha, _ = config["r"], config["lora_alpha"], config["target_modules"]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(500, f"Missing required configuration fields: {error}", "InternalServerError") from error
    _check_config(config, max_rank)
    data, tensors = _read_tensors(folder / "adapter_model.safetensors")
    modules: dict[str, dict[str, bytes]] = {}
    poisonous = False
    for name, (dtype, shape, begin, end) in tensors.items():
        module, half = _module(name)
        _check_shape(name, half, shape, hidden, vocabulary)
        modules.setdefault(module, {})[half] = data[begin:end]
        poisonous |= _has_non_finite(dtype, data[begin:end])
    if not modules or any(len(halves) != 2 for halves in modules.values()):
        raise RefusedError(500, "no tensors, or one half of a pair is missing", "InternalServerError")
    if alpha == 0 or rank == 0:
        return BASE
    state = hashlib.blake2b()
    effect = False
    for module in sorted(modules):
        if ".layers.999." in module or not _IN_BASE.match(module) or not any(modules[module]["B"]):
            continue
        effect = True
        state.update(module.removeprefix(_PREFIX).encode() + modules[module]["A"] + modules[module]["B"])
    state.update(struct.pack("<d", float(alpha) / rank))
    return Weights(state.digest() if effect else b"", poisonous)


def _check_config(config: Mapping[str, Any], max_rank: int) -> None:
    init = config.get("init_lora_weights", True)
    wrong = [key for key in ("use_dora", "lora_bias", "modules_to_save", "layer_replication") if config.get(key)]
    if config.get("bias", "none") != "none":
        wrong.append("bias")
    if isinstance(init, str) and init.lower() not in {"gaussian", "eva", "orthogonal"}:
        wrong.append("init_lora_weights")
    highest = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if highest > max_rank:
        wrong.append(f"LoRA rank {highest} is greater than max_lora_rank {max_rank}.")
    if wrong:
        raise RefusedError(500, f"vLLM does not support {', '.join(wrong)}", "InternalServerError")


def _read_tensors(path: Path) -> tuple[bytes, dict[str, tuple[str, list[int], int, int]]]:
    if not path.is_file():
        raise RefusedError(500, f"{path.parent} doesn't contain tensors", "InternalServerError")
    raw = path.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", raw)
        if length > len(raw) - 8:
            raise ValueError("InvalidHeaderLength")
        header = json.loads(raw[8 : 8 + length])
        data = raw[8 + length :]
        found = {n: (e["dtype"], e["shape"], *e["data_offsets"]) for n, e in header.items() if n != "__metadata__"}
        if max((t[3] for t in found.values()), default=0) != len(data):
            raise ValueError("MetadataIncompleteBuffer")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise RefusedError(500, f"Error while deserializing header: {error}", "InternalServerError") from error
    return data, found


def _module(name: str) -> tuple[str, str]:
    parts = name.split(".")
    if parts[-1] in ("lora_embedding_A", "lora_embedding_B"):
        return ".".join(parts[:-1]), parts[-1][-1]
    if len(parts) < 3 or parts[-1] != "weight" or parts[-2] not in ("lora_A", "lora_B"):
        raise RefusedError(500, f"{name} is unsupported LoRA weight", "InternalServerError")
    if parts[-3] not in _KNOWN:
        raise RefusedError(
            500, f"expected target modules in {sorted(_KNOWN)} but received {name}", "InternalServerError"
        )
    return ".".join(parts[:-2]), parts[-2][-1]


def _check_shape(name: str, half: str, shape: list[int], hidden: int | None, vocabulary: int | None) -> None:
    """Too large for the engine's own buffers: smaller shapes are copied into a corner of them, without a word."""
    width = shape[-1] if half == "A" else shape[0]
    if hidden is not None and ".self_attn." in name and width > hidden:
        raise RefusedError(500, f"The size of tensor a ({width}) must match {hidden}: {name}", "InternalServerError")
    if vocabulary is not None and name.endswith("lora_embedding_A") and width != vocabulary:
        raise RefusedError(500, f"The embedding LoRA size({width}) must be consistent", "InternalServerError")


def _has_non_finite(dtype: str, data: bytes) -> bool:
    if dtype not in _INFINITE:
        return False
    code, mask = _INFINITE[dtype]
    return any(value[0] & mask == mask for value in struct.iter_unpack(code, data))
