"""`tuneyard pin`: what it writes, what it leaves, what it refuses; sources are asked through a function."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path

import pytest
import yaml

from tests.fakes.hub import Hub, Repository
from tuneyard.api.sources import HuggingFaceSource, Source
from tuneyard.cli import pin as command
from tuneyard.cli.errors import UserError
from tuneyard.cli.pin import pin

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
DIGEST = f"sha256:{'ab' * 32}"
MANIFEST = """\
# What we serve
apiVersion: tuneyard.dev/v1alpha1
kind: BaseModel
metadata: {name: llama}   # short
spec:
  source:
    huggingFace:
      repo: meta-llama/Llama-3.1-8B-Instruct
      revision: main  # moves!

  serving: {engine: vllm}
---
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapter
metadata:
  name: acme
spec: {baseModel: llama, source: {s3: {uri: "s3://models/acme/"}}, lineage: {version: v3}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: other}
data: {a: |
  text }
---
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapter
metadata: {name: on-disk}
spec:
  source: {volume: {name: models, path: acme}}
"""
PINNED = MANIFEST.replace("revision: main  # moves!\n", f"revision: {COMMIT}  # moves!\n  digest: {DIGEST}\n").replace(
    'acme/"}}, lineage', f'acme/"}}}}, digest: {DIGEST}, lineage'
)
MANIFEST = MANIFEST.replace("data: {a: |\n  text }\n", "data: {a: text}\n")
PINNED = PINNED.replace("data: {a: |\n  text }\n", "data: {a: text}\n")


def resolve(source: Source, what: str) -> tuple[str | None, str]:
    return (COMMIT if source.hugging_face else None), DIGEST


def test_a_manifest_is_pinned_and_nothing_else_changes() -> None:
    told: list[str] = []
    assert pin(MANIFEST, resolve, told.append) == PINNED
    assert told == [
        f"BaseModel llama is pinned to {COMMIT[:12]}, {DIGEST}",
        f"LoRAAdapter acme is pinned to {DIGEST}",
        "LoRAAdapter on-disk is on a volume and skipped: write spec.digest yourself, `tuneyard digest DIR` of its "
        "folder prints it",
    ]


def test_what_is_pinned_is_not_asked_again() -> None:
    def nobody(source: Source, what: str) -> tuple[str | None, str]:
        raise AssertionError(what)

    whole = PINNED.replace("path: acme}}", f"path: acme}}}}\n  digest: {DIGEST}")
    told: list[str] = []
    assert pin(whole, nobody, told.append) == whole
    assert pin(whole, nobody, told.append, check=True) == whole
    assert told == []
    assert pin(PINNED, nobody, told.append, check=True) is None
    assert pin(MANIFEST, nobody, told.append, check=True) is None
    assert told == [
        "LoRAAdapter on-disk is not pinned: write spec.digest, `tuneyard digest DIR` of its folder prints it",
        "BaseModel llama is not pinned: run `tuneyard pin`",
        "LoRAAdapter acme is not pinned: run `tuneyard pin`",
        "LoRAAdapter on-disk is not pinned: write spec.digest, `tuneyard digest DIR` of its folder prints it",
    ]


def base(source: str, more: str = "") -> str:
    return (
        f"apiVersion: tuneyard.dev/v1alpha1\nkind: BaseModel\nmetadata: {{name: b}}\nspec: {{source: {source}{more}}}\n"
    )


@pytest.mark.parametrize(
    ("source", "more", "skipped", "unpinned"),
    [
        (
            "{image: {reference: registry.example/llama:latest}}",
            "",
            "comes as an image and is skipped: write registry.example/llama@sha256:… yourself, with the image's digest",
            "is not pinned: a tag names its image, and tags move: write registry.example/llama@sha256:…, or "
            "spec.digest",
        ),
        (
            "{image: {reference: 'registry.example:5000/llama'}}",
            "",
            "write registry.example:5000/llama@sha256:… ",
            "a tag",
        ),
        (f"{{image: {{reference: 'registry.example/llama@{DIGEST}'}}}}", "", None, None),
        ("{image: {reference: registry.example/llama:latest}}", f", digest: '{DIGEST}'", None, None),
        (
            "{carrierPigeon: {ring: 7}}",
            "",
            "has a source of a kind that this version does not know, and is skipped: write spec.digest yourself",
            "is not pinned: write spec.digest",
        ),
        ("{carrierPigeon: {ring: 7}}", f", digest: '{DIGEST}'", None, None),
    ],
)
def test_what_nobody_can_ask_for_its_digest(source: str, more: str, skipped: str | None, unpinned: str | None) -> None:
    told: list[str] = []
    text = base(source, more)
    assert pin(text, resolve, told.append) == text
    assert pin(text, resolve, told.append, check=True) == (None if unpinned else text)
    assert len(told) == (2 if unpinned else 0)
    for said, words in zip(told, (skipped, unpinned), strict=False):
        assert said.startswith("BaseModel b ")
        assert words is not None
        assert words in said


LIST = """\
apiVersion: v1
kind: List
items:
- apiVersion: tuneyard.dev/v1alpha1
  kind: BaseModel
  metadata: {name: llama}
  spec:
    source:
      huggingFace: {repo: a/b, revision: main}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: other}}
- apiVersion: v1
  kind: List
  items:
  - apiVersion: tuneyard.dev/v1alpha1
    kind: LoRAAdapter
    metadata: {name: deep}
    spec: {baseModel: llama, source: {s3: {uri: "s3://models/deep/"}}}
---
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapterList
items:
- metadata: {name: plain}
  spec: {baseModel: llama, source: {s3: {uri: "s3://models/plain/"}}}
"""


def test_lists_are_looked_into() -> None:
    told: list[str] = []
    assert pin(LIST, resolve, told.append, check=True) is None
    assert [t.split(" is ")[0] for t in told] == ["BaseModel llama", "LoRAAdapter deep", "LoRAAdapter plain"]
    changed = pin(LIST, resolve, told.append)
    assert changed == LIST.replace("revision: main}\n", f"revision: {COMMIT}}}\n    digest: {DIGEST}\n").replace(
        '/"}}}', f'/"}}}}, digest: {DIGEST}}}'
    )
    assert pin(changed, resolve, told.append, check=True) == changed


def test_one_object_twice_in_a_list_is_written_once() -> None:
    text = (
        "apiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: tuneyard.dev/v1alpha1\n  kind: LoRAAdapter\n"
        "  metadata: {name: a}\n  spec: {source: {s3: {uri: 's3://models/a/'}}}\n- *a\n"
    )
    changed = pin(text, resolve, lambda _: None)
    assert changed == text.replace("'}}}", f"'}}}}, digest: {DIGEST}}}")


@pytest.mark.parametrize("level", ["spec", "document"])
def test_a_source_that_is_merged_in_is_seen_and_not_written_to(level: str) -> None:
    merged = "spec: &s {source: {s3: {uri: 's3://models/a/'}}}"
    spec = "spec: {<<: *s}" if level == "spec" else "<<: {spec: *s}"
    text = (
        f"apiVersion: v1\nkind: List\nitems:\n- {{apiVersion: v1, kind: Other, {merged}}}\n"
        f"- {{apiVersion: tuneyard.dev/v1alpha1, kind: LoRAAdapter, metadata: {{name: a}}, {spec}}}\n"
    )
    assert pin(text, resolve, lambda _: None, check=True) is None
    with pytest.raises(UserError, match="do not fit into this layout"):
        pin(text, resolve, lambda _: None)


def test_another_digest_is_refused_with_both() -> None:
    other = f"sha256:{'cd' * 32}"
    text = PINNED.replace(DIGEST, other, 1).replace(COMMIT, "main")
    with pytest.raises(UserError, match=f"BaseModel llama has digest {other}, its source has {DIGEST}"):
        pin(text, resolve, lambda _: None)


def test_a_commit_that_looks_like_a_number_stays_a_text() -> None:
    number = "1" * 38 + "e5"
    changed = pin(MANIFEST, lambda source, what: (number, DIGEST), lambda _: None)
    assert changed is not None
    assert f'revision: "{number}"  # moves!' in changed


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_line_ends_and_a_missing_last_one_stay(end: str) -> None:
    text = MANIFEST.split("---")[0].replace("\n", end).rstrip()
    changed = pin(text, resolve, lambda _: None)
    assert changed == PINNED.split("---")[0].replace("\n", end).rstrip()
    short = text[: text.index(f"{end}{end}")]
    assert pin(short, resolve, lambda _: None) == changed[: changed.index(f"{end}{end}")]


def test_an_anchor_stays_and_an_alias_is_refused() -> None:
    text = MANIFEST.replace("revision: main", "revision: &r main")
    changed = pin(text, resolve, lambda _: None)
    assert changed is not None
    assert f"revision: &r {COMMIT}  # moves!" in changed
    with pytest.raises(UserError, match="do not fit into this layout"):
        pin(text.replace("serving: {engine: vllm}", "serving: {engine: *r}"), resolve, lambda _: None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not valid YAML"),
        ("trainedAt: 2026-13-45", "not valid YAML: month must be in 1..12"),
        pytest.param(f"{'[' * 5000}{']' * 5000}", "not valid YAML: it is nested too deeply", marks=pytest.mark.lasting),
        ("&a {apiVersion: v1, kind: List, items: [*a]}", "Lists within Lists over 16 levels"),
        (
            MANIFEST.replace("repo: meta-llama", "repo: 'a b'  #"),
            "BaseModel llama has a source that the API would refuse",
        ),
    ],
)
def test_what_cannot_be_read_is_said(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pin(text, resolve, lambda _: None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ask", lambda source, what, anonymous: resolve(source, what))


def arguments(path: Path, **given: bool) -> argparse.Namespace:
    return argparse.Namespace(files=[path], **{"check": False, "dry_run": False, "anonymous": False, **given})


@pytest.mark.usefixtures("asked")
def test_files_are_replaced_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(MANIFEST)
    path.chmod(0o640)
    assert command.run(arguments(path, check=True)) == 1
    assert command.run(arguments(path, dry_run=True)) == 0
    assert f"+      revision: {COMMIT}  # moves!\n" in capsys.readouterr().out
    assert path.read_text() == MANIFEST
    assert command.run(arguments(path)) == 0
    assert path.read_text() == PINNED
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["all.yaml"]
    assert command.run(arguments(path, check=True)) == 1, "the volume's adapter still has no digest"
    path.write_text(PINNED.replace("path: acme}}", f"path: acme}}}}\n  digest: {DIGEST}"))
    assert command.run(arguments(path, check=True)) == 0
    assert len(list(yaml.safe_load_all(path.read_text()))) == 4


def test_the_token_goes_to_no_hub_that_only_the_manifest_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """A manifest may be a stranger's, for example of a pull request."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_user")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    with Hub({"acme/private": Repository({"config.json": b"{}"}, token="hf_of_the_user")}) as hub:
        source = Source(hugging_face=HuggingFaceSource(repo="acme/private", revision="main", endpoint=hub.url))
        with pytest.raises(UserError, match=r"refuses anonymous .* only if HF_ENDPOINT names it"):
            command.ask(source, "LoRAAdapter acme")
        monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/")
        assert command.ask(source, "LoRAAdapter acme")[0] == hub.repositories["acme/private"].commit


@pytest.mark.usefixtures("asked")
def test_a_file_that_cannot_be_written_stays_and_nothing_is_called_pinned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(MANIFEST)

    def no_room(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", no_room)
    with pytest.raises(UserError, match=f"^{path} cannot be written, and stays as it was: No space left on device$"):
        command.run(arguments(path))
    assert "is pinned" not in capsys.readouterr().err
    assert path.read_text() == MANIFEST
    assert [p.name for p in tmp_path.iterdir()] == ["all.yaml"]


def test_nothing_of_a_file_is_called_pinned_when_the_next_source_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(MANIFEST)

    def ask(source: Source, what: str, anonymous: bool) -> tuple[str | None, str]:
        if source.s3 is not None:
            raise UserError(f"{what} (AccessDenied): no")
        return resolve(source, what)

    monkeypatch.setattr(command, "ask", ask)
    with pytest.raises(UserError, match="LoRAAdapter acme"):
        command.run(arguments(path))
    assert "is pinned" not in capsys.readouterr().err


def test_what_is_built_is_pinned_by_what_it_is_made_of() -> None:
    source = "{build: {output: {volume: {claimName: m}}, steps: [{gguf: {baseModel: llama}}]}}"
    text = f"apiVersion: tuneyard.dev/v1alpha1\nkind: BaseModel\nmetadata: {{name: x}}\nspec: {{source: {source}}}\n"
    told: list[str] = []
    assert (pin(text, resolve, told.append), pin(text, resolve, told.append, check=True)) == (text, text)
    assert told == []
