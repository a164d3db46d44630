"""IPv4, IPv6 or both: everybody who can reach the pod is served."""

from __future__ import annotations

import errno
import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from tuneyard.gateway.options import options
from tuneyard.handlers.health import Health, HealthServer
from tuneyard.systems.envoy.documents import tcp
from tuneyard.systems.envoy.front import front_config
from tuneyard.systems.envoy.listening import everywhere, listening_socket


class _Ipv4Only(socket.socket):
    def __init__(self, family: int = socket.AF_INET, *more: int, **fields: int) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "switched off")
        super().__init__(family, *more, **fields)


def reach(family: socket.AddressFamily, host: str, port: int) -> None:
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect((host, port))


def test_one_socket_for_both() -> None:
    assert everywhere() == "::", "this test needs a machine whose kernel has IPv6"
    with listening_socket(everywhere(), 0) as server:
        port = server.getsockname()[1]
        reach(socket.AF_INET, "127.0.0.1", port)
        reach(socket.AF_INET6, "::1", port)


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket", _Ipv4Only)
    assert everywhere() == options({}).listen == "0.0.0.0"
    assert front_address() == {"socket_address": {"address": "0.0.0.0", "port_value": 8080}}
    with listening_socket(everywhere(), 0) as server:
        reach(socket.AF_INET, "127.0.0.1", server.getsockname()[1])


def test_envoys_take_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuneyard.systems.envoy.front.everywhere", lambda: "::")
    assert front_address() == {"socket_address": {"address": "::", "port_value": 8080, "ipv4_compat": True}}
    assert "ipv4_compat" not in tcp("fd00::1", 1)["socket_address"]


def front_address() -> object:
    (listener,) = front_config()["static_resources"]["listeners"]
    return listener["address"]


@pytest.mark.lasting
@pytest.mark.parametrize("ipv6", [True, False])
def test_the_operators_health(ipv6: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ipv6:
        monkeypatch.setattr("tuneyard.handlers.health.everywhere", lambda: "0.0.0.0")
    server = HealthServer(0, Health({}, lambda: True, lambda: True), CollectorRegistry())
    server.start()
    try:
        for host in ("127.0.0.1", *(["[::1]"] if ipv6 else [])):
            with urllib.request.urlopen(f"http://{host}:{server.port}/healthz", timeout=5) as answer:
                assert answer.status == 200
    finally:
        server.stop()
