"""Keeping a node's cache: what a plan names comes and stays, what fails is told and tried again."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.unit.agent.waiting import wait_until
from tests.unit.store.sources import contents, folder_digest
from tuneyard.agent import keeping, obtaining
from tuneyard.agent.keeping import Keeper
from tuneyard.agent.obtaining import Obtainer
from tuneyard.agent.settings import SettingsError, keep_settings_from
from tuneyard.api.documents import KeepReport, PlannedAdapter, PrewarmPlan
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import S3Source, SecretReference, Source
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.remote import Credentials, Remote, RemoteFile
from tuneyard.systems.artifacts.store import Store


@dataclass
class Bucket:
    """Artifacts by the last part of their source's URI; what is in `denied` is refused."""

    denied: set[str] = field(default_factory=set)
    odd: set[str] = field(default_factory=set)
    """These raise what no code foresaw."""
    reads: list[str] = field(default_factory=list)
    held_up: threading.Event | None = None
    """Reads wait for it, where there is one."""
    reading: threading.Event = field(default_factory=threading.Event)

    def remote(self, source: Source, _: Credentials | None) -> Remote:
        assert source.s3 is not None
        return Folder(self, source.s3.uri.rstrip("/").rpartition("/")[2])


@dataclass
class Folder:
    """One artifact of the bucket."""

    bucket: Bucket
    name: str
    identity: str = "the tests"
    commit: str | None = None
    what: str = "the bucket"

    def fingerprint(self) -> str:
        return self.name

    def files(self) -> list[RemoteFile]:
        if self.name in self.bucket.denied:
            raise ArtifactError(Reason.ACCESS_DENIED, "the key of Secret s3 is refused")
        if self.name in self.bucket.odd:
            raise OverflowError("odd")
        found = sorted(contents(self.name).items())
        return [RemoteFile(path, len(data), None, self.name) for path, data in found]

    def read(self, file: RemoteFile, begin: int, end: int) -> Generator[bytes, None, None]:
        self.bucket.reads.append(self.name)
        self.bucket.reading.set()
        if self.bucket.held_up is not None:
            self.bucket.held_up.wait(10.0)
        yield contents(self.name)[file.path][begin:end]

    def close(self) -> None:
        pass


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    found = Bucket()
    monkeypatch.setattr(obtaining, "remote_of", found.remote)
    monkeypatch.setattr(keeping, "FIRST_RETRY", 0.05)
    return found


def digest(name: str) -> str:
    return folder_digest(contents(name)).digest


def source(name: str) -> Source:
    return Source(s3=S3Source(uri=f"s3://models/{name}/", credentials=SecretReference(name="s3")))


def plan(*adapters: str, base: str | None = None) -> PrewarmPlan:
    planned = [PlannedAdapter(name=name, source=source(name), digest=digest(name)) for name in adapters]
    return PrewarmPlan(base_model="llama", source=source("llama"), digest=base, adapters=planned)


@dataclass
class Node:
    """A node's cache, and what the process that keeps it has told."""

    folder: Path
    told: list[KeepReport] = field(default_factory=list)
    deaf: int = 0
    """How often nobody hears it yet."""

    @property
    def mark(self) -> Path:
        return self.folder / "kept"

    def store(self, limit: int | None = None) -> Store:
        return Store(self.folder / "cache", limit)

    def in_use(self) -> set[str]:
        """Names of the artifacts that nothing evicts."""
        known = {digest(name): name for name in ("llama", "v1", "v2", "another")}
        return {known[entry.digest] for entry in self.store().entries() if entry.in_use}

    def hear(self, report: KeepReport) -> bool:
        if self.deaf:
            self.deaf -= 1
            return False
        self.told.append(report)
        return True

    @contextmanager
    def keeper(self, look_seconds: float = 600.0) -> Iterator[Keeper]:
        """One at work."""
        obtainer = Obtainer(self.store(), lambda name: Credentials(f"Secret {name}", {}))
        keeper = Keeper(obtainer, self.hear, self.mark, look_seconds)
        work = threading.Thread(target=keeper.run)
        work.start()
        try:
            yield keeper
        finally:
            keeper.stop()
            work.join(10.0)
            assert not work.is_alive()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def complete(node: Node, count: int) -> bool:
    return node.mark.exists() and bool(node.told) and node.told[-1] == KeepReport(kept=count, wanted=count)


def test_what_a_plan_names_comes_and_stays_until_the_end(bucket: Bucket, node: Node) -> None:
    node.mark.touch()
    with node.keeper() as keeper:
        assert not node.mark.exists(), "of a process before, whose locks are gone"
        keeper.follow(plan("v1"))
        wait_until(lambda: complete(node, 2))
        assert node.in_use() == {"llama", "v1"}
    assert node.in_use() == set()
    assert not node.mark.exists()
    bucket.reads.clear()
    with node.keeper() as keeper:
        keeper.follow(plan("v1"))
        wait_until(lambda: node.in_use() == {"llama", "v1"})
    assert bucket.reads == [], "it lies there already"


@pytest.mark.lasting
def test_what_fails_is_told_and_comes_without_being_asked_for_again(bucket: Bucket, node: Node) -> None:
    bucket.denied = {"v1"}
    with node.keeper() as keeper:
        keeper.follow(plan("v1", "v2"))
        failed = KeepReport(
            kept=2, wanted=3, reason="AccessDenied", message="adapter v1: the key of Secret s3 is refused"
        )
        wait_until(lambda: node.told[-1:] == [failed])
        assert node.in_use() == {"llama", "v2"}
        assert not node.mark.exists()
        bucket.denied.clear()
        wait_until(lambda: complete(node, 3))
    assert bucket.reads.count("v2") == bucket.reads.count("v1"), "nothing came twice"


def test_what_nobody_foresaw_ends_nothing(bucket: Bucket, node: Node) -> None:
    bucket.odd = {"v1"}
    with node.keeper() as keeper:
        keeper.follow(plan("v1", "v2"))
        wait_until(lambda: bool(node.told) and node.told[-1].reason == "ArtifactUnreadable")
        assert node.told[-1].message == "adapter v1: OverflowError: odd"
        assert node.in_use() == {"llama", "v2"}
        bucket.odd.clear()
        wait_until(lambda: complete(node, 3))


def test_a_base_that_is_refused_holds_no_adapter_up(bucket: Bucket, node: Node) -> None:
    bucket.denied = {"llama"}
    with node.keeper() as keeper:
        keeper.follow(plan("v1"))
        wait_until(lambda: bool(node.told) and node.told[-1].reason is not None)
        assert node.told[-1].message == "base llama: the key of Secret s3 is refused"
        assert node.in_use() == {"v1"}


def test_another_plan_lets_go_and_brings(bucket: Bucket, node: Node) -> None:
    with node.keeper() as keeper:
        keeper.follow(plan("v1"))
        wait_until(lambda: complete(node, 2))
        base_reads = bucket.reads.count("llama")
        keeper.follow(plan("v2", base=digest("llama")))
        wait_until(lambda: node.in_use() == {"llama", "v2"} and complete(node, 2))
        assert bucket.reads.count("llama") == base_reads, "its digest was pinned, its bytes are the same"
        keeper.follow(plan(base=digest("another")))
        wait_until(lambda: node.told[-1].reason == "DigestMismatch")
        assert digest("another") in str(node.told[-1].message)
        assert digest("llama") in str(node.told[-1].message)
        assert not node.mark.exists()


def test_eviction_leaves_what_is_kept(bucket: Bucket, node: Node) -> None:
    size = folder_digest(contents("llama")).size_bytes
    limit = size * 2 + size // 2

    def another() -> None:
        bring = Obtainer(node.store(limit), lambda name: Credentials(name, {}))
        bring.obtain(source("another"), None, lambda _: None).release()

    with node.keeper() as keeper:
        keeper.follow(plan("v1"))
        wait_until(lambda: complete(node, 2))
        with pytest.raises(ArtifactError) as refused:
            another()
        assert refused.value.reason is Reason.DISK_FULL
    another()
    assert digest("another") in {entry.digest for entry in node.store().entries()}


def test_what_somebody_deletes_comes_again(bucket: Bucket, node: Node) -> None:
    with node.keeper(look_seconds=0.05) as keeper:
        keeper.follow(plan("v1"))
        wait_until(lambda: complete(node, 2))
        blob = node.folder / "cache" / "blobs" / digest("v1").removeprefix("sha256:")
        before = bucket.reads.count("v1")
        blob.chmod(0o700)
        (blob / "files").chmod(0o700)
        shutil.rmtree(blob)
        wait_until(lambda: bucket.reads.count("v1") > before and complete(node, 2))
        assert node.in_use() == {"llama", "v1"}


def test_what_a_disk_returns_wrong_comes_again_when_all_is_hashed(
    bucket: Bucket, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node.keeper(look_seconds=0.05) as keeper:
        keeper.follow(plan("v1"))
        wait_until(lambda: complete(node, 2))
        path = node.folder / "cache" / "blobs" / digest("v1").removeprefix("sha256:") / "files" / "adapter_config.json"
        was, before = path.stat(), bucket.reads.count("v1")
        path.chmod(0o644)
        path.write_bytes(b"x" * was.st_size)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))
        monkeypatch.setattr(obtaining, "HASHED_WITHIN", 0.0)
        wait_until(lambda: bucket.reads.count("v1") > before and complete(node, 2))
        monkeypatch.setattr(obtaining, "HASHED_WITHIN", 86400.0)
        assert path.read_bytes() == contents("v1")["adapter_config.json"]
        assert node.in_use() == {"llama", "v1"}


def test_stopping_does_not_wait_for_a_download(bucket: Bucket, node: Node) -> None:
    bucket.held_up = threading.Event()
    with node.keeper() as keeper:
        keeper.follow(plan())
        assert bucket.reading.wait(10.0)
        keeper.stop()
        bucket.held_up.set()
    assert node.in_use() == set()
    assert node.told == []
    assert not node.mark.exists()


def test_what_nobody_could_hear_is_said_again(bucket: Bucket, node: Node) -> None:
    node.deaf = 2
    with node.keeper() as keeper:
        keeper.follow(plan())
        wait_until(lambda: complete(node, 1))
    assert node.told == [KeepReport(kept=1, wanted=1)]


def test_settings_come_from_the_environment() -> None:
    pod = {"POD_NAME": "k", "POD_NAMESPACE": "team", "POD_UID": "u", "POD_IP": "10.0.0.1"}
    given = {**pod, "TUNEYARD_PREWARM_PLAN": "llama-prewarm", "TUNEYARD_CACHE_LIMIT": "1Gi"}
    settings = keep_settings_from(given, Path("/cache"), Path("/run/kept"))
    assert (settings.plan, settings.cache_limit, settings.cache) == ("llama-prewarm", 1 << 30, Path("/cache"))
    with pytest.raises(SettingsError, match="TUNEYARD_PREWARM_PLAN"):
        keep_settings_from(pod, Path("/cache"), Path("/run/kept"))
