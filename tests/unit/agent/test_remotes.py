"""What remotes have in common: listings of strangers, names for what is asked, secrets that stay secret, progress."""

from __future__ import annotations

import os

import pytest

from tuneyard.api.documents import Transfer
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.systems.artifacts.folder import ArtifactError
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials, RemoteFile, listed, remote_of

HUB = {"huggingFace": {"repo": "acme/x", "revision": "main"}}
KEYS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "k"}
S3 = {"s3": {"uri": "s3://models/acme", "endpoint": "http://127.0.0.1:9"}}


def file(path: str, version: str = "v") -> RemoteFile:
    return RemoteFile(path, 1, None, version)


def test_only_what_matters_for_serving_is_listed_in_order() -> None:
    found = listed("it", map(file, ["b/c", "README.md", ".git/x", "a", "A", "b/.gitattributes"]))
    assert [f.path for f in found] == ["A", "a", "b/c"]


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a//b",
        "./a",
        "a/",
        "",
        "a\\b",
        "a\nb",
        "a\x00b",
        "x" * 256,
        "é" * 200,
    ],
)
def test_a_path_that_is_no_path_inside_a_folder_refuses_everything(path: str) -> None:
    with pytest.raises(ArtifactError, match="no path inside a folder") as caught:
        listed("it", [file("config.json"), file(path)])
    assert caught.value.reason is Reason.UNSAFE_PATH


@pytest.mark.parametrize("paths", [["a", "a/b"], ["a/b/c", "a/b"], ["a/b/c/d", "a", "z"]])
def test_a_name_cannot_be_a_file_and_a_folder(paths: list[str]) -> None:
    with pytest.raises(ArtifactError, match="as a file and as a folder") as caught:
        listed("it", map(file, paths))
    assert caught.value.reason is Reason.UNSAFE_PATH


def test_a_file_twice_and_none_at_all() -> None:
    with pytest.raises(ArtifactError, match="twice"):
        listed("it", [file("a"), file("a")])
    with pytest.raises(ArtifactError, match="it holds no files") as caught:
        listed("it", [file("README.md")])
    assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize(
    ("paths", "refused"),
    [
        (["adapter_config.json", "adapter_model.bin"], True),
        (["pytorch_model-00001.bin", "config.json", "onnx/model.safetensors"], True),
        (["adapter_model.pt"], True),
        (["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"], False),
        (["config.json", "checkpoint-1/optimizer.pt"], False),
        (["model.Q4_K_M.gguf", "imatrix.bin"], False),
    ],
)
def test_weights_that_are_nothing_but_pickles_are_told_as_that(paths: list[str], refused: bool) -> None:
    """What does not count is not listed, and what is left looks like something half copied."""
    if not refused:
        assert all(not f.path.endswith((".bin", ".pt")) for f in listed("it", map(file, paths)))
        return
    with pytest.raises(ArtifactError, match=r"it holds no weights but \S+, which is a pickle") as caught:
        listed("it", map(file, paths))
    assert caught.value.reason is Reason.NOT_SAFETENSORS


def test_secrets_are_in_no_repr() -> None:
    given = Credentials.of_secret("hub-token", {"token": b"hf_secret\n"})
    assert given.data["token"] == "hf_secret"
    assert "hf_secret" not in repr(given)
    assert "Secret hub-token" in repr(given)
    with pytest.raises(ArtifactError, match="Secret s has a value that is no text") as caught:
        Credentials.of_secret("s", {"token": b"\xff\xfehf_secret"})
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("kind", [HUB, S3])
def test_a_secret_that_is_not_there_is_named(kind: dict[str, dict[str, object]]) -> None:
    [(name, fields)] = kind.items()
    source = Source.model_validate({name: {**fields, "credentials": {"name": "reader"}}})
    with pytest.raises(ArtifactError, match="Secret reader does not exist in this namespace") as caught:
        remote_of(source, None)
    assert caught.value.reason is Reason.CREDENTIALS_MISSING


@pytest.mark.parametrize(
    ("kind", "data", "identity"),
    [
        (HUB, None, "anonymous"),
        (HUB, {"token": "hf_x"}, "the token of Secret reader"),
        (
            S3,
            KEYS,
            "access key AKIA...MPLE of Secret reader",
        ),
    ],
)
def test_who_asks(kind: dict[str, object], data: dict[str, str] | None, identity: str) -> None:
    remote = remote_of(Source.model_validate(kind), None if data is None else Credentials("Secret reader", data))
    assert remote.identity == identity
    remote.close()


@pytest.mark.parametrize(
    ("environment", "identity"),
    [
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "AWS_ROLE_ARN": "arn:aws:iam::1:role/reader"},
            "the pod's service account (arn:aws:iam::1:role/reader)",
        ),
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials"},
            "the pod's service account (EKS Pod Identity)",
        ),
        ({"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"}, "access key AKIA...MPLE of the environment"),
        ({}, "the AWS identity of this machine"),
    ],
)
def test_who_asks_without_a_secret(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], identity: str) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert remote_of(Source.model_validate(S3), None).identity == identity


@pytest.mark.parametrize("kind", [HUB, S3])
def test_an_authority_that_is_none_is_refused(kind: dict[str, object]) -> None:
    keys = {"token": "t", "AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "k", "ca.crt": "no certificate"}
    with pytest.raises(ArtifactError, match=r"ca\.crt") as caught:
        remote_of(Source.model_validate(kind), Credentials("Secret reader", keys)).files()
    assert caught.value.reason is Reason.CREDENTIALS_MISSING


def test_the_rate_is_of_the_last_seconds() -> None:
    now = [100.0]
    progress = Progress(lambda: now[0])
    progress.begin(1000)
    progress.found(300)
    assert progress.transfer() == Transfer(done_bytes=300, total_bytes=1000, bytes_per_second=0)
    for _ in range(4):
        progress.came(50)
        now[0] += 1.0
    assert progress.transfer() == Transfer(done_bytes=500, total_bytes=1000, bytes_per_second=50)
    now[0] += 60
    assert progress.rate() == 0
