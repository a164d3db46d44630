"""An image of one static program and nothing else, as a docker-archive; the same bytes for the same program."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO


def write_archive(output: IO[bytes], name: str, program: Path) -> None:
    """Write the image `name` whose entry point is `program`, at `/<its file name>`, to a seekable file."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        _add(tar, program.name, program.read_bytes(), 0o755)
    content = layer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    config = json.dumps(
        {
            "architecture": _architecture(program),
            "os": "linux",
            "config": {"Entrypoint": [f"/{program.name}"], "Env": ["PATH=/"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        },
        sort_keys=True,
    ).encode()
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
