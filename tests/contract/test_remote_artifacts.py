"""Bases and adapters from a real S3 server to where an engine looks, by way of the cache: once for a node's pods."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from models import bad
from models.tiny import build_tiny
from tests.contract.agents import AgentRig
from tests.contract.engines import own_engine
from tests.contract.s3server import S3Server
from tuneyard.agent.basefetch import from_network, hold_base
from tuneyard.agent.fetching import FetchError, Shelf, read_base
from tuneyard.agent.obtaining import Obtainer
from tuneyard.agent.verify import BaseWanted, verify
from tuneyard.api.documents import PlannedAdapter, PodReport, Transfer
from tuneyard.api.names import engine_adapter_name
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.systems.artifacts.folder import digest_of
from tuneyard.systems.artifacts.remote import Credentials
from tuneyard.systems.artifacts.safetensors import Entry, check_finite
from tuneyard.systems.artifacts.store import Store

pytestmark = [pytest.mark.s3, pytest.mark.timeout(120)]

_numbers = iter(range(1000))


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        server.bucket("models")
        yield server


def upload(s3: S3Server, folder: Path, prefix: str = "") -> str:
    """Put a folder's files under a prefix of its own; returns it."""
    prefix = prefix or f"{folder.name}-{next(_numbers)}"
    for path in folder.rglob("*"):
        if path.is_file():
            s3.client.upload_file(str(path), "models", f"{prefix}/{path.relative_to(folder)}")
    return prefix


def source(s3: S3Server, prefix: str) -> Source:
    return Source.from_dict(
        {"s3": {**s3.source(f"models/{prefix}/").to_dict(), "credentials": {"name": "models-reader"}}}
    )


class Node:
    """A node with one cache, and pods that begin there."""

    def __init__(self, s3: S3Server, folder: Path) -> None:
        self.folder = folder
        self.secret = s3.root
        self.asked = 0

    def _credentials(self, name: str) -> Credentials:
        assert name == "models-reader"
        self.asked += 1
        return self.secret

    def obtainer(self) -> Obtainer:
        return Obtainer(Store(self.folder / "cache"), self._credentials)

    def shelf(self, pod: str) -> Shelf:
        base = read_base(build_tiny() / "base")
        return Shelf(self.folder / pod / "artifacts", self.folder / pod / "adapters", base, 16, self.obtainer())


@pytest.fixture
def node(s3: S3Server, tmp_path: Path) -> Node:
    return Node(s3, tmp_path)


def planned(origin: Source, digest: str | None = None) -> PlannedAdapter:
    return PlannedAdapter(name="support", source=origin, digest=digest)


def test_a_base_is_fetched_linked_and_reported(s3: S3Server, node: Node) -> None:
    good = build_tiny() / "base"
    origin, digest = source(s3, upload(s3, good)), digest_of(good)

    def begin(pod: str, pinned: str | None) -> dict[str, object]:
        link, log = node.folder / pod / "base" / "model", node.folder / pod / "log"
        link.parent.mkdir(parents=True)
        find = from_network(origin, node.obtainer(), lambda _: None)
        code = verify(BaseWanted("tiny", link, 2, pinned), None, log, find)
        told: dict[str, object] = json.loads(log.read_text())
        assert (code == 0) == told["ok"]
        return told

    first = begin("a", None)
    assert (first["digest"], first["sizeBytes"]) == (digest.digest, digest.size_bytes)
    assert digest_of((node.folder / "a" / "base" / "model").resolve()).digest == digest.digest
    assert begin("b", digest.digest)["ok"] is True
    assert node.asked == 1, "what is in the cache and pinned needs no credentials"
    wrong = begin("c", "sha256:" + "0" * 64)
    assert wrong["reason"] == Reason.DIGEST_MISMATCH
    assert digest.digest in str(wrong["message"])


def test_a_pod_keeps_its_base_in_the_cache(s3: S3Server, node: Node) -> None:
    origin = source(s3, upload(s3, build_tiny() / "base"))
    link = node.folder / "model"
    from_network(origin, node.obtainer(), lambda _: None)(BaseWanted("tiny", link, 1, None))
    held = hold_base(node.obtainer(), origin, link)
    assert held is not None
    assert [entry.in_use for entry in Store(node.folder / "cache").entries()] == [True]
    held.release()


def test_a_base_that_went_before_the_agent_held_it_comes_again(s3: S3Server, node: Node) -> None:
    """Its init container, which fetched it, does not run again: without it the pod would never serve again."""
    origin = source(s3, upload(s3, build_tiny() / "base"))
    link = node.folder / "model"
    from_network(origin, node.obtainer(), lambda _: None)(BaseWanted("tiny", link, 1, None))
    shutil.rmtree(link.resolve().parent)
    assert hold_base(node.obtainer(), None, link) is None
    s3.stop()
    try:
        assert hold_base(node.obtainer(), origin, link) is None, "the next agent tries again"
    finally:
        s3.start()
    held = hold_base(node.obtainer(), origin, link)
    assert held is not None
    assert held.digest == digest_of(link.resolve()).digest == digest_of(build_tiny() / "base").digest
    held.release()


def test_an_adapter_comes_once_for_all_pods_of_a_node(s3: S3Server, node: Node) -> None:
    good = build_tiny() / "adapter-a"
    origin, digest = source(s3, upload(s3, good)), digest_of(good).digest
    first = node.shelf("a")
    prepared = first.fetch(planned(origin))
    assert prepared.digest == digest
    assert sorted(p.name for p in Path(first.path(engine_adapter_name("support", digest))).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    s3.stop()
    try:
        assert node.shelf("b").fetch(planned(origin, digest)) == prepared
    finally:
        s3.start()


def test_values_are_looked_at_once_per_node(s3: S3Server, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[Path] = []

    def scan(folder: Path, path: str, entries: Sequence[Entry], factors: Mapping[str, float]) -> None:
        scans.append(folder)
        check_finite(folder, path, entries, factors)

    monkeypatch.setattr("tuneyard.agent.fetching.check_finite", scan)
    origin = source(s3, upload(s3, build_tiny() / "adapter-a"))
    for pod in ("a", "b", "c"):
        node.shelf(pod).fetch(planned(origin))
    assert len(scans) == 1


@pytest.mark.parametrize("case", ["nan", "alpha-zero", "truncated", "pickle-only", "rank-over-maximum"])
def test_what_is_broken_is_refused_from_there_too(s3: S3Server, node: Node, tmp_path: Path, case: str) -> None:
    bad.make_bad(build_tiny() / "adapter-a", tmp_path / "bad")
    origin = source(s3, upload(s3, tmp_path / "bad" / case))
    for pod in ("a", "b"):
        with pytest.raises(FetchError) as caught:
            node.shelf(pod).fetch(planned(origin))
        assert caught.value.reason.value == bad.expected_reasons()[case], str(caught.value)
        assert not list((node.folder / pod / "adapters").glob("*"))


def test_other_bytes_under_a_prefix_are_other_bytes(s3: S3Server, node: Node) -> None:
    prefix = upload(s3, build_tiny() / "adapter-a")
    origin = source(s3, prefix)
    before = node.shelf("a").fetch(planned(origin))
    upload(s3, build_tiny() / "adapter-b", prefix)
    after = node.shelf("b").fetch(planned(origin))
    assert after.digest == digest_of(build_tiny() / "adapter-b").digest != before.digest
    # what was pinned before is still served from the cache, and from nowhere else
    assert node.shelf("c").fetch(planned(origin, before.digest)).digest == before.digest
    elsewhere = Node(s3, node.folder / "elsewhere")
    with pytest.raises(FetchError) as caught:
        elsewhere.shelf("a").fetch(planned(origin, before.digest))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert before.digest in str(caught.value)
    assert after.digest in str(caught.value)


def test_a_renewed_key_works_at_the_next_try(s3: S3Server, node: Node) -> None:
    origin = source(s3, upload(s3, build_tiny() / "adapter-a"))
    right, shelf = node.secret, node.shelf("a")
    node.secret = Credentials.of_secret(
        "models-reader", {"AWS_ACCESS_KEY_ID": b"EXPIRED", "AWS_SECRET_ACCESS_KEY": b"wrong-secret"}
    )
    with pytest.raises(FetchError) as caught:
        shelf.fetch(planned(origin))
    assert caught.value.reason is Reason.ACCESS_DENIED
    assert "models-reader" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
    node.secret = right
    assert shelf.fetch(planned(origin)).rank == 8


def reasons(report: PodReport) -> dict[str, str | None]:
    return {name: said.reason for name, said in report.adapters.items() if said.state == "Failed"}


async def test_an_agent_loads_it_into_its_engine(s3: S3Server, node: Node, tmp_path: Path) -> None:
    origin = source(s3, upload(s3, build_tiny() / "adapter-a"))
    engine = own_engine("fake")
    engine.start()
    try:
        async with AgentRig(engine, tmp_path / "pod", obtainer=node.obtainer()) as rig:
            rig.plan(planned(origin))
            loaded = await rig.until_loaded("support")
            assert loaded["support"].digest == digest_of(build_tiny() / "adapter-a").digest
            assert loaded["support"].transfer is None
            rig.plan(planned(origin), PlannedAdapter(name="gone", source=source(s3, "nothing-here")))
            report = await rig.until(lambda r: reasons(r).get("gone") == Reason.ARTIFACT_NOT_FOUND, "it is told")
            assert report.adapters["support"].state == "Loaded"
    finally:
        engine.kill()


def test_how_far_it_is_is_told(s3: S3Server, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneyard.agent.obtaining._TOLD_SECONDS", 0.001)
    large = tmp_path / "large"
    large.mkdir()
    (large / "model.safetensors").write_bytes(bytes(64 << 20))
    told: list[Transfer] = []
    node.obtainer().obtain(source(s3, upload(s3, large)), None, told.append).release()
    assert told
    assert {t.total_bytes for t in told} == {64 << 20}
    assert [t.done_bytes for t in told] == sorted(t.done_bytes for t in told)
