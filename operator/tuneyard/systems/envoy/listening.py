"""Where to listen for everybody: a cluster's pods have IPv4, IPv6 or both, and a machine may have IPv6 switched off.
And how to listen for nobody else: on a Unix socket that only this pod's user may open.
"""

from __future__ import annotations

import socket
from pathlib import Path

IPV4, ALL = "0.0.0.0", "::"


def everywhere() -> str:
    """The address that takes connections of every kind that this machine has."""
    if not socket.has_ipv6:
        return IPV4
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            # `::` can be bound also where no interface has IPv6, and then takes IPv4 all the same
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((ALL, 0))
    except OSError:
        return IPV4
    return ALL


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; `::` takes IPv4 too, which asyncio's own servers refuse."""
    if host == ALL:
        return socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def make_way(path: Path) -> None:
    """Remove a Unix socket that an earlier process left."""
    path.unlink(missing_ok=True)


def protect(path: Path) -> None:
    """Let only this process's user open a Unix socket."""
    path.chmod(0o600)
