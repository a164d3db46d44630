"""`python -m models ...`: scripts read the last line of stdout as the folder made."""

from pathlib import Path

import pytest

from models.__main__ import main
from models.bad import expected_reasons
from models.tiny import ADAPTERS


def test_tiny_ends_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNEYARD_CACHE", str(tmp_path))
    assert main(["tiny"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert {entry.name for entry in folder.iterdir()} == {"base", *ADAPTERS}


@pytest.mark.parametrize(
    ("arguments", "made"),
    [
        (["bad"], set(expected_reasons())),
        (["copies", "3"], {f"acme-support-v1-copy-000{n}" for n in (1, 2, 3)}),
    ],
)
def test_folders_are_made_from_the_demos_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], made: set[str]
) -> None:
    out = tmp_path / "out"
    assert main([arguments[0], str(out), *arguments[1:]]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    assert {entry.name for entry in out.iterdir()} == made
