"""S3 transfers that break: objects that change, networks and processes that die, disks that fill; what is kept."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.cutting import CuttingProxy
from tests.contract.disks import small_disk
from tests.contract.fetching import start
from tests.contract.s3objects import FILES, WEIGHTS, digest, quick_and_alone, remote, serving_models
from tests.contract.s3server import S3Server
from tests.fakes.hub import Hub, Repository
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource, S3Source, Source
from tuneyard.systems.artifacts import download, floor
from tuneyard.systems.artifacts.download import fetch
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import UnreachableError, listing_key


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serving_models() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with quick_and_alone(monkeypatch, tmp_path):
        yield


class Meddling(Progress):
    """Does something once, when the first bytes have come."""

    def __init__(self, act: object) -> None:
        super().__init__()
        self.act = act
        self.turn = threading.Lock()

    def came(self, count: int) -> None:
        super().came(count)
        if self.turn.acquire(blocking=False):
            self.act()  # type: ignore[operator]


def test_an_object_that_changes_meanwhile_is_refused(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    server.client.put_object(Bucket="changing", Key="v1/w.safetensors", Body=WEIGHTS)
    newer = WEIGHTS[::-1]
    meddling = Meddling(lambda: server.client.put_object(Bucket="changing", Key="v1/w.safetensors", Body=newer))
    with pytest.raises(ArtifactError, match=r"w\.safetensors has changed since it was listed"):
        fetch(remote(server.source("changing/v1"), server.root), tmp_path / "out", progress=meddling, workers=2)
    progress = Progress()
    found = fetch(remote(server.source("changing/v1"), server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest({"w.safetensors": newer})
    assert progress.fetched == len(newer)  # nothing of the older one was used


def test_a_network_that_breaks_in_the_middle_of_files(server: S3Server, tmp_path: Path) -> None:
    proxy = CuttingProxy(server.port, [0, 1 << 20, 3 << 20, 70_000, 2 << 20, 5 << 20, 100_000])
    source = S3Source(uri="s3://models/acme/v1", endpoint=proxy.url, region="us-east-1")
    progress = Progress()
    found = fetch(remote(source, server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest(FILES)
    assert proxy.cuts == []
    assert progress.fetched == found.size_bytes
    proxy.close()


def test_a_server_that_trickles_is_given_up_in_words_and_gone_on_from(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "WINDOW_SECONDS", 4.0)
    server.bucket("slow", {"model.safetensors": WEIGHTS[: 5 << 20]})
    proxy = CuttingProxy(server.port, [], pause=0.1)
    source = S3Source(uri="s3://slow/", endpoint=proxy.url, region="us-east-1")
    first = Progress()
    with pytest.raises(UnreachableError, match=r"s3://slow/ delivers \d+\.\d KiB/s .* at least 64 KiB/s"):
        fetch(remote(source, server.root), tmp_path / "out", progress=first)
    assert first.fetched > 32_000, "pieces of what comes slowly are small"
    proxy.pause = 0.0
    then = Progress()
    found = fetch(remote(source, server.root), tmp_path / "out", progress=then)
    assert then.fetched == found.size_bytes - first.fetched
    proxy.close()


def test_a_server_that_dies_for_good_is_named_and_what_came_is_kept(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    meddling = Meddling(server.stop)
    with pytest.raises(ArtifactError, match=f"{server.url} cannot be read") as caught:
        fetch(remote(server.source("models/acme/v1"), server.root), tmp_path / "out", progress=meddling)
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE
    kept = sum(p.stat().st_size for p in (tmp_path / ".out.fetching").iterdir() if p.is_file())
    server.start()
    progress = Progress()
    found = fetch(remote(server.source("models/acme/v1"), server.root), tmp_path / "out", progress=progress)
    assert found.digest == digest(FILES)
    assert progress.fetched == found.size_bytes - kept


def parts_of(scratch: Path) -> int:
    try:
        return sum(p.stat().st_size for p in scratch.iterdir() if p.is_file())
    except FileNotFoundError:
        return 0


def test_kill_9_of_a_300_mb_download_at_many_points(server: S3Server, tmp_path: Path) -> None:
    big = {"w.safetensors": WEIGHTS * 12 + WEIGHTS[: 12 << 20]}
    server.client.put_object(Bucket="models", Key="big/w.safetensors", Body=big["w.safetensors"])
    size = len(big["w.safetensors"])
    source = Source(s3=server.source("models/big"))
    target, scratch = tmp_path / "out", tmp_path / ".out.fetching"
    kept = 0
    for share in (0.0, 0.02, 0.2, 0.4, 0.55, 0.8, 0.95):
        with start(source, target, dict(server.root.data)) as process:
            until = time.monotonic() + 60
            while parts_of(scratch) <= max(kept, share * size) and process.poll() is None:
                assert time.monotonic() < until
                time.sleep(0.002)  # between two looks at another process's files; it is killed at a byte, not at a time
            process.send_signal(signal.SIGKILL)
        assert parts_of(scratch) >= kept  # a process that goes on loses nothing
        kept = parts_of(scratch)
    assert not target.exists()
    with start(source, target, dict(server.root.data)) as process:
        out, _ = process.communicate(timeout=120)
    result = json.loads(out)
    assert result["digest"] == digest(big)
    assert result["fetched"] == size - kept
    assert digest_of(target).digest == digest(big)
    assert not scratch.exists()


def test_kill_9_fetches_at_most_one_window_twice(tmp_path: Path) -> None:
    chunk = 256 << 10
    files = {"w.safetensors": WEIGHTS, **{f"{n}.json": b"%d" % n * 1000 for n in range(30)}}
    with Hub({"acme/x": Repository(files)}) as hub:
        source = Source(hugging_face=HuggingFaceSource(repo="acme/x", revision="main", endpoint=hub.url))
        target, kills = tmp_path / "out", 0
        for goal in range(0, 40 << 20, 3 << 20):
            with start(source, target, chunk=chunk) as process:
                while hub.sent <= goal and process.poll() is None:
                    time.sleep(0.001)  # between two looks at what it has fetched; it is killed at a byte, not at a time
                process.send_signal(signal.SIGKILL)
            kills += process.returncode == -signal.SIGKILL
            if target.exists():
                break
        if not target.exists():
            with start(source, target, chunk=chunk) as process:
                assert process.wait(60) == 0
        assert digest_of(target).digest == digest(files)
        assert kills > 5
        assert hub.sent <= sum(map(len, files.values())) + kills * download.WINDOW * chunk


@pytest.mark.parametrize("kept", [None, b"another folder's"], ids=["alone", "with a stranger"])
def test_a_process_that_died_while_names_were_given(server: S3Server, tmp_path: Path, kept: bytes | None) -> None:
    """The last step moves files one by one; one that died there left some under their names."""
    asked = remote(server.source("models/acme/v1"), server.root)
    files = asked.files()
    tree = tmp_path / ".out.fetching" / f"tree-{listing_key(asked, files)}"
    tree.mkdir(parents=True)
    (tree / "config.json").write_bytes(FILES["config.json"])
    if kept is not None:
        (tree / "stranger").write_bytes(kept)
    for file in files:
        if file.path != "config.json":
            (tree.parent / download._name(asked, file)).write_bytes(FILES[file.path])
    progress = Progress()
    found = fetch(asked, tmp_path / "out", progress=progress)
    assert progress.fetched == 0
    assert digest_of(tmp_path / "out") == found
    assert found.digest == digest(FILES)


def test_a_disk_without_room_is_refused_before_anything_comes(server: S3Server, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=8m") as disk:
        progress = Progress()
        with pytest.raises(ArtifactError, match=r"\d+ bytes are needed, 8388608 are free") as caught:
            fetch(remote(server.source("models/acme/v1"), server.root), disk / "out", progress=progress)
        assert caught.value.reason is Reason.DISK_FULL
        assert progress.fetched == 0


def test_a_disk_that_others_fill_meanwhile(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "CHUNK", 1 << 20)
    with small_disk(tmp_path / "disk", "size=30m") as disk:
        meddling = Meddling(lambda: (disk / "other").write_bytes(bytes(20 << 20)))
        with pytest.raises(ArtifactError, match=r"\d+ bytes are needed, \d+ are free") as caught:
            fetch(remote(server.source("models/acme/v1"), server.root), disk / "out", progress=meddling)
        assert caught.value.reason is Reason.DISK_FULL
        (disk / "other").unlink()
        progress = Progress()
        found = fetch(remote(server.source("models/acme/v1"), server.root), disk / "out", progress=progress)
        assert found.digest == digest(FILES)
        assert progress.fetched < found.size_bytes
