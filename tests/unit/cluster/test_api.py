"""Reading from an API server that is not well, or not there yet, leaves no connection behind."""

from __future__ import annotations

import gc
import http.server
import select
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.local import pki
from cluster.local.api import Api


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "pki"
    pki.ensure(folder)
    return folder


@pytest.fixture
def leaks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the collector complains of."""
    found: list[Any] = []
    gc.collect()
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    yield found


class Unwell(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500 if self.path == "/readyz" else 404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.lasting
def test_an_api_server_that_is_not_well(certificates: Path, leaks: list[Any]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "apiserver.crt", certificates / "apiserver.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unwell) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = Api(f"127.0.0.1:{server.server_port}", certificates)
        assert api.ready() is False
        assert api.get("/nothing") is None
        server.shutdown()
    gc.collect()
    assert leaks == []


@pytest.mark.lasting
def test_a_relay_that_finds_nobody(certificates: Path, leaks: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is reset before the handshake begins."""
    connect = socket.create_connection

    def reset_meanwhile(*arguments: Any, **fields: Any) -> socket.socket:
        made = connect(*arguments, **fields)
        peer, _ = listener.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        waiting = select.poll()
        waiting.register(made, select.POLLERR | select.POLLHUP)
        assert waiting.poll(5000)
        return made

    monkeypatch.setattr(socket, "create_connection", reset_meanwhile)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert Api(f"127.0.0.1:{listener.getsockname()[1]}", certificates).ready() is False
    gc.collect()
    assert leaks == []
