"""`tuneyard digest` and `tuneyard pin` as users run them, against a local hub and a real S3 server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server
from tests.fakes.hub import Hub, Repository
from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.cli.main import run

TOKEN = "hf_secret_of_acme"
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights" * 1000}
DIGEST = artifact_digest(FileDigest(p, len(c), hashlib.sha256(c).hexdigest()) for p, c in FILES.items())
MANIFEST = """\
# two tenants
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapter
metadata: {{name: from-hub}}
spec:
  baseModel: llama
  source:
    huggingFace: {{repo: acme/x, revision: main, endpoint: "{hub}", credentials: {{name: hub-token}}}}  # moves
---
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapter
metadata: {{name: from-s3}}
spec:
  baseModel: llama
  source:
    s3:
      uri: s3://models/v1/
      endpoint: {s3}
  lineage: {{version: v1}}
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ROOT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ROOT_SECRET)


def test_digests_of_remote_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Hub({"acme/x": Repository(FILES, token=TOKEN)}) as hub:
        assert run(["digest", "hf://acme/x", "--endpoint", hub.url]) == 0
        assert capsys.readouterr().out == f"{DIGEST}\n"
        assert run(["digest", "hf://acme/x@main", "--endpoint", hub.url, "--anonymous"]) == 1
        assert "anonymous" in capsys.readouterr().err
        assert run(["digest", "hf://acme/none", "--endpoint", hub.url]) == 1
        error = capsys.readouterr().err
        assert "ArtifactNotFound" in error
        assert "HF_TOKEN" in error
        assert TOKEN not in error
    assert run(["digest", "hf://a b"]) == 2
    with S3Server(tmp_path) as server:
        server.bucket("models", {f"v1/{path}": content for path, content in FILES.items()})
        assert run(["digest", "s3://models/v1/", "--endpoint", server.url, "--region", "us-east-1", "--files"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == DIGEST
        assert run(["digest", "s3://models/v1/", "--endpoint", server.url, "--anonymous"]) == 1
        assert "AccessDenied" in capsys.readouterr().err


def test_pinning_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    repository = Repository(FILES, token=TOKEN)
    with Hub({"acme/x": repository}) as hub, S3Server(tmp_path / "s3") as server:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        server.bucket("models", {f"v1/{path}": content for path, content in FILES.items()})
        path = tmp_path / "adapters.yaml"
        path.write_text(MANIFEST.format(hub=hub.url, s3=server.url))
        assert run(["pin", "--check", str(path)]) == 1
        assert run(["pin", str(path)]) == 0
        wanted = MANIFEST.format(hub=hub.url, s3=server.url).replace("revision: main", f"revision: {repository.commit}")
        wanted = wanted.replace("# moves\n", f"# moves\n  digest: {DIGEST}\n")
        wanted = wanted.replace(f"{server.url}\n", f"{server.url}\n  digest: {DIGEST}\n")
        assert path.read_text() == wanted
        assert run(["pin", "--check", str(path)]) == 0
        path.write_text(wanted.replace(repository.commit, "main").replace(DIGEST, f"sha256:{'0' * 64}", 1))
        capsys.readouterr()
        assert run(["pin", str(path)]) == 1
        error = capsys.readouterr().err
        assert f"has digest sha256:{'0' * 64}, its source has {DIGEST}" in error
