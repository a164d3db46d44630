"""How a pool's engine container runs llama.cpp's server.

It loads adapters only when it begins, so that a small loop in the container waits for the agent's word what to begin
with, and begins anew whenever that word changes (tuneyard.systems.engines.llamacpp writes it):
- the word is a file: a first line that differs each time, then one argument a line;
- before there is one, nothing runs: a pod begins once, with all adapters that it is to have;
- a server that ends by itself ends the container, and the kubelet counts that;
- SIGTERM goes on to the server, which ends its streams' connections: the pod has been drained before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tuneyard.api import names
from tuneyard.planning.podparts import value
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings

HOME = "/home/engine"
ORDERS = "/adapters/llama-server.arguments"
"""What to begin with; the agent may write it, the engine's container only read."""
_TOGETHER = 4
"""Requests that generate at the same moment, llama.cpp's own number; --parallel in extraArgs changes it."""
_PARALLEL = ("--parallel", "-np")
LOOP = """
import signal, subprocess, sys, time

orders, given = sys.argv[1], sys.argv[2:]
server = None


def end(*_):
    if server is None:
        sys.exit(0)
    server.terminate()


def read():
    try:
        with open(orders) as file:
            return file.read().splitlines()
    except FileNotFoundError:
        return []


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
while not (found := read()):
    time.sleep(0.1)
while True:
    begun = found
    server = subprocess.Popen(["llama-server", *given, *begun[1:]])
    while (code := server.poll()) is None and (read() or begun)[0] == begun[0]:
        time.sleep(0.1)
    if code is not None:
        sys.exit(code if code > 0 else 0)
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    found = read() or begun
""".strip()


def command() -> list[str]:
    """The loop; its arguments are the server's."""
    return ["python3", "-ISc", LOOP, ORDERS]


def arguments(pool: Pool) -> list[str]:
    """What the server is started with, besides the base's file and the adapters."""
    serving = pool.serving
    given = ["--host", "127.0.0.1", "--port", str(names.ENGINE_PORT), "--alias", pool.base_model]
    given += ["--metrics", "--no-slots", "--no-webui"]
    if serving.max_model_len is not None:
        # the server divides it among the requests that run together; without it each gets the model's own: --fit, which
        # is on by itself, multiplies
        given += ["--ctx-size", str(serving.max_model_len * together(serving.extra_args))]
    return [*given, "--parallel", str(_TOGETHER), *serving.extra_args]


def together(extra_args: Sequence[str]) -> int:
    """How many requests generate at the same moment; the server takes the last number that it is given."""
    said = [after for flag, after in pairwise(extra_args) if flag in _PARALLEL]
    # -1 leaves it to the server, whose number is ours; what is no number it refuses itself
    return int(said[-1]) if said and said[-1].isdecimal() and int(said[-1]) else _TOGETHER


def environment(pool: Pool, settings: Settings) -> list[dict[str, Any]]:
    """The pool's variables over the chart's over ours."""
    chosen = {"HOME": HOME, **settings.engine_env, **pool.serving.env}
    return [value(name, text) for name, text in sorted(chosen.items())]
