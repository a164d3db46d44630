"""Images without a base, as docker-archives: of one static program, or of a folder's files. Same input, same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO, Any


def write_archive(output: IO[bytes], name: str, program: Path) -> None:
    """Write the image `name` whose entry point is `program`, at `/<its file name>`, to a seekable file."""
    entry = {"Entrypoint": [f"/{program.name}"], "Env": ["PATH=/"]}
    _write(output, name, [(program.name, program, 0o755)], {"architecture": _architecture(program), "config": entry})


def write_folder(output: IO[bytes], name: str, folder: Path, architecture: str) -> None:
    """Write the image `name` that holds a folder's files, readable by everybody, to a seekable file."""
    files = [(str(p.relative_to(folder)), p, 0o644) for p in sorted(folder.rglob("*")) if p.is_file()]
    _write(output, name, files, {"architecture": architecture, "config": {}})


def _write(output: IO[bytes], name: str, files: list[tuple[str, Path, int]], about: dict[str, Any]) -> None:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, file, mode in files:
            _add(tar, path, file.read_bytes(), mode)
    content = layer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    config = json.dumps({**about, "os": "linux", "rootfs": rootfs}, sort_keys=True).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    with tarfile.open(fileobj=output, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, "manifest.json", json.dumps(manifest).encode(), 0o644)
        _add(tar, config_name, config, 0o644)
        _add(tar, f"{digest}/layer.tar", content, 0o644)


def _architecture(program: Path) -> str:
    # Bytes 18 and 19 of an ELF file name its machine.
    with program.open("rb") as file:
        machine = int.from_bytes(file.read(20)[18:20], "little")
    return {0x3E: "amd64", 0xB7: "arm64"}[machine]


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))
