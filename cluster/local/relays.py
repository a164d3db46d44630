"""Loopback addresses of this machine that reach into the cluster's network namespace.

The listening socket is made here, in the machine's network namespace; the relay program that accepts on it is started
in the cluster's and dials there. A relay keeps its port over restarts, so that addresses handed out stay true.
One relay an address, recorded under a key: `api`, or `namespace/service:port`.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

from cluster.local import processes
from cluster.local.layout import Layout
from cluster.local.processes import Process, Program

API = "api"
_BACKLOG = 4096


def ensure(layout: Layout, anchor: Process, program: Path, key: str, target: str) -> str:
    """The loopback address of the relay `key`, started if it does not run or points elsewhere than `target`."""
    files = _Files(layout, key)
    recorded = _port(files.port)
    running = processes.load(files.process)
    if running is not None and running.alive():
        if recorded is not None and running.fingerprint == target:
            return f"127.0.0.1:{recorded}"
        running.end(0)
    with _listen(recorded) as listener:
        port = listener.getsockname()[1]
        files.port.write_text(json.dumps({"key": key, "port": port, "target": target}))
        argv = (str(program), f"-listen-fd={listener.fileno()}", f"-target={target}")
        relay = Program(argv, layout.logs / "relays.log", descriptors=(listener.fileno(),))
        processes.start_inside(relay, anchor, files.process, target)
    return f"127.0.0.1:{port}"


def restart(layout: Layout, anchor: Process, program: Path) -> None:
    """Start every recorded relay that does not run."""
    for file in sorted(layout.relays.glob("*.port")):
        recorded = json.loads(file.read_text())
        ensure(layout, anchor, program, recorded["key"], recorded["target"])


def addresses(layout: Layout) -> dict[str, str]:
    """Key to loopback address of every relay that runs."""
    found = {}
    for file in sorted(layout.relays.glob("*.port")):
        recorded = json.loads(file.read_text())
        process = processes.load(file.with_suffix(".process"))
        if process is not None and process.alive():
            found[recorded["key"]] = f"127.0.0.1:{recorded['port']}"
    return found


class _Files:
    def __init__(self, layout: Layout, key: str) -> None:
        stem = key.replace("/", "_").replace(":", "_")
        self.port = layout.relays / f"{stem}.port"
        self.process = layout.relays / f"{stem}.process"


def _port(file: Path) -> int | None:
    try:
        return int(json.loads(file.read_text())["port"])
    except FileNotFoundError:
        return None


def _listen(port: int | None) -> socket.socket:
    """A listening socket on the port used before, or on a free one if that has been taken meanwhile."""
    for candidate in [port, 0] if port else [0]:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", candidate))
        except OSError:
            listener.close()
            if candidate == 0:
                raise
            continue
        listener.listen(_BACKLOG)
        return listener
    raise AssertionError("unreachable: the last candidate returns or raises")
