"""`tuneyard import dir` of a folder that no trainer writes: read as far as it goes, or one line says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.cli.main import run

ADAPTER = Path(__file__).resolve().parents[3] / "examples" / "adapters" / "acme-support-v3"
ARGUMENTS = ["--name", "acme-v3", "--base-model", "llama", "--source", "volume:models/acme"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))


def imported(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    assert run(["import", "dir", str(folder), *ARGUMENTS]) == 0
    text, said = capsys.readouterr()
    document = yaml.safe_load(text)
    LoRAAdapterResource.from_dict(document)
    lineage: dict[str, Any] = document["spec"]["lineage"]
    return lineage, said


@pytest.mark.parametrize(
    "log",
    ["none kept", {"eval_loss": 1}, 7, ["step 1", None, [1]], [["eval_loss", 1]]],
)
def test_a_log_that_is_no_list_of_objects_is_noted(log: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"max_steps": 10, "log_history": log}))
    lineage, said = imported(folder, capsys)
    assert lineage["hyperparameters"]["max_steps"] == "10"
    assert "evals" not in lineage
    assert said == "note: log_history of the trainer's state is no list of objects, and is left out\n"


def test_of_a_log_the_entries_that_are_objects_count(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = [{"eval_loss": 0.9}, "restarted", {"eval_loss": 0.8}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    lineage, said = imported(folder, capsys)
    assert lineage["evals"] == [{"name": "eval_loss", "score": 0.8}]
    assert "log_history" in said


def test_half_a_character_is_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON can say one half of a surrogate pair; nothing that is encoded as UTF-8 can."""
    (folder / "training_args.json").write_text('{"note\\ud800": "a\\udc00b"}')
    lineage, _ = imported(folder, capsys)
    assert lineage["hyperparameters"]["note?"] == "a?b"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("training_args.json", "[" * 100_000, "training_args.json cannot be read: it is nested too deeply"),
        ("training_args.json", "[1]", "training_args.json holds no JSON object"),
        ("trainer_state.json", b"\xff", "trainer_state.json cannot be read"),
        ("training_args.json", f'{{"n": {"9" * 5000}}}', "training_args.json cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    name: str, content: str | bytes, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    assert run(["import", "dir", str(folder), *ARGUMENTS]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.lasting
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("training_args.json", '{"note": ' + "[" * 600 + "]" * 600 + "}"),
        ("README.md", "---\nbase_model: " + "[" * 5000 + "]" * 5000 + "\n---\n"),
    ],
)
def test_what_is_nested_too_deeply_for_a_record_is_one_line(
    name: str, content: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON may be read where what it holds is too deep to be looked through; YAML is read by functions of its own."""
    (folder / name).write_text(content)
    assert run(["import", "dir", str(folder), *ARGUMENTS]) == 1
    assert capsys.readouterr() == ("", "tuneyard: what was recorded is nested too deeply to be read\n")


def test_a_file_is_no_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "dir", str(folder / "adapter_config.json"), *ARGUMENTS]) == 1
    assert "adapter_config.json/adapter_config.json cannot be read" in capsys.readouterr().err
