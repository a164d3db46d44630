"""Every broken adapter is refused for the reason it was broken for; the good one beside them is not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.artifact import digest
from models.bad import expected_reasons, make_bad
from models.breaking import MARKER
from models.copies import make_copies
from models.tiny import write_adapter, write_base
from tuneyard.agent.fetching import FetchError, Shelf, read_base
from tuneyard.api.documents import PlannedAdapter
from tuneyard.api.sources import Source, VolumeSource


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A volume with a base, a good adapter, all bad ones and two copies of the good one."""
    root = tmp_path_factory.mktemp("volume")
    for name in ("base", "good"):
        (root / name).mkdir()
    write_base(root / "base")
    write_adapter(root / "good", "a")
    make_bad(root / "good", root / "bad")
    make_copies(root / "good", root / "copies", 2)
    yield root
    assert not list(root.rglob(MARKER)), "somebody unpickled a malicious pickle"


@pytest.fixture
def shelf(volume: Path, tmp_path: Path) -> Shelf:
    return Shelf(volume.parent, tmp_path / "adapters", read_base(volume / "base"), max_rank=16)


def planned(volume: Path, path: str) -> PlannedAdapter:
    return PlannedAdapter(name="some", source=Source(volume=VolumeSource(name=volume.name, path=path)))


def test_the_good_adapter_is_accepted(volume: Path, shelf: Shelf) -> None:
    assert shelf.fetch(planned(volume, "good")).rank == 8


@pytest.mark.parametrize(("case", "reason"), expected_reasons().items())
def test_a_bad_adapter_is_refused_for_its_reason(volume: Path, shelf: Shelf, case: str, reason: str) -> None:
    with pytest.raises(FetchError) as refused:
        shelf.fetch(planned(volume, f"bad/{case}"))
    assert str(refused.value.reason) == reason, str(refused.value)
    assert shelf.clean() == frozenset()


def test_breaking_again_gives_the_same_bytes(volume: Path, tmp_path: Path) -> None:
    whys = make_bad(volume / "good", tmp_path / "again")
    assert set(whys) == set(expected_reasons())
    not_digestible = {"empty-dir", "escaping-symlink", "malicious-pickle", "pickle-as-safetensors"}
    for name in set(whys) - not_digestible:
        assert digest(volume / "bad" / name) == digest(tmp_path / "again" / name), name


def test_no_case_equals_another_or_the_good_one(volume: Path) -> None:
    folders = [
        volume / "good",
        *(p for p in (volume / "bad").iterdir() if p.name not in ("empty-dir", "escaping-symlink")),
    ]
    # a pickle is no part of an artifact: what differs in nothing else has one digest
    folders = [p for p in folders if p.name not in ("malicious-pickle", "pickle-only")]
    assert len({digest(folder) for folder in folders}) == len(folders)


def test_an_earlier_run_is_not_overwritten(volume: Path) -> None:
    with pytest.raises(FileExistsError):
        make_bad(volume / "good", volume / "bad")


def test_copies_are_accepted_and_have_digests_of_their_own(volume: Path, shelf: Shelf) -> None:
    paths = sorted((volume / "copies").iterdir())
    assert [path.name for path in paths] == ["good-copy-0001", "good-copy-0002"]
    digests = {shelf.fetch(planned(volume, f"copies/{path.name}")).digest for path in paths}
    assert len(digests | {digest(volume / "good")}) == 3
