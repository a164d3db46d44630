"""The first process of an engine's container, where the engine itself is a bad one.

A pod may be deleted while its engine starts: a candidate is taken back, a pool is scaled down or given other settings.
The kernel does not pass SIGTERM on to a first process that has not asked for it, and vLLM 0.32 swallows it until it
serves: it would go on starting, and hold its GPUs for the pod's whole grace period, which is as long as a drain may
last. So the engine is the child of a process that keeps these rules:

- told to end, an engine that does not serve is ended at once: nothing runs in it that could be lost;
- one that serves is told to end, and ended when it does not: what it ran had its time while the pod was drained;
- it ends with the engine, and with the engine's own exit code, which says why pods do not start. Orphans are reaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from tuneyard.api import names

PATIENCE = 30
"""Seconds between an engine's end in order being asked for and its end."""


def under_init(command: Sequence[str], port: int = names.ENGINE_PORT, patience: int = PATIENCE) -> list[str]:
    """The container's command in place of the engine's own; the image has to have python3.

    `port`: where the engine answers GET /health with 200 while it serves; one that never does is always ended at once.
    One that takes the question and is late with its answer serves: it is busy.
    """
    script = f"""
import http.client, os, signal, sys
engine = None
def serves():
    try:
        asked = http.client.HTTPConnection("127.0.0.1", {port}, timeout=3)
        asked.request("GET", "/health")
        return asked.getresponse().status == 200
    except TimeoutError:
        return True
    except (OSError, http.client.HTTPException):
        return False
def end(*_):
    # told twice, it has to ask once
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # the kernel ends whatever is left when the first process ends
    if engine is None or not serves():
        os._exit(143)
    os.kill(engine, signal.SIGTERM)
    signal.alarm({patience})
signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGALRM, lambda *_: os._exit(143))
engine = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, setsigdef=[signal.SIGPIPE])
while True:
    ended, status = os.wait()
    if ended == engine:
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
"""
    return ["python3", "-ISc", script.strip(), *command]
