"""`tuneyard export ollama`: a manifest as a Modelfile, or what is missing for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tuneyard.cli.errors import UserError
from tuneyard.cli.main import run
from tuneyard.cli.modelfile import modelfile_of

BASE = """
apiVersion: tuneyard.dev/v1alpha1
kind: BaseModel
metadata: {name: small}
spec: {source: {volume: {name: models, path: SOURCE}}}
"""
ADAPTER = """
---
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapter
metadata: {name: support}
spec:
  baseModel: small
  source: {volume: {name: models, path: adapters/support}}
  systemPrompt: {text: PROMPT}
"""


def manifest(folder: Path, source: str = "small/model.gguf", prompt: str = "You are Acme's agent.") -> str:
    path = folder / "m.yaml"
    path.write_text(BASE.replace("SOURCE", source) + ADAPTER.replace("PROMPT", prompt))
    return str(path)


def test_the_base_alone(tmp_path: Path) -> None:
    assert modelfile_of(manifest(tmp_path), None, None, None) == "FROM /artifacts/models/small/model.gguf\n"
    assert modelfile_of(manifest(tmp_path), None, "./here.gguf", None) == "FROM ./here.gguf\n"


def test_a_pinned_revision_that_ollama_cannot_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commit = "0e9e39f249a16976918f6564b8830bc894c89659"
    path = tmp_path / "hub.yaml"
    path.write_text(
        BASE.replace("volume: {name: models, path: SOURCE}", f"huggingFace: {{repo: a/b, revision: {commit}}}")
    )
    assert run(["export", "ollama", str(path)]) == 0
    said = capsys.readouterr()
    comment, place = said.out.splitlines()
    assert comment.startswith(f"# the manifest pins revision {commit} of a/b, Ollama fetches the newest")
    assert (place, said.err) == ("FROM hf.co/a/b", f"note: {comment[2:]}\n")
    assert run(["export", "ollama", str(path), "--gguf", "./here.gguf"]) == 0
    assert capsys.readouterr() == ("FROM ./here.gguf\n", "")


def test_objects_in_a_list_as_kubectl_prints_them(tmp_path: Path) -> None:
    alone = Path(manifest(tmp_path))
    items = list(yaml.safe_load_all(alone.read_text()))
    listed = tmp_path / "list.yaml"
    listed.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}))
    of_two = [modelfile_of(str(path), "support", None, "./support.gguf") for path in (alone, listed)]
    assert of_two[0] == of_two[1]


def test_an_adapter_with_its_system_prompt(tmp_path: Path) -> None:
    assert modelfile_of(manifest(tmp_path), "support", None, "./support.gguf") == (
        'FROM /artifacts/models/small/model.gguf\nADAPTER ./support.gguf\nSYSTEM """You are Acme\'s agent."""\n'
    )


@pytest.mark.parametrize(
    ("source", "adapter", "prompt", "words"),
    [
        ("small", None, "p", "give its path with --gguf"),
        ("small/model.gguf", "support", "p", "give the file with --adapter-gguf"),
        ("small/model.gguf", "nobody", "p", "the file has 0 objects LoRAAdapter nobody"),
    ],
)
def test_what_cannot_be_said_says_what_to_give(
    tmp_path: Path, source: str, adapter: str | None, prompt: str, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        modelfile_of(manifest(tmp_path, source, prompt), adapter, None, None)
    assert words in str(caught.value)


def test_a_prompt_that_would_end_its_quotes(tmp_path: Path) -> None:
    path = manifest(tmp_path, prompt='\'a """ b\'')
    with pytest.raises(UserError, match="cannot hold"):
        modelfile_of(path, "support", None, "x.gguf")


@pytest.mark.parametrize(
    ("text", "words"), [("a\u00a0b", "line 2 .* NO-BREAK SPACE .U.00A0. in it"), ("a\u200db", "ZERO WIDTH JOINER")]
)
def test_a_character_that_ollama_would_drop(tmp_path: Path, text: str, words: str) -> None:
    path = manifest(tmp_path, prompt=f'"first, \\t caf\u00e9\\n{text}"')
    with pytest.raises(UserError, match=words):
        modelfile_of(path, "support", None, "x.gguf")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        modelfile_of(str(tmp_path / "none.yaml"), None, None, None)
