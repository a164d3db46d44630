"""Makes the cluster's namespaces and starts programs in them. Run as a program of its own: `python -I enter.py MODE`.

A process can enter a mount namespace only while it has one thread, and entering a process namespace changes its later
children only; so this is no library but a short-lived program, with nothing but the standard library.
It reads one JSON object from standard input and writes the file `record`: who the new process is, as processes.Process
has it. It writes that itself because whoever waits for it may be killed meanwhile, and a process without a record would
never be found again. On failure it prints `{"error": TEXT}`, otherwise `{}`.

mode `anchor`: new network, mount and process namespaces, held open by `init`, their first process. When it ends, the
kernel ends all others in there, and with the last of them the mounts and network devices go. That is what makes `down`
complete.
  {"init": path, "covers": {path: folder over it}, "network": [line for `ip -batch`], "sysctls": {path: value}, ...}
mode `run`: a program in the namespaces of `anchor`, detached, output appended to `log`.
  {"anchor": pid, "argv": [...], "env": {...}, "log": path, "fds": [inherited descriptors to keep], ...}
both: {"record": path, "fingerprint": text for the record}
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE, MS_SHARED = 4096, 16384, 1 << 19, 1 << 20
OPEN_FILES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int) -> None:
    encoded = kind.encode() if kind else None
    _check(_libc.mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), None), f"mount {target}")


def anchor(spec: dict[str, Any]) -> int:
    """Make the namespaces; return the pid of their first process once everything in them is set up."""
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET), "unshare")
    # The write end closes by itself when the child becomes `init`; what is read before that is an error.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            os.setsid()
            _furnish(spec)
            _quiet()
            os.execv(spec["init"], [spec["init"]])
        except BaseException as error:  # noqa: BLE001 -- the child has nobody else to tell
            os.write(writer, str(error).encode())
        os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        failure = pipe.read().decode()
    if failure:
        os.waitpid(pid, 0)
        raise OSError(failure)
    return pid


def _record(spec: dict[str, Any], pid: int, proc: int) -> None:
    # Through `proc`, the outside's /proc: the number is one of the outside, and by now we may be inside.
    with open("sys/kernel/random/boot_id", opener=_at(proc)) as file:
        boot = file.read().strip()
    with open(f"{pid}/stat", opener=_at(proc)) as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    record = {"pid": pid, "start_ticks": ticks, "boot": boot, "fingerprint": spec["fingerprint"]}
    scratch = Path(spec["record"] + ".tmp")
    scratch.write_text(json.dumps(record))
    scratch.rename(spec["record"])


def _at(folder: int) -> Callable[[str, int], int]:
    return lambda path, flags: os.open(path, flags, dir_fd=folder)


def _furnish(spec: dict[str, Any]) -> None:
    # Mounts made later outside are seen in here and never the other way; in here they propagate, as containers expect.
    _mount("none", "/", None, MS_REC | MS_SLAVE)
    _mount("none", "/", None, MS_REC | MS_SHARED)
    _mount("proc", "/proc", "proc", 0)
    _mount("tmpfs", "/run", "tmpfs", 0)
    for folder in ("/run/lock", "/run/netns", "/run/tmp"):
        Path(folder).mkdir()
    for target, folder in spec["covers"].items():
        _mount(folder, target, None, MS_BIND)
    network = "\n".join(spec["network"]) + "\n"
    subprocess.run(["ip", "-batch", "-"], input=network, text=True, check=True, capture_output=True)
    for path, value in spec["sysctls"].items():
        Path(path).write_text(value)


def _quiet() -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)


def run(spec: dict[str, Any]) -> int:
    """Start the program; return its pid. It is adopted by the namespaces' first process when this one ends."""
    log = Path(spec["log"]).open("ab")  # noqa: SIM115 -- the child keeps it
    spaces = [(kind, os.open(f"/proc/{spec['anchor']}/ns/{name}", os.O_RDONLY)) for kind, name in _KINDS]
    for kind, descriptor in spaces:
        _check(_libc.setns(descriptor, kind), "setns")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    os.umask(0o022)
    child = subprocess.Popen(
        spec["argv"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=spec["env"],
        pass_fds=spec["fds"],
        start_new_session=True,
    )
    return child.pid


# The process namespace first: /proc of the outside names the anchor, and the mount namespace hides it.
_KINDS = ((CLONE_NEWPID, "pid"), (CLONE_NEWNET, "net"), (CLONE_NEWNS, "mnt"))


def main() -> None:
    """Do what standard input says."""
    answer = {}
    try:
        spec = json.load(sys.stdin)
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        pid = {"anchor": anchor, "run": run}[sys.argv[1]](spec)
        # A program that ended already is our zombie still, and has its numbers.
        _record(spec, pid, proc)
    except (OSError, subprocess.SubprocessError) as error:
        answer = {"error": f"{error} {getattr(error, 'stderr', '') or ''}".strip()}
    print(json.dumps(answer), flush=True)
    # No clean-up of child objects: the program started is not ours to wait for.
    os._exit(0)


if __name__ == "__main__":
    main()
