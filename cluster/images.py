"""The container images of images/, built without Docker and without a registry.

    python -m cluster.images build tuneyard        build one; prints its reference
    python -m cluster.images build --all           build all, with times and sizes
    python -m cluster.images build envoy --out F   also write an archive (for `docker load`, `ctr images import`)
    python -m cluster.images list                  the images and what they are made of
    python -m cluster.images load tuneyard         build, and load into the cluster that is up
    python -m cluster.images venv vllm-cpu         an environment of exactly that lock; prints its Python

An image is named `localhost/tuneyard/<name>:<content id>`, and `:dev` for people. The content id is the start of its
configuration's digest, which covers every layer: same id, same image. Nothing large is stored but layers
(cluster/layers.py); an archive is streamed from them, because a copy of the engine's would cost gigabytes. A cluster
that has another image with the same lower layers is not sent these again: what each image was made of is noted in the
cache under its content id.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

from cluster import dockerfile, pythons, recipes
from cluster.errors import ClusterError
from cluster.layers import Layer
from cluster.paths import cache_root
from cluster.progress import Progress
from cluster.provider import open_provider

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_OCI = "application/vnd.oci.image"


@dataclass(frozen=True)
class ImageArchive:
    """A built image: its layers, lowest first, and its configuration."""

    name: str
    layers: tuple[Layer, ...]
    config: bytes

    @cached_property
    def content_id(self) -> str:
        """12 hex digits of the digest of the configuration; the whole digest is the runtime's image id."""
        return hashlib.sha256(self.config).hexdigest()[:12]

    @property
    def reference(self) -> str:
        """The name to put into a pod."""
        return f"localhost/tuneyard/{self.name}:{self.content_id}"

    @property
    def references(self) -> tuple[str, str]:
        """All names the archive carries."""
        return (self.reference, f"localhost/tuneyard/{self.name}:dev")

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(layer.size for layer in self.layers)

    def write(self, output: IO[bytes], without: Set[str] = frozenset()) -> None:
        """Write an archive that is an OCI layout and a docker-archive at once; `output` need not be seekable.

        Layers whose digests are in `without` are left out: for a reader that has them.
        """
        with tarfile.open(fileobj=output, mode="w|", format=tarfile.GNU_FORMAT, bufsize=1 << 20) as tar:
            for path, content in self._documents().items():
                entry = tarfile.TarInfo(path)
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
            for layer in {layer.digest: layer for layer in self.layers if layer.digest not in without}.values():
                entry = tarfile.TarInfo(_blob(layer.digest))
                entry.size, entry.mode = layer.size, 0o644
                with layer.path.open("rb") as content_file:
                    tar.addfile(entry, content_file)

    @contextmanager
    def stream(self, without: Set[str] = frozenset()) -> Iterator[Path]:
        """A path that whoever opens it once reads the archive from; nothing is stored."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self.name}.tar"
            os.mkfifo(path, 0o600)
            feeder = threading.Thread(target=self._feed, args=(path, without), daemon=True)
            feeder.start()
            try:
                yield path
            finally:
                # If nobody opened it, the feeder waits for a reader: give it one that wants nothing.
                while feeder.is_alive():
                    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                    feeder.join(0.05)
                    os.close(reader)

    def _feed(self, path: Path, without: Set[str]) -> None:
        try:
            with path.open("wb") as pipe:
                self.write(pipe, without)
        except BrokenPipeError:
            pass  # the reader had all it wanted, or failed and says so itself

    @property
    def path(self) -> Path:
        """The archive as a file in the cache, written when it is not there. `stream` and `load` do without it."""
        folder = cache_root() / "archives"
        path = folder / f"{self.name}-{self.content_id}.tar"
        if not path.exists():
            with pythons.scratch(folder) as temporary:
                with (temporary / path.name).open("wb") as file:
                    self.write(file)
                for old in folder.glob(f"{self.name}-*.tar"):
                    old.unlink()
                (temporary / path.name).rename(path)
        return path

    def _documents(self) -> dict[str, bytes]:
        """Everything but the layers: path in the archive to content."""
        config_digest = f"sha256:{hashlib.sha256(self.config).hexdigest()}"
        layers = [
            {"mediaType": f"{_OCI}.layer.v1.tar", "digest": layer.digest, "size": layer.size} for layer in self.layers
        ]
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": f"{_OCI}.manifest.v1+json",
                "config": {"mediaType": f"{_OCI}.config.v1+json", "digest": config_digest, "size": len(self.config)},
                "layers": layers,
            }
        )
        manifest_digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        described = [
            {
                "mediaType": f"{_OCI}.manifest.v1+json",
                "digest": manifest_digest,
                "size": len(manifest),
                "annotations": {
                    "io.containerd.image.name": reference,
                    "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[1],
                },
            }
            for reference in self.references
        ]
        docker = {
            "Config": _blob(config_digest),
            "RepoTags": list(self.references),
            "Layers": [_blob(layer.digest) for layer in self.layers],
        }
        return {
            "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
            "index.json": _json({"schemaVersion": 2, "mediaType": f"{_OCI}.index.v1+json", "manifests": described}),
            "manifest.json": _json([docker]),
            _blob(config_digest): self.config,
            _blob(manifest_digest): manifest,
        }


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def names() -> list[str]:
    """All images that can be built."""
    return list(recipes.RECIPES)


def build(name: str, progress: Progress | None = None) -> ImageArchive:
    """Build an image, reusing every layer whose inputs are the same; raises ClusterError with a remedy."""
    if name not in recipes.RECIPES:
        raise ClusterError(f"there is no image {name!r}; there are: {', '.join(names())}")
    layers = tuple(recipes.layers(name, progress or Progress()))
    config = _json(
        {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": dockerfile.settings(recipes.IMAGES / name / "Dockerfile"),
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "history": [{"created_by": layer.name} for layer in layers],
        }
    )
    archive = ImageArchive(name, layers, config)
    _note_layers(archive)
    return archive


class Node(Protocol):
    """What of a cluster.provider.Provider is used here."""

    def images(self) -> dict[str, str]:
        """Image name to content id."""
        ...

    def load_image(self, archive: Path) -> None:
        """Load every image of an archive."""
        ...


def load(node: Node, archive: ImageArchive) -> str:
    """Have the image in the cluster and return its reference; an image that is there already costs nothing."""
    present = node.images()
    if archive.reference in present:
        return archive.reference
    known = {digest for reference in present for digest in _noted_layers(reference)}
    if known & {layer.digest for layer in archive.layers}:
        try:
            with archive.stream(without=known) as path:
                node.load_image(path)
            return archive.reference
        except ClusterError:
            pass  # a cluster may drop the blobs of layers it has unpacked; then it gets all of them
    with archive.stream() as path:
        node.load_image(path)
    return archive.reference


def _notes(content_id: str) -> Path:
    return cache_root() / "images" / f"{content_id}.json"


def _note_layers(archive: ImageArchive) -> None:
    path = _notes(archive.content_id)
    if not path.exists():
        with pythons.scratch(path.parent) as temporary:
            (temporary / path.name).write_bytes(_json([layer.digest for layer in archive.layers]))
            (temporary / path.name).rename(path)


def _noted_layers(reference: str) -> list[str]:
    """The layers of an image of ours, by its name in the cluster; none for any other name."""
    path = _notes(reference.rsplit(":", 1)[1])
    if not (reference.startswith("localhost/tuneyard/") and path.exists()):
        return []
    noted: list[str] = json.loads(path.read_text())
    return noted


def _build_command(given: argparse.Namespace, progress: Progress) -> None:
    for name in names() if given.all else [given.name]:
        began = time.monotonic()
        archive = build(name, progress)
        if given.out:
            with Path(given.out).open("wb") as file:
                archive.write(file)
        progress.note(f"{name}: {archive.size / 1e6:.0f} MB in {time.monotonic() - began:.1f} s")
        print(archive.reference)


def _load_command(given: argparse.Namespace, progress: Progress) -> None:
    provider = open_provider(progress=progress)
    for name in names() if given.all else [given.name]:
        print(load(provider, build(name, progress)))


def _list_command(_given: argparse.Namespace, _progress: Progress) -> None:
    for name, recipe in recipes.RECIPES.items():
        print(f"{name}: Debian {' '.join(recipes.debian_packages(name))}; requirements/{recipe.lock}.txt")


def _venv_command(given: argparse.Namespace, progress: Progress) -> None:
    print(pythons.venv(given.name, progress))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.images", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command, run, text in (
        ("build", _build_command, "build an image from its layers"),
        ("load", _load_command, "build an image and load it into the cluster"),
    ):
        made = commands.add_parser(command, help=text)
        which = made.add_mutually_exclusive_group(required=True)
        which.add_argument("name", nargs="?", choices=names())
        which.add_argument("--all", action="store_true", help="every image")
        made.set_defaults(run=run)
        if command == "build":
            made.add_argument("--out", metavar="FILE", help="also write the archive here")
    commands.add_parser("list", help="list the images").set_defaults(run=_list_command)
    venv = commands.add_parser("venv", help="environment of a lock, for use outside containers")
    venv.add_argument("name")
    venv.set_defaults(run=_venv_command)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; results go to stdout, progress to stderr."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "build" and given.all and given.out:
        parser.error("--out takes one image")
    try:
        given.run(given, Progress())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
