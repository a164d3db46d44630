"""What an Ollama container's own script does, with a program in Ollama's place that does what a test says."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.builders import VOLUME, base_model, deployment, revision
from tests.contract.dying import die_with_parent
from tests.contract.operator_process import eventually
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.pools import pools_of
from tuneyard.planning.presetcontainers import command

OLLAMA = """#!/bin/sh
echo "$@" >> "$SAID"
case "$1" in
  serve) [ -n "$REFUSES" ] && exit 3; trap 'exit 0' TERM; while :; do wait_for_end; done ;;
  list) [ -z "$REFUSES" ] ;;
  create) cat "$4" >> "$SAID"; [ -z "$LASTS" ] || wait_for_end; [ -z "$FAILS" ] || exit 4 ;;
  show) echo "$TEMPLATE" ;;
esac
"""
WAITS = "wait_for_end() { tail -f /dev/null & wait $!; }\n"


class Container:
    """The script, in a session of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._said, self._log = folder / "said", folder / "log"
        serving = ServingSpec(engine="ollama", image="i", artifact_volumes=[VOLUME])
        (pool,) = pools_of(base_model(serving=serving), [deployment(revisions=[revision("v1")])])
        program = folder / "bin" / "ollama"
        program.parent.mkdir()
        program.write_text(OLLAMA.replace("\n", f"\n{WAITS}", 1))
        program.chmod(0o755)
        here = {
            "PATH": f"{program.parent}:/usr/bin:/bin",
            "HOME": str(folder),
            "SAID": str(self._said),
            "TUNEYARD_BASE_PATH": str(folder / "base"),
            "TEMPLATE": "known",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*(command(pool) or []), "smollm2"],
                env=here | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )

    def told(self, words: str) -> None:
        """Wait until Ollama was called with this."""
        eventually(lambda: self._said.exists() and words in self._said.read_text(), self._log.read_text, 20)

    def logged(self) -> str:
        return self._log.read_text()

    def exit_code(self) -> int:
        return self.process.wait(20)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "the model.gguf").touch()
    return folder


@contextmanager
def container(folder: Path, **environment: str) -> Iterator[Container]:
    found = Container(folder, environment)
    try:
        yield found
    finally:
        with suppress(ProcessLookupError):
            os.killpg(found.process.pid, signal.SIGKILL)
        found.process.wait()


def test_the_base_is_imported_and_served_until_the_end(tmp_path: Path, base: Path) -> None:
    with container(tmp_path) as running:
        running.told("show")
        running.told(f"create smollm2 -f {tmp_path}/Modelfile\nFROM {base}/the model.gguf\nshow")
        running.process.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
        assert running.logged() == ""


def test_a_pod_that_is_deleted_while_it_imports_ends_at_once(tmp_path: Path, base: Path) -> None:
    with container(tmp_path, LASTS="yes") as running:
        running.told("FROM")
        running.process.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0


@pytest.mark.parametrize(("environment", "code"), [({"REFUSES": "yes"}, 1), ({"FAILS": "yes"}, 4)])
def test_what_fails_ends_the_container(tmp_path: Path, base: Path, environment: dict[str, str], code: int) -> None:
    with container(tmp_path, **environment) as running:
        assert running.exit_code() == code


@pytest.mark.parametrize(("files", "words"), [([], "there is no .gguf"), (["a.gguf"], "there are several .gguf")])
def test_it_is_one_file(tmp_path: Path, base: Path, files: list[str], words: str) -> None:
    for name in files:
        (base / name).touch()
    if not files:
        (base / "the model.gguf").unlink()
    with container(tmp_path) as running:
        assert running.exit_code() == 1
        assert words in running.logged()


def test_a_template_beside_the_base_is_what_chats_go_by(tmp_path: Path, base: Path) -> None:
    (base / "template").write_text('{{ .Prompt }}, "said %s"\n\\n{{ .Response }}\n')
    with container(tmp_path) as running:
        running.told('TEMPLATE """{{ .Prompt }}, "said %s"\n\\n{{ .Response }}"""\nshow --template smollm2\n')


def test_chats_that_are_plain_text_to_it_are_said(tmp_path: Path, base: Path) -> None:
    with container(tmp_path, TEMPLATE="{{ .Prompt }}") as running:
        eventually(lambda: "knows no template" in running.logged(), running.logged, 20)
        assert f"Write one into {base}/template" in running.logged()
