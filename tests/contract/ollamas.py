"""Ollama for contract tests: the real one as its pod's container runs it.

Command, environment and paths are those that the operator gives, but for the port. What the pod's specification says of
the rest is true too: the first process of a PID namespace, user 65532 without rights, a read-only root in which it may
write to its home, /tmp and /dev/shm, and one CPU as its limit. The root is this machine's programs and libraries, and
Ollama.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from cluster import gobuild
from cluster.progress import Progress
from tests.builders import VOLUME, base_model, deployment, revision
from tests.contract.dying import die_with_parent
from tests.contract.engines import BASE, EngineProcess
from tests.contract.llamaservers import smollm2_file
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port
from tests.contract.processes import answers
from tuneyard.api import names
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.enginecontainer import HOME, started
from tuneyard.planning.podvolumes import base_path
from tuneyard.planning.pools import pools_of
from tuneyard.planning.settings import Settings

CONTAINER = f"""
set -e
mount -t tmpfs tmpfs "$ROOT"
cd "$ROOT"
mkdir -p usr proc dev/shm tmp ".{HOME}" ".$BASE_AT" opt sys/fs/cgroup
echo 100000 100000 > sys/fs/cgroup/cpu.max
for name in bin lib lib64 sbin; do ln -s "usr/$name" "$name"; done
mount --bind /usr usr
mount --bind "$OLLAMA" opt
mount --bind "$BASE_FROM" ".$BASE_AT"
mount --bind "$HOME_FROM" ".{HOME}"
mount -t proc proc proc
for name in null zero random urandom; do : > "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
for name in tmp dev/shm; do mount -t tmpfs -o mode=1777 tmpfs "$name"; done
for name in usr opt ".$BASE_AT"; do mount -o remount,bind,ro "$name"; done
mount -o remount,ro "$ROOT"
unset OLLAMA
exec chroot --userspec=65532:65532 --groups= "$ROOT" "$@"
"""
"""Becomes the container's command; the mounts are this process's own."""


@dataclass
class OllamaProcess(EngineProcess):
    """The engine's container; what its home has stays when it is started again, as in a pod."""

    folder: Path = field(default_factory=Path)
    serving: ServingSpec = field(default_factory=ServingSpec)

    def start(self, patience: float = 0.0) -> None:
        """Start it; it has the model some time after."""
        root, home = self.folder / "root", self.folder / "home"
        for path in (root, home):
            path.mkdir(exist_ok=True)
        home.chmod(0o777)
        base = base_model(self.name, serving=self.serving, path="base")
        (pool,) = pools_of(base, [deployment(revisions=[revision("v1", base=self.name)])])
        container = started(pool, base, Settings())
        here = {
            "PATH": "/opt:/usr/bin:/usr/sbin",
            "ROOT": str(root),
            "OLLAMA": str(ollama().parent),
            "BASE_FROM": str(self.base),
            "BASE_AT": base_path(base),
            "HOME_FROM": str(home),
        }
        own = {v["name"]: v["value"].replace(str(names.ENGINE_PORT), str(self.port)) for v in container["env"]}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", CONTAINER, "container"),
                    *(*container["command"], *container["args"]),
                ],
                env={**own, **here},
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509
            )

    def serves(self) -> None:
        """Wait until it has the model."""
        eventually(lambda: answers(f"{self.url}/v1/models/{self.name}"), self.said, 60)

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """SIGTERM to the first process, as a container's runtime sends it."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        (first,) = children.split()
        os.kill(int(first), signal.SIGTERM)


def ollama() -> Path:
    """The program."""
    return gobuild.ensure(["ollama"], Progress())["ollama"]


def ollama_process(folder: Path, max_model_len: int | None = 1024) -> OllamaProcess:
    """A container that is not started yet, with SmolLM2 as its base; whoever starts it kills it."""
    base = folder / "base"
    base.mkdir()
    (base / "model.gguf").write_bytes(smollm2_file())
    serving = ServingSpec(engine="ollama", image="ollama", max_model_len=max_model_len, artifact_volumes=[VOLUME])
    return OllamaProcess("ollama", free_port(), base=base, name=BASE, folder=folder, serving=serving)
