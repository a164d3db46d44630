"""`tuneyard pin`: what it writes, what it leaves, what it refuses; sources are asked through a function."""

from __future__ import annotations

import argparse
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
        "LoRAAdapter on-disk is on a volume and skipped: `tuneyard digest DIR` prints its digest",
    ]


def test_what_is_pinned_is_not_asked_again() -> None:
    def nobody(source: Source, what: str) -> tuple[str | None, str]:
        raise AssertionError(what)

    assert pin(PINNED, nobody, lambda _: None) == PINNED
    assert pin(PINNED, nobody, lambda _: None, check=True) == PINNED
    assert pin(MANIFEST, nobody, lambda _: None, check=True) is None


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
