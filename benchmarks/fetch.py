"""2 GB from a real S3 server on this machine, verified and on the disk, against boto3's own transfer of the same.

boto3 downloads the same objects to the same disk, one after the other with its own parallel ranges, without hashing.
It does not wait for the disk either, and ours does (fsync), so the comparison is made twice: with boto3 as it is, and
with its files on the disk too. Both are processes of their own that take turns; a process's start is not counted.

At the end two pods of a node begin at once, with one cache: what comes beyond one copy came for the second pod.

python -m benchmarks.fetch [--rounds N] [--mb N]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
from botocore.config import Config

from benchmarks.report import write
from tests.contract.fetching import start
from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.sources import SecretReference, Source
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.artifacts.remote import Credentials, Remote, RemoteFile, remote_of
from tuneyard.systems.artifacts.store import Store

ROUNDS = 5
SHARDS = 4
_BUCKET, _PREFIX = "models", "base"


def _name(shard: int) -> str:
    return f"model-{shard:05}-of-{SHARDS:05}.safetensors"


def _upload(server: S3Server, folder: Path, size: int) -> str:
    """Put a model of `size` bytes there; returns its digest."""
    block = random.Random(4).randbytes(1 << 20)
    model = folder / "model"
    model.mkdir()
    for shard in range(SHARDS):
        with (model / _name(shard)).open("wb") as file:
            for part in range(size // SHARDS >> 20):
                turn = (shard * 4096 + part) % len(block)
                file.write(block[turn:] + block[:turn])
    (model / "config.json").write_text("{}")
    digest = digest_of(model).digest
    server.client.create_bucket(Bucket=_BUCKET)
    for path in model.iterdir():
        server.client.upload_file(str(path), _BUCKET, f"{_PREFIX}/{path.name}")
    shutil.rmtree(model)
    return digest


def _by_boto3(url: str, target: Path) -> None:
    """What the process for boto3 does: list, and transfer each object as boto3 does it."""
    target.mkdir()
    begun = time.perf_counter()
    client = boto3.session.Session(ROOT, ROOT_SECRET, region_name="us-east-1").client(
        "s3", endpoint_url=url, config=Config(s3={"addressing_style": "path"})
    )
    for entry in client.list_objects_v2(Bucket=_BUCKET, Prefix=f"{_PREFIX}/")["Contents"]:
        client.download_file(_BUCKET, entry["Key"], str(target / Path(entry["Key"]).name))
    seconds = time.perf_counter() - begun
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    print(json.dumps({"seconds": seconds, "on_disk_seconds": time.perf_counter() - begun}))


def _boto3s(server: S3Server, target: Path) -> tuple[float, float]:
    """Seconds as boto3 counts them, and until the files are on the disk."""
    os.sync()  # nobody waits for what the other left to the disk
    command = [sys.executable, "-m", "benchmarks.fetch", "--boto3", server.url, str(target)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(target)
    found = json.loads(done.stdout)
    return float(found["seconds"]), float(found["on_disk_seconds"])


def _ours(server: S3Server, target: Path, digest: str) -> tuple[float, float]:
    """Seconds, and the most memory in MB."""
    os.sync()
    with start(Source(s3=server.source(f"{_BUCKET}/{_PREFIX}")), target, dict(server.root.data)) as process:
        text, _ = process.communicate()
    found = json.loads(text)
    assert found["digest"] == digest
    shutil.rmtree(target)
    return float(found["seconds"]), float(found["rss_mb"])


@dataclass
class _Counting:
    """A remote that counts what is read from it."""

    remote: Remote
    read_bytes: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.remote, name)

    def read(self, file: RemoteFile, begin: int, end: int) -> Iterator[bytes]:
        for piece in self.remote.read(file, begin, end):
            self.read_bytes += len(piece)
            yield piece


def _second_pod(server: S3Server, folder: Path, digest: str) -> int:
    """Bytes that come for a second pod which begins at the same moment as the first."""
    source = Source(s3=server.source(f"{_BUCKET}/{_PREFIX}", credentials=SecretReference(name="reader")))
    remotes: list[_Counting] = []

    def counted(source: Source, credentials: Credentials | None) -> Any:
        remotes.append(_Counting(remote_of(source, credentials)))
        return remotes[-1]

    def pod(_: int) -> int:
        obtainer = Obtainer(Store(folder / "cache"), lambda _: server.root)
        with obtainer.obtain(source, None, lambda _: None) as held:
            assert held.digest == digest
            return held.size_bytes

    with mock.patch("tuneyard.agent.obtaining.remote_of", counted), ThreadPoolExecutor(2) as pods:
        size, _ = pods.map(pod, range(2))
    return sum(r.read_bytes for r in remotes) - size


def main(arguments: list[str]) -> int:
    """Measure, print and write the figures."""
    if arguments[:1] == ["--boto3"]:
        _by_boto3(arguments[1], Path(arguments[2]))
        return 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--mb", type=int, default=2048)
    given = parser.parse_args(arguments)
    theirs: list[tuple[float, float]] = []
    ours: list[float] = []
    memory: list[float] = []
    with tempfile.TemporaryDirectory(prefix="fetch-") as name, S3Server(Path(name) / "s3") as server:
        folder = Path(name)
        digest = _upload(server, folder, given.mb << 20)
        _boto3s(server, folder / "warm")  # the server's files are in memory from here on
        for number in range(given.rounds):
            # Whoever is first in one round is second in the next.
            for who in ("boto3", "ours") if number % 2 else ("ours", "boto3"):
                if who == "boto3":
                    theirs.append(_boto3s(server, folder / "boto3"))
                else:
                    seconds, most = _ours(server, folder / "ours", digest)
                    ours.append(seconds)
                    memory.append(most)
        second = _second_pod(server, folder, digest)
    plain = [boto / own for (boto, _), own in zip(theirs, ours, strict=True)]
    on_disk = [boto / own for (_, boto), own in zip(theirs, ours, strict=True)]
    return write(
        "fetch",
        {
            "ratio_to_boto3": statistics.median(plain),
            "ratio_to_boto3_on_disk": statistics.median(on_disk),
            "agent_rss_mb": max(memory),
            "second_pod_bytes": second,
            "seconds": statistics.median(ours),
            "boto3_seconds": statistics.median(seconds for seconds, _ in theirs),
        },
        {"agent_rss_mb": "MB", "second_pod_bytes": "B", "seconds": "s", "boto3_seconds": "s"},
        targets={"ratio_to_boto3": ">= 0.9", "agent_rss_mb": "<= 200", "second_pod_bytes": "0"},
        spread={
            "ratio_to_boto3": f"{min(plain):.2f} to {max(plain):.2f} (median of {len(plain)} rounds)",
            "ratio_to_boto3_on_disk": f"{min(on_disk):.2f} to {max(on_disk):.2f}",
            "seconds": f"{min(ours):.2f} to {max(ours):.2f}",
            "boto3_seconds": f"{min(theirs)[0]:.2f} to {max(theirs)[0]:.2f}",
        },
        note=f"{given.mb} MiB in {SHARDS} objects; ours hashes and waits for the disk, boto3 hashes nothing and waits "
        "for the disk only in ratio_to_boto3_on_disk",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
