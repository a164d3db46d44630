"""The program's words: which module runs, exit codes, one line for a mistake, and nothing imported too early."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneyard import __version__
from tuneyard.api.digests import FileDigest, artifact_digest
from tuneyard.cli.main import program_name, run


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"tuneyard {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["--help"])
    out = capsys.readouterr().out
    for command in ("status", "lineage", "import", "digest", "operator", "gateway", "agent"):
        assert f"\n    {command} " in out


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("import", "Write a LoRAAdapter manifest"),
        ("gateway", "process beside Envoy"),
        ("digest", "Print the digest of"),
    ],
)
def test_help_keeps_the_names_of_things(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run([command, "--help"])
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["status", "--nonsense"], ["status", "-w", "-o", "json"]])
def test_wrong_usage_is_2(arguments: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    assert "usage: tuneyard" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["operator", "gateway"])
def test_missing_settings_are_one_line(command: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run([command, "--config", str(tmp_path / "none.yaml")]) == 1
    assert capsys.readouterr().err == (
        f"tuneyard: the settings file {tmp_path}/none.yaml does not exist: name another one with --config\n"
    )


def test_plugin_is_called_by_its_name() -> None:
    assert program_name("/usr/local/bin/kubectl-tuneyard") == "kubectl tuneyard"
    assert program_name("/usr/local/bin/tuneyard") == "tuneyard"


@pytest.mark.lasting
@pytest.mark.parametrize("arguments", [["digest", "--help"], ["agent", "verify", "--help"]])
def test_commands_of_model_pods_import_no_kubernetes_client_and_no_server(arguments: Any) -> None:
    """Every model pod's start waits for it, and a Kubernetes client imports slower than an adapter is hashed."""
    code = (
        "import sys\nfrom tuneyard.cli.main import run\n"
        f"try: run({arguments!r})\nexcept SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'kubernetes', 'kopf', 'grpc', 'aiohttp', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class TestDigest:
    def test_is_the_one_that_pods_compute(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "a.safetensors").write_bytes(b"weights")
        (tmp_path / "README.md").write_text("not part of it")
        assert run(["digest", str(tmp_path)]) == 0
        sha = hashlib.sha256(b"weights").hexdigest()
        assert capsys.readouterr().out.strip() == artifact_digest([FileDigest("sub/a.safetensors", 7, sha)])

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda p: None, "does not exist"),
            (lambda p: p.write_text("x"), "is a file"),
            (lambda p: p.mkdir(), "ArtifactNotFound"),
            (lambda p: (p.mkdir(), (p / "f").symlink_to("/etc/hostname")), "UnsafePath"),
        ],
    )
    def test_errors_are_words(self, make: Any, words: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "artifact"
        make(folder)
        assert run(["digest", str(folder)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("tuneyard: ")
        assert words in error
        assert error.count("\n") == 1
