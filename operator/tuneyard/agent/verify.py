"""The first thing in a model pod: is the base there, is it the right one, can it be split as asked; then the front's
configuration. Where the base comes over the network, it is fetched first (basefetch.py).

Whatever happens, what was found out stands in the container's termination message, where the operator reads it. The
quick checks come first: a missing file must not cost the minutes of reading a large model.

Nothing is remembered between runs. An init container runs again only in a pod that is new or whose sandbox was lost,
and then the bytes are another matter than the last time.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tuneyard.agent.basefiles import gguf_base_of
from tuneyard.agent.enginetold import VLLM, EngineTold
from tuneyard.api.documents import BaseReport
from tuneyard.api.memorydemand import MemoryDemand
from tuneyard.api.reasons import Reason
from tuneyard.planning.basefacts import attention_heads
from tuneyard.planning.enginepresets import Engine
from tuneyard.planning.engines import ENGINES, Weights, weights_not_served
from tuneyard.planning.groupchecks import uneven_groups
from tuneyard.planning.memory import gpu_memory_too_small
from tuneyard.planning.observations import Problem
from tuneyard.planning.settingchecks import unfit_for_base, unserved_format
from tuneyard.systems.artifacts.basefiles import base_config, read_size, weights_in
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of, find_folder, list_files, opened
from tuneyard.systems.artifacts.safetensors import read_header
from tuneyard.systems.envoy.front import Guarding, front_config
from tuneyard.systems.envoy.podtls import front_source

_log = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
_DOCUMENTS = (*_TOKENIZERS, ".json", ".jsonl", ".txt", ".md", ".py", ".jinja", ".tiktoken", ".yaml", ".yml")
"""Ends of names that are no weights."""
_MOST_MESSAGE = 2500
_MOST_INDEX = 32 << 20
_HEADER = 64 << 20


@dataclass(frozen=True)
class BaseWanted:
    """What the pod is told of its base."""

    name: str
    path: Path
    tensor_parallel_size: int
    digest: str | None
    volumes: Path = Path("/artifacts")
    memory: MemoryDemand | None = None
    """How it is to be served, where that is compared with its size."""
    engine: EngineTold = VLLM


@dataclass(frozen=True)
class Found:
    """A base's folder, and its digest where that is known already."""

    folder: Path
    digest: str | None = None
    size_bytes: int = 0


Find = Callable[[BaseWanted], Found]
"""Raises ArtifactError."""


def verify(
    wanted: BaseWanted, front: Path | None, message: Path, find: Find | None = None, certificate: str = ""
) -> int:
    """Verify the base, write the front's configuration to `front` and the report to `message`; the exit code.

    `find` gets it; default: from the volume that its path names. `certificate`: folder of the front's, empty: none.
    """
    try:
        report = examine(wanted, (find or on_volume)(wanted))
        if report.ok and front is not None:
            _write_front(front, certificate, wanted.engine)
    except ArtifactError as error:
        report = _failed(error.reason, str(error))
    except Exception as error:  # noqa: BLE001
        # a bug must reach the operator as words too, not only as an exit code
        _log.exception("verifying the base")
        report = _failed(Reason.ARTIFACT_UNREADABLE, f"{type(error).__name__}: {error}")
    _log.log(logging.INFO if report.ok else logging.ERROR, "%s", report.message or f"{wanted.name} is {report.digest}")
    message.write_text(json.dumps(report.to_dict(), separators=(",", ":")))
    return 0 if report.ok else 1


def _write_front(path: Path, certificate: str, engine: EngineTold) -> None:
    """The front's configuration and, beside it, where its certificate is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.with_name("front-certificate.json")
    if certificate:
        source.write_text(json.dumps(front_source(certificate)))
    config = front_config(
        certificate=str(source) if certificate else "", guarding=guarding_of(engine, path.with_name("front-models"))
    )
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def guarding_of(engine: EngineTold, models: Path) -> Guarding | None:
    """What the front does for the engine; `models`: the file with what is served."""
    return None if engine.guards else Guarding(str(models), engine.health_path, engine.metrics)


def examine(wanted: BaseWanted, base: Found) -> BaseReport:
    """What there is to say of the base; raises ArtifactError."""
    folder = base.folder
    files = list_files(folder)
    gguf = gguf_base_of(folder)
    _fits_engine(wanted.engine, "gguf" if gguf else "safetensors", files)
    if gguf is not None:
        _in_one_file(wanted.engine, files)
        return _with_digest(wanted, base, files, _sendable(gguf.architecture, 200))
    if wanted.engine.name == "custom" and not weights_in(files):
        _of_its_own_format(files)
        return _with_digest(wanted, base, files, None)
    config = base_config(folder)
    _weights(folder, files)
    if not any(name in files or name.endswith(".tiktoken") for name in _TOKENIZERS):
        raise ArtifactError(Reason.FILES_MISSING, "the tokenizer's files are missing: copy the whole model")
    architecture = _architecture(config)
    heads = attention_heads(config)
    if heads is not None and heads % wanted.tensor_parallel_size:
        fitting = [n for n in range(1, min(heads, 64) + 1) if heads % n == 0]
        return _failed(
            Reason.TENSOR_PARALLEL_MISMATCH,
            f"tensorParallelSize {wanted.tensor_parallel_size} does not divide the model's {heads} attention heads: "
            f"choose one of {', '.join(map(str, fitting))}",
            architecture,
        )
    engine = Engine(wanted.engine.name, wanted.engine.version, wanted.engine.build)
    misfit = unserved_format(engine, config, avx512=has_avx512())
    misfit = misfit or uneven_groups(engine, config, wanted.tensor_parallel_size) or _misfit(folder, wanted.memory)
    if misfit:
        return _failed(misfit.reason, misfit.message, architecture)
    return _with_digest(wanted, base, files, architecture)


def has_avx512(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this node's CPU has AVX-512; True of processors that are none of x86, and where nobody knows."""
    try:
        told = cpuinfo.read_text()
    except OSError:
        return True
    flags = re.search(r"^flags\s*:(.*)$", told, re.MULTILINE)
    return flags is None or "avx512f" in flags[1].split()


def _fits_engine(engine: EngineTold, weights: Weights, files: list[str]) -> None:
    """Raises ArtifactError where the engine does not serve bases of this format."""
    unserved = weights_not_served(engine.name, weights) if weights == "gguf" or weights_in(files) else None
    if unserved:
        raise ArtifactError(unserved.reason, unserved.message)


def _of_its_own_format(files: list[str]) -> None:
    """A custom engine reads what it reads, as long as its bytes are in the digest; raises ArtifactError."""
    if all(name.endswith(_DOCUMENTS) for name in files):
        raise ArtifactError(
            Reason.FILES_MISSING,
            "there are no weights that a digest covers: pickles (.bin, .pt), .onnx, .h5, .msgpack and .tflite are "
            "neither hashed nor fetched; put the model into another format, or into the engine's image",
        )


def _in_one_file(engine: EngineTold, files: list[str]) -> None:
    parts = [name for name in files if name.endswith(".gguf") and "/" not in name]
    if len(parts) == 1 or ENGINES[engine.name].parts:
        return
    raise ArtifactError(
        Reason.ENGINE_UNSUITABLE,
        f"the base is GGUF in {len(parts)} parts, engine {engine.name} imports one file: join them "
        "(llama-gguf-split --merge), or use serving.engine llamaCpp",
    )


def _with_digest(wanted: BaseWanted, base: Found, files: list[str], architecture: str | None) -> BaseReport:
    found = base if base.digest else _hashed(base.folder, files)
    if wanted.digest not in (None, found.digest):
        return _failed(
            Reason.DIGEST_MISMATCH,
            f"the files' digest is {found.digest}, pinned is {wanted.digest}: restore the files, or create a new "
            "BaseModel for the new ones",
            architecture,
        )
    return BaseReport(ok=True, digest=found.digest, size_bytes=found.size_bytes, architecture=architecture)


def _misfit(folder: Path, demand: MemoryDemand | None) -> Problem | None:
    """How the base cannot be divided as asked, or is too large for the GPUs."""
    if demand is None:
        return None
    size = read_size(folder)
    return unfit_for_base(size, demand) or gpu_memory_too_small(size, demand)


def _hashed(folder: Path, files: list[str]) -> Found:
    known = digest_of(folder, workers=min(4, os.cpu_count() or 1), on_bytes=_progress(folder, files))
    return Found(folder, known.digest, known.size_bytes)


def on_volume(wanted: BaseWanted) -> Found:
    """The base on a volume of the pod; raises ArtifactError."""
    try:
        volume, *path = wanted.path.relative_to(wanted.volumes).parts
    except ValueError as error:
        raise ArtifactError(Reason.UNSAFE_PATH, f"{wanted.path} is not on a volume of the pod") from error
    return Found(find_folder(wanted.volumes, volume, "/".join(path)))


def _architecture(config: dict[str, Any]) -> str:
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise ArtifactError(Reason.INVALID_CONFIG, "config.json names no architectures: copy the model again")
    return _sendable(named[0], 200)


def _weights(folder: Path, files: list[str]) -> None:
    """The safetensors files are all there and whole."""
    weights = weights_in(files)
    if not weights:
        raise ArtifactError(
            Reason.FILES_MISSING, "there is no safetensors file: only bases in safetensors format can be served"
        )
    if _INDEX in files:
        with opened(folder, _INDEX) as file:
            raw = file.read(_MOST_INDEX)
        try:
            named = set(json.loads(raw)["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(Reason.INVALID_CONFIG, f"{_INDEX} cannot be read: copy the model again") from error
        missing = sorted(map(str, named - set(weights)))
        if missing:
            raise ArtifactError(
                Reason.FILES_MISSING,
                f"{len(missing)} weight files are missing, {missing[0]} first: copy the whole model",
            )
    for name in weights:
        read_header(folder, name, _HEADER)


def _progress(folder: Path, files: list[str]) -> Callable[[int], None]:
    """Says how far hashing is, every ten seconds."""
    total = sum((folder / name).stat().st_size for name in files)
    done, said = 0, time.monotonic()

    def heard(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said > 10.0:
            said = time.monotonic()
            _log.info("read %d of %d MiB", done >> 20, total >> 20)

    return heard


def _failed(reason: Reason, message: str, architecture: str | None = None) -> BaseReport:
    # a termination message has at most 4,096 bytes, JSON included
    return BaseReport(
        ok=False, reason=reason.value, message=_sendable(message, _MOST_MESSAGE), architecture=architecture
    )


def _sendable(text: str, most: int) -> str:
    """The text in at most so many bytes of UTF-8: JSON of strangers may hold half a surrogate pair."""
    return text.encode(errors="replace")[:most].decode(errors="ignore")
