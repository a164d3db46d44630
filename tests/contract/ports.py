"""Ports on loopback for what the tests start, and processes that find pods there."""

from __future__ import annotations

import os
import random
import socket

_WORKERS = 4
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_PORTS = range(20_000 + _WORKER, 32_000, _WORKERS)
"""Below those that the kernel gives to outgoing connections; tests that run beside each other have others each."""
_given: set[int] = set()
PODS_ON_LOOPBACK = """
from tuneyard.planning import endpoints
endpoints.is_address = lambda text: text.startswith("127.0.0.1:")
"""
"""What an operator or a gateway runs first: here pods are fakes with any port, which they take from nobody."""


def free_port() -> int:
    """A port that nothing listens on, and that nobody in this process was told before.

    The kernel's own choice comes again: of forty ports two are the same once in thirty times, and Envoy shares a port
    with another program without a word.
    """
    while True:
        port = random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
