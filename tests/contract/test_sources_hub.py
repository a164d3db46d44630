"""Hub sources against a local hub, through huggingface_hub's addresses and errors: what comes, and what is said."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.fakes.hub import Hub, Repository
from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import HuggingFaceSource
from tuneyard.systems.artifacts import download, floor
from tuneyard.systems.artifacts import hub as hub_module
from tuneyard.systems.artifacts.download import FetchStopped, digest_of_remote, fetch
from tuneyard.systems.artifacts.folder import ArtifactError, digest_of
from tuneyard.systems.artifacts.hub import HubRemote
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials, UnreachableError

TOKEN = "hf_secret_of_acme"
WEIGHTS = random.Random(1).randbytes(20 << 20)
FILES = {
    "README.md": b"not part of it",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "original/params.json": b"{}",
    "empty.txt": b"",
}
SERVED = {path: content for path, content in FILES.items() if path != "README.md"}
OPENED: list[HubRemote] = []


@pytest.fixture
def hub() -> Iterator[Hub]:
    repositories = {
        "acme/open": Repository(dict(FILES), branches={"release/1": "0123456789abcdef0123456789abcdef01234567"}),
        "acme/private": Repository(dict(FILES), token=TOKEN),
        "acme/gated": Repository(dict(FILES), gated=True),
        "acme/many": Repository({f"shards/{n}.json": b"%d" % n for n in range(2000)}),
    }
    with Hub(repositories) as hub:
        yield hub


@pytest.fixture(autouse=True)
def quick_and_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits between tries; and tokens that lie around, which nobody may send. Closes what a test opened."""
    monkeypatch.setattr(download, "_FIRST_DELAY", 0.001)
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    yield
    while OPENED:
        OPENED.pop().close()


def remote(hub: Hub, repo: str = "acme/open", revision: str = "main", token: str | None = None) -> HubRemote:
    given = None if token is None else Credentials.of_secret("hub-token", {"token": token.encode()})
    return opened(HubRemote(HuggingFaceSource(repo=repo, revision=revision, endpoint=hub.url), given))


def opened(remote: HubRemote) -> HubRemote:
    OPENED.append(remote)
    return remote


def digest(files: dict[str, bytes]) -> str:
    return artifact_digest(FileDigest(p, len(c), hashlib.sha256(c).hexdigest()) for p, c in files.items())


def test_what_comes_is_what_the_hub_has(hub: Hub, tmp_path: Path) -> None:
    progress = Progress()
    found = fetch(remote(hub), tmp_path / "out", progress=progress)
    assert found.digest == digest(SERVED)
    assert digest_of(tmp_path / "out") == found
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    assert (progress.done, progress.total, progress.fetched) == (found.size_bytes,) * 3
    assert progress.transfer().bytes_per_second > 0


def test_a_branch_is_resolved_once_and_everything_is_read_by_commit(hub: Hub, tmp_path: Path) -> None:
    asked = remote(hub, revision="release/1")
    assert asked.fingerprint() == f"{hub.url} acme/open@0123456789abcdef0123456789abcdef01234567"
    fetch(asked, tmp_path / "out")
    assert hub.asked["/api/models/acme/open/revision/release/1"] == 1
    assert not [path for path in hub.asked if "main" in path or "resolve/release" in path]


def test_the_digest_alone_reads_only_what_the_hub_has_no_sha256_of(hub: Hub) -> None:
    found = digest_of_remote(remote(hub))
    assert found.digest == digest(SERVED)
    assert hub.sent == len(SERVED["config.json"]) + len(SERVED["original/params.json"])


def test_some_files_are_kept_and_the_digest_is_of_all(hub: Hub, tmp_path: Path) -> None:
    found = fetch(remote(hub), tmp_path / "out", names=("config.json", "empty.txt"))
    assert found.digest == digest(SERVED)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["config.json", "empty.txt"]
    assert hub.sent < 1000


def test_private_repositories_take_their_token_which_goes_to_the_hub_alone(hub: Hub, tmp_path: Path) -> None:
    asked = remote(hub, "acme/private", token=TOKEN)
    assert fetch(asked, tmp_path / "out").digest == digest(SERVED)
    assert hub.leaks == []
    assert asked.identity == "the token of Secret hub-token"
    assert TOKEN not in repr(vars(asked)["_credentials"])


@pytest.mark.parametrize(
    ("asked", "reason", "words"),
    [
        (("acme/private", "main", None), Reason.ACCESS_DENIED, ["anonymous", "private"]),
        (("acme/private", "main", "hf_wrong"), Reason.ACCESS_DENIED, ["the token of Secret hub-token", "expired"]),
        (("acme/none", "main", TOKEN), Reason.ARTIFACT_NOT_FOUND, ["acme/none", "the token of Secret hub-token"]),
        (("acme/open", "v9", None), Reason.ARTIFACT_NOT_FOUND, ["no revision v9"]),
        (("acme/gated", "main", None), Reason.ACCESS_DENIED, ["gated", "anonymous", "terms"]),
    ],
)
def test_refusals_name_who_asked_and_what_to_do(
    hub: Hub, tmp_path: Path, asked: tuple[str, str, str | None], reason: Reason, words: list[str]
) -> None:
    with pytest.raises(ArtifactError) as caught:
        fetch(remote(hub, *asked), tmp_path / "out")
    assert caught.value.reason is reason
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "hf_" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_further_pages_are_asked_of_the_endpoint_wherever_they_are_said_to_be(hub: Hub) -> None:
    """A mirror that passes on the addresses of what it mirrors must not have its token sent there."""
    hub.repositories["acme/private"].files |= {f"shards/{n}.json": b"%d" % n for n in range(120)}
    hub.faults.foreign_pages = True
    assert len(remote(hub, "acme/private", token=TOKEN).files()) == len(SERVED) + 120
    assert not hub.leaks


def test_a_tree_that_never_ends_is_refused_in_words(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MOST_PAGES", 30)
    hub.faults.endless_pages = True
    with pytest.raises(ArtifactError, match="the listing of acme/open at main has more than") as caught:
        remote(hub).files()
    assert caught.value.reason is Reason.ARTIFACT_UNREADABLE
    assert hub.asked[f"/api/models/acme/open/tree/{hub.repositories['acme/open'].commit}"] == 30


@pytest.mark.parametrize("token", ["hf_of_acme\nsecond line", "hf_of_acme\0", "hf_of_äcme"])
def test_a_token_that_no_header_can_hold_is_refused_and_shown_nowhere(hub: Hub, token: str) -> None:
    """HTTP clients refuse it in words that hold it, and these would go into logs and status."""
    with pytest.raises(ArtifactError, match="token of Secret hub-token holds a line break") as caught:
        remote(hub, "acme/private", token=token).files()
    assert caught.value.reason is Reason.CREDENTIALS_MISSING
    assert "hf_of" not in str(caught.value)


def test_errors_that_pass_are_repeated(hub: Hub, tmp_path: Path) -> None:
    hub.faults.statuses = [500, 429, 503, 502]
    hub.faults.retry_after = 0
    hub.faults.cuts = [1 << 20, 100, 3 << 20, 0]
    progress = Progress()
    assert fetch(remote(hub), tmp_path / "out", progress=progress).digest == digest(SERVED)
    size = sum(map(len, SERVED.values()))
    assert progress.fetched == size  # each went on where it was cut
    assert size <= hub.sent <= size + 4 * (256 << 10)  # but for the piece that was on its way


def test_connections_that_break_early_are_gone_on_with_from_where_they_broke(hub: Hub, tmp_path: Path) -> None:
    """Each brings little, but something: that is no source that is out of reach."""
    content = WEIGHTS[: 3 << 18]
    hub.repositories["acme/cut"] = Repository({"model.safetensors": content})
    hub.faults.cuts = [50_000] * (download.TRIES + 4)
    progress = Progress()
    fetch(remote(hub, "acme/cut"), tmp_path / "out", progress=progress)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content
    assert progress.fetched == hub.sent == len(content)


def test_a_hub_that_stays_away_is_given_up_with_its_name(hub: Hub, tmp_path: Path) -> None:
    hub.faults.statuses = [503] * 1000
    with pytest.raises(ArtifactError, match=f"{hub.url} answers 503") as caught:
        fetch(remote(hub), tmp_path / "out")
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE
    assert len(hub.faults.statuses) == 1000 - (download.TRIES + 1)


def test_a_source_that_trickles_is_given_up_in_words_and_gone_on_from(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "WINDOW_SECONDS", 1.0)
    content = WEIGHTS[: 3 << 18]
    hub.repositories["acme/slow"] = Repository({"model.safetensors": content})
    hub.faults.trickles = {"acme/slow/model.safetensors": 0.1}
    first = Progress()
    with pytest.raises(UnreachableError, match=r"acme/slow at main delivers \d+\.\d KiB/s \(over 1 s\), at least 64"):
        fetch(remote(hub, "acme/slow"), tmp_path / "out", progress=first)
    assert 5_000 < first.fetched < len(content)
    hub.faults.trickles = {}
    then = Progress()
    fetch(remote(hub, "acme/slow"), tmp_path / "out", progress=then)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content
    assert then.fetched == len(content) - first.fetched, "what came is not fetched again"


def test_a_slow_but_steady_source_is_waited_for(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "WINDOW_SECONDS", 0.3)
    hub.repositories["acme/slow"] = Repository({"model.safetensors": WEIGHTS[:200_000]})
    hub.faults.trickles = {"acme/slow/model.safetensors": 0.005}
    fetch(remote(hub, "acme/slow"), tmp_path / "out")


def test_nobody_at_the_endpoint(tmp_path: Path) -> None:
    asked = opened(
        HubRemote(HuggingFaceSource(repo="acme/open", revision="main"), None)
    )  # $HF_ENDPOINT is a closed port
    with pytest.raises(ArtifactError, match=r"http://127.0.0.1:9 cannot be read .*refused") as caught:
        fetch(asked, tmp_path / "out")
    assert caught.value.reason is Reason.SOURCE_UNREACHABLE


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_wrong_byte_is_refused_with_both_checksums(hub: Hub, tmp_path: Path, path: str) -> None:
    right = FILES[path]
    wrong = bytes([right[0] ^ 1]) + right[1:]
    hub.faults.wrong = {path: wrong}
    with pytest.raises(ArtifactError) as caught:
        fetch(remote(hub), tmp_path / "out")
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    if path == "model.safetensors":
        assert hashlib.sha256(right).hexdigest() in str(caught.value)
        assert hashlib.sha256(wrong).hexdigest() in str(caught.value)
    hub.faults.wrong = {}
    assert fetch(remote(hub), tmp_path / "out").digest == digest(SERVED)


@pytest.mark.parametrize("content", [WEIGHTS[:-1], WEIGHTS + b"!"], ids=["shorter", "longer"])
def test_a_file_of_another_length_is_refused(hub: Hub, tmp_path: Path, content: bytes) -> None:
    hub.faults.wrong = {"model.safetensors": content}
    with pytest.raises(ArtifactError, match=r"model\.safetensors has changed since it was listed"):
        fetch(remote(hub), tmp_path / "out")


def test_damage_to_what_was_fetched_before_is_healed(hub: Hub, tmp_path: Path) -> None:
    asked = remote(hub)
    file = next(f for f in asked.files() if f.path == "model.safetensors")
    part = tmp_path / ".out.fetching" / f"{download._name(asked, file)}.part"
    part.parent.mkdir()
    part.write_bytes(WEIGHTS[: 5 << 20] + b"\0" * (1 << 20))
    progress = Progress()
    assert fetch(asked, tmp_path / "out", progress=progress).digest == digest(SERVED)
    # Once on top of the damage, which only shows at the end; then all of it.
    assert progress.fetched == 14 * (1 << 20) + sum(map(len, SERVED.values()))


def test_a_transfer_that_is_told_to_stop_ends_at_once_and_goes_on_later(hub: Hub, tmp_path: Path) -> None:
    hub.faults.stall = threading.Event()
    stopped = threading.Event()
    ended: list[BaseException] = []

    def run() -> None:
        try:
            fetch(remote(hub), tmp_path / "out", stopped=stopped)
        except FetchStopped as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while not hub.sent:
        time.sleep(0.01)
    stopped.set()
    asked = time.monotonic()
    thread.join(10)
    assert ended
    assert time.monotonic() - asked < 3
    hub.faults.stall.set()
    assert fetch(remote(hub), tmp_path / "out").digest == digest(SERVED)


def test_two_thousand_files(hub: Hub, tmp_path: Path) -> None:
    found = fetch(remote(hub, "acme/many"), tmp_path / "out")
    assert len(found.files) == 2000
    assert digest_of(tmp_path / "out") == found
    assert len(list(Path("/proc/self/fd").iterdir())) < 200


def test_a_folder_that_is_called_like_a_file_that_does_not_count(hub: Hub, tmp_path: Path) -> None:
    """A pod that looks into what it fetched must find the digest under which it came."""
    files = {"config.json": b"{}", "step-100.pt/config.json": b"[1]", "README.md/a.json": b"[2]", ".git/x.json": b"[3]"}
    hub.repositories["acme/folders"] = Repository(files)
    found = fetch(remote(hub, "acme/folders"), tmp_path / "out")
    assert [f.path for f in found.files] == ["README.md/a.json", "config.json", "step-100.pt/config.json"]
    assert digest_of(tmp_path / "out") == found


def test_a_path_that_leaves_the_folder_refuses_the_whole_repository(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["acme/open"].files["../../etc/cron.d/x"] = b"*"
    with pytest.raises(ArtifactError, match="no path inside a folder") as caught:
        fetch(remote(hub), tmp_path / "out")
    assert caught.value.reason is Reason.UNSAFE_PATH


def test_a_server_that_is_no_hub(tmp_path: Path) -> None:
    with Hub({}) as hub:
        hub.faults.statuses = [200] * 10
        asked = remote(hub)
        with pytest.raises(ArtifactError, match="gave no commit"):
            fetch(asked, tmp_path / "out")


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"error": "away"},
        "text",
        [1],
        [{"type": "file", "path": "a"}],
        [{"type": "file", "path": "a", "oid": "0", "size": None}],
        [{"type": "file", "path": "a", "oid": "0", "size": -1}],
        [{"type": "file", "path": "a", "oid": "0", "size": 1e999}],
        [{"type": "file", "path": "a", "oid": "0", "size": 1, "lfs": {"size": 1}}],
        [{"type": "file", "path": "a", "oid": "0", "size": 1, "lfs": "x"}],
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("revision", ["main", "0123456789abcdef0123456789abcdef01234567"])
def test_answers_of_another_kind_are_told(answer: Any, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = opened(HubRemote(HuggingFaceSource(repo="acme/open", revision=revision, endpoint="http://hub"), None))
    said = httpx2.Response(200, content=json.dumps(answer), request=httpx2.Request("GET", "http://hub"))
    monkeypatch.setattr(asked._client, "get", lambda _: said)
    with pytest.raises(ArtifactError) as caught:
        asked.files()
    empty = answer == [] and revision != "main"
    assert caught.value.reason is (Reason.ARTIFACT_NOT_FOUND if empty else Reason.SOURCE_UNREACHABLE)
    assert empty or "hub?" in str(caught.value)
