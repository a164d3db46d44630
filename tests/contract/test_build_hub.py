"""A build's results in a repository of a hub, through huggingface_hub: one commit each, found again by its tag."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from tests.contract.test_build_outputs import KEY, OTHER, result
from tests.fakes.hubwriting import WritableHub
from tuneyard.api.buildoutput import OutputRepository
from tuneyard.api.reasons import Reason
from tuneyard.build import outputs
from tuneyard.build.huboutput import HubOutput
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.remote import Credentials

# huggingface_hub's own: how it hands files to its HTTP client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_of_the_build"


@pytest.fixture
def hub() -> Iterator[WritableHub]:
    with WritableHub("acme/models", TOKEN) as hub:
        yield hub


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")


def output(hub: WritableHub, token: str = TOKEN, repo: str = "acme/models", allowed: bool = True) -> HubOutput:
    endpoints = frozenset({hub.url}) if allowed else frozenset[str]()
    given = Credentials("Secret hub", {"token": token}, endpoints)
    where = {"repo": repo, "endpoint": hub.url, "credentials": {"name": "hub"}}
    return HubOutput(OutputRepository.from_dict(where), lambda _name: given, threading.Event())


def test_a_result_is_one_commit_that_its_tag_names(hub: WritableHub, tmp_path: Path) -> None:
    kept = output(hub)
    made = result(tmp_path / "made", weights=1000)
    assert kept.find(KEY) is None
    done = kept.keep(tmp_path / "made", made, lambda *_: None)
    assert (done.digest, done.commit) == (made.digest, hub.names[f"tuneyard-{KEY}"])
    # another model's files go, what people wrote about it stays
    assert sorted(hub.files(f"tuneyard-{KEY}") or {}) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer/vocab.json",
        "tuneyard-build.json",
    ]
    assert kept.find(KEY) == done
    assert kept.find(OTHER) is None


def test_a_later_result_leaves_the_earlier_one_where_it_is(hub: WritableHub, tmp_path: Path) -> None:
    kept = output(hub)
    first = kept.keep(tmp_path / "one", result(tmp_path / "one"), lambda *_: None)
    kept.keep(tmp_path / "two", result(tmp_path / "two", OTHER, weights=5), lambda *_: None)
    assert kept.find(KEY) == first


def test_a_tag_that_names_other_bytes_is_no_result_and_is_moved(hub: WritableHub, tmp_path: Path) -> None:
    """Somebody has changed a file, by as many bytes, and moved the tag."""
    kept = output(hub)
    made = result(tmp_path / "made", weights=1000)
    kept.keep(tmp_path / "made", made, lambda *_: None)
    changed = {**(hub.files(f"tuneyard-{KEY}") or {}), "model.safetensors": b"x" * 1000}
    hub.commits["f" * 40] = changed
    hub.names[f"tuneyard-{KEY}"] = "f" * 40
    assert kept.find(KEY) is None
    done = kept.keep(tmp_path / "made", made, lambda *_: None)
    assert kept.find(KEY) == done
    assert hub.names[f"tuneyard-{KEY}"] == done.commit != "f" * 40


def test_what_another_build_has_committed_stays(hub: WritableHub, tmp_path: Path) -> None:
    kept = output(hub)
    made = result(tmp_path / "made", weights=1000)
    first = kept.keep(tmp_path / "made", made, lambda *_: None)
    commits = len(hub.commits)
    assert kept.keep(tmp_path / "made", made, lambda *_: None) == first
    assert len(hub.commits) == commits


def test_two_that_upload_at_once_do_not_mix(hub: WritableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one has looked at what is there, and the first one commits before it does."""
    first, second = result(tmp_path / "one", weights=1000), result(tmp_path / "two", OTHER, weights=5)
    (tmp_path / "two" / "model.safetensors").rename(tmp_path / "two" / "other.safetensors")
    contents = digest_of(tmp_path / "two")
    second = second.model_copy(update={"digest": contents.digest, "size_bytes": contents.size_bytes})
    (tmp_path / "two" / "tuneyard-build.json").write_text(json.dumps(second.to_dict()))
    create = HfApi.create_commit
    meanwhile = [lambda: output(hub).keep(tmp_path / "one", first, lambda *_: None)]

    def later(api: HfApi, *args: Any, **fields: Any) -> Any:
        if meanwhile:
            meanwhile.pop()()
        return create(api, *args, **fields)

    monkeypatch.setattr(HfApi, "create_commit", later)
    kept = output(hub)
    done = kept.keep(tmp_path / "two", second, lambda *_: None)
    assert kept.find(OTHER) == done
    assert kept.find(KEY) is not None
    assert "model.safetensors" not in (hub.files(done.commit or "") or {})


@pytest.mark.parametrize("where", ["/commit/", "/tag/", "/preupload/"])
def test_a_hub_that_fails_for_a_moment_is_asked_again(hub: WritableHub, tmp_path: Path, where: str) -> None:
    hub.failing = [where]
    kept = output(hub)
    done = kept.keep(tmp_path / "made", result(tmp_path / "made"), lambda *_: None)
    assert kept.find(KEY) == done


@pytest.mark.parametrize(
    ("wrong", "reason", "said"),
    [
        ({"token": "hf_wrong"}, Reason.ACCESS_DENIED, "refuses|may not"),
        ({"allowed": False}, Reason.CREDENTIALS_MISSING, "is not meant for"),
    ],
)
def test_what_is_refused_is_told_without_a_secret(
    hub: WritableHub, tmp_path: Path, wrong: dict[str, object], reason: Reason, said: str
) -> None:
    kept = output(hub, **wrong)  # type: ignore[arg-type]
    for act in (
        lambda: kept.find(KEY),
        lambda: kept.keep(tmp_path / "made", result(tmp_path / "made"), lambda *_: None),
    ):
        with pytest.raises(ArtifactError, match=said) as raised:
            act()
        assert raised.value.reason is reason
        assert "hf_" not in str(raised.value)
