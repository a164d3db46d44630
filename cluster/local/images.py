"""The images of the node: containerd's, read and loaded without a registry."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

from cluster import addons, scratch_image
from cluster.errors import ClusterError
from cluster.local.cri import Runtime
from cluster.progress import Progress

_SEEN_WITHIN = 30


class Images:
    """The images behind containerd's socket; `ctr` is the program that loads them."""

    def __init__(self, socket: Path, ctr: Path, progress: Progress) -> None:
        self._socket = socket
        self._ctr = [str(ctr), f"--address={socket}", "--namespace=k8s.io", "images"]
        self._progress = progress

    def named(self) -> dict[str, str]:
        """Image name to content id, as the kubelet sees them."""
        with Runtime(self._socket) as runtime:
            return runtime.images()

    def ensure_programs(self, programs: list[Path]) -> None:
        """Have an image of each program, named by addons.image_name."""
        present = self.named()
        for program in programs:
            image = addons.image_name(program)
            if image not in present:
                with tempfile.TemporaryFile() as file:
                    scratch_image.write_archive(file, image, program)
                    file.seek(0)
                    self.load(file.fileno(), image)

    def load(self, descriptor: int, what: str) -> None:
        """Load all images of the archive readable from `descriptor`; return when pods can use them."""
        with self._progress.step(f"load {what}"):
            finished = subprocess.run(
                [*self._ctr, "import", "--snapshotter=overlayfs", "-"],
                stdin=descriptor,
                capture_output=True,
                text=True,
                check=False,
            )
            if finished.returncode:
                raise ClusterError(f"containerd cannot load {what} as an image archive: {finished.stderr.strip()}")
            self._wait_seen(what)

    def _wait_seen(self, what: str) -> None:
        # The kubelet's view of images follows containerd's by events, a moment later.
        listed = subprocess.run([*self._ctr, "list", "-q"], capture_output=True, text=True, check=True).stdout.split()
        names = {name for name in listed if not name.startswith("sha256:") and "@" not in name}
        until = time.monotonic() + _SEEN_WITHIN
        while missing := names - self.named().keys():
            if time.monotonic() > until:
                raise ClusterError(f"{what} was loaded, but the kubelet does not see {', '.join(sorted(missing))}")
            time.sleep(0.05)
