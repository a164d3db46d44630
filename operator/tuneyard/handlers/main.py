"""`tuneyard operator`: reads its settings, runs the operator until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from tuneyard.handlers import logs
from tuneyard.handlers.operator import Operator
from tuneyard.systems.kube.client import connect
from tuneyard.systems.kube.settings import ConfigurationError, load_settings, read_master

_log = logging.getLogger(__name__)

HEALTH_PORT = 8081
GATEWAYS = "TUNEYARD_GATEWAYS"
"""Environment variable for an operator outside the cluster, which reaches no pod by its address: `name=host:port`,
separated by commas, in place of the gateway pods; empty for none."""


def run(config: Path) -> int:
    """Run the operator with the settings of that file; returns the exit status."""
    logs.configure()
    try:
        settings, master = load_settings(config), read_master()
    except ConfigurationError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    operator = Operator(
        connect(),
        settings,
        master,
        identity=identity(os.environ),
        health_port=int(os.environ.get("TUNEYARD_HEALTH_PORT", HEALTH_PORT)),
        gateways=fixed_gateways(os.environ),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop_soon(operator))
    _log.info("starting as %s", operator.lease.identity)
    operator.run()
    _log.info("ended")
    # threads that wait for the network must not keep a process alive that has let its lease go
    sys.stderr.flush()
    os._exit(0)


def stop_soon(operator: Operator) -> None:
    """Set the flag in another thread: a signal may have interrupted this one while it holds the flag's lock."""
    threading.Thread(target=operator.stopping.set, daemon=True).start()


def identity(environment: Mapping[str, str]) -> str:
    """Who this process is to others: its pod, which a restarted container is again, or a name of its own."""
    return environment.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def fixed_gateways(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The gateways that the environment names; None where it does not speak of them."""
    text = environment.get(GATEWAYS)
    if text is None:
        return None
    pairs = (entry.partition("=") for entry in text.split(",") if entry.strip())
    return {name.strip(): address.strip() for name, _, address in pairs}
