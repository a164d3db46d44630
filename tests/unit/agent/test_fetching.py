"""From a plan's entry to files an engine may read: every way to be broken is refused for the right reason."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from models import bad
from models.breaking import MARKER
from models.tiny import build_tiny
from tuneyard.agent import fetching
from tuneyard.agent.fetching import FetchError, Shelf, read_base
from tuneyard.agent.obtaining import Obtainer
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.names import engine_adapter_name
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source, VolumeSource
from tuneyard.systems.artifacts.download import FetchStopped
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.safetensors import Entry, read_header
from tuneyard.systems.artifacts.store import Store

REASONS = bad.expected_reasons()


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """/artifacts of a pod, with one volume: a good adapter and every broken one."""
    root = tmp_path_factory.mktemp("artifacts")
    shutil.copytree(build_tiny() / "adapter-a", root / "models" / "good")
    bad.make_bad(build_tiny() / "adapter-a", root / "models" / "bad")
    return root


@pytest.fixture
def shelf(volumes: Path, tmp_path: Path) -> Shelf:
    return Shelf(volumes, tmp_path / "adapters", read_base(build_tiny() / "base"), max_rank=16)


def planned(path: str, digest: str | None = None, name: str = "a.b") -> PlannedAdapter:
    return PlannedAdapter(name=name, source=Source(volume=VolumeSource(name="models", path=path)), digest=digest)


def test_a_good_adapter_lies_ready_under_its_engine_name(shelf: Shelf, volumes: Path) -> None:
    digest = digest_of(volumes / "models" / "good").digest
    prepared = shelf.fetch(planned("good"))
    assert prepared.digest == digest
    assert prepared.engine_name == engine_adapter_name("a.b", digest)
    assert prepared.rank == 8
    assert "v_proj" in prepared.target_modules
    files = sorted(p.name for p in (shelf.adapters / prepared.engine_name).iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    assert shelf.fetch(planned("good", digest)) == prepared, "again is no other thing"
    assert shelf.clean() == {prepared.engine_name}
    shelf.remove(prepared.engine_name)
    shelf.remove(prepared.engine_name)
    assert list(shelf.adapters.iterdir()) == []


@pytest.mark.parametrize("case", REASONS)
def test_what_is_broken_never_lies_where_an_engine_looks(shelf: Shelf, case: str) -> None:
    with pytest.raises(FetchError) as caught:
        shelf.fetch(planned(f"bad/{case}"))
    assert caught.value.reason.value == REASONS[case], str(caught.value)
    assert len(str(caught.value)) > 40
    assert not shelf.adapters.exists() or list(shelf.adapters.iterdir()) == []


def test_of_a_base_in_a_format_of_its_engine_s_own_nothing_is_compared(
    shelf: Shelf, volumes: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "rank0.engine").write_bytes(b"weights")
    with pytest.raises(ArtifactError):
        read_base(own)
    facts = read_base(own, custom=True)
    assert not facts.known
    prepared = replace(shelf, base=facts).fetch(planned("good"))
    assert prepared.digest == digest_of(volumes / "models" / "good").digest
    assert read_base(build_tiny() / "base", custom=True) == read_base(build_tiny() / "base")


def test_no_pickle_is_ever_run(shelf: Shelf, volumes: Path) -> None:
    with pytest.raises(FetchError):
        shelf.fetch(planned("bad/malicious-pickle"))
    assert not (volumes / "models" / "bad" / "malicious-pickle" / MARKER).exists()


def test_pickles_beside_good_weights_are_left_behind(shelf: Shelf, volumes: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(volumes / "models" / "good", root / "models" / "good")
    (root / "models" / "good" / "optimizer.pt").write_bytes(b"anything")
    other = Shelf(root, tmp_path / "elsewhere", shelf.base, 16)
    prepared = other.fetch(planned("good"))
    assert not (other.adapters / prepared.engine_name / "optimizer.pt").exists()
    assert prepared.digest == digest_of(root / "models" / "good").digest


def test_other_bytes_than_the_pinned_ones_are_refused(shelf: Shelf, volumes: Path) -> None:
    pinned = "sha256:" + "0" * 64
    with pytest.raises(FetchError) as caught:
        shelf.fetch(planned("good", pinned))
    assert caught.value.reason == Reason.DIGEST_MISMATCH
    assert caught.value.digest == digest_of(volumes / "models" / "good").digest
    assert pinned in str(caught.value)
    assert str(caught.value.digest) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../../etc", Reason.UNSAFE_PATH),
        ("nowhere", Reason.ARTIFACT_NOT_FOUND),
        ("good/adapter_config.json", Reason.ARTIFACT_NOT_FOUND),
        (".", Reason.FILES_MISSING),
    ],
)
def test_wrong_paths(shelf: Shelf, path: str, reason: Reason) -> None:
    with pytest.raises(FetchError) as caught:
        shelf.fetch(planned(path))
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["../x", ".x", "", "a/b"])
def test_names_that_are_paths_are_refused(shelf: Shelf, name: str) -> None:
    with pytest.raises(FetchError):
        shelf.fetch(planned("good", name=name))


def test_a_source_of_another_kind_is_told(shelf: Shelf) -> None:
    with pytest.raises(FetchError) as caught:
        shelf.fetch(PlannedAdapter(name="a", source=Source()))
    assert caught.value.reason == Reason.INVALID_SPEC


def test_what_an_interrupted_fetch_left_is_swept(shelf: Shelf) -> None:
    (shelf.adapters / ".a.new").mkdir(parents=True)
    (shelf.adapters / "a-123").mkdir()
    assert shelf.clean() == {"a-123"}
    assert [p.name for p in shelf.adapters.iterdir()] == ["a-123"]


def test_a_new_pod_believes_nothing_that_an_earlier_one_has_left(shelf: Shelf) -> None:
    prepared = shelf.fetch(planned("good"))
    left = shelf.adapters / prepared.engine_name / "adapter_model.safetensors"
    good = left.read_bytes()
    left.write_bytes(b"changed since")
    shelf.empty()
    assert shelf.clean() == frozenset()
    assert shelf.fetch(planned("good")) == prepared
    assert left.read_bytes() == good


def test_the_pool_s_rank_is_the_limit(shelf: Shelf) -> None:
    small = Shelf(shelf.volumes, shelf.adapters, shelf.base, max_rank=1)
    with pytest.raises(FetchError) as caught:
        small.fetch(planned("good"))
    assert caught.value.reason == Reason.RANK_TOO_HIGH


def test_one_adapter_s_header_is_read_at_a_time(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    alone: list[bool] = []
    meeting = threading.Barrier(2)

    def counted(folder: Path, path: str) -> list[Entry]:
        try:
            meeting.wait(0.05)
        except threading.BrokenBarrierError:
            alone.append(True)
        return read_header(folder, path)

    monkeypatch.setattr(fetching, "read_header", counted)
    with ThreadPoolExecutor(2) as agents:
        list(agents.map(lambda n: shelf.fetch(planned("good", name=f"a{n}")), range(2)))
    assert alone == [True] * 4, "nobody else came while one was reading"


def test_half_characters_in_a_config_reach_no_status(shelf: Shelf, volumes: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(volumes / "models" / "good", root / "models" / "good")
    config = root / "models" / "good" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "target_modules": "q_proj|\ud800"}))
    with pytest.raises(FetchError) as caught:
        Shelf(root, tmp_path / "elsewhere", shelf.base, 16).fetch(planned("good"))
    assert caught.value.reason == Reason.INVALID_CONFIG
    str(caught.value).encode()


def test_another_base_s_name_is_a_warning(shelf: Shelf, volumes: Path, tmp_path: Path) -> None:
    root = tmp_path / "artifacts"
    shutil.copytree(volumes / "models" / "good", root / "models" / "good")
    config = root / "models" / "good" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "acme/tiny"}))

    def warned(repo: str | None) -> Reason | None:
        where = tmp_path / str(repo).replace("/", "-")
        return Shelf(root, where, shelf.base, 16, base_repo=repo).fetch(planned("good")).warning

    assert warned("acme/tiny") is None
    assert warned("acme/tiny-instruct") is Reason.NAMES_ANOTHER_BASE
    assert warned(None) is None, "a base on a volume has no name to compare"


def test_a_folder_without_end_holds_nobody_up(shelf: Shelf, volumes: Path, tmp_path: Path) -> None:
    """It would keep one of the few that look at volumes, and the end of the agent, for days."""
    root = tmp_path / "artifacts"
    shutil.copytree(volumes / "models" / "good", root / "models" / "good")
    with (root / "models" / "good" / "optimizer.safetensors").open("wb") as sparse:
        sparse.truncate(1 << 43)
    with pytest.raises(FetchError, match="name the adapter's own folder") as caught:
        Shelf(root, tmp_path / "adapters", shelf.base, 16).fetch(planned("good"))
    assert caught.value.reason is Reason.ARTIFACT_UNREADABLE


def test_an_agent_that_ends_copies_nothing_any_more(shelf: Shelf, tmp_path: Path) -> None:
    obtainer = Obtainer(Store(tmp_path / "cache"), lambda _: pytest.fail("a volume has no credentials"))
    obtainer.stopped.set()
    with pytest.raises(FetchStopped):
        Shelf(shelf.volumes, shelf.adapters, shelf.base, 16, obtainer).fetch(planned("good"))
    assert list(shelf.adapters.iterdir()) == []
