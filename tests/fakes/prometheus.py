"""A small server that speaks Prometheus' query API on loopback: it answers as a table says, and misbehaves if asked."""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self


@dataclass
class Answered:
    """One answer."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    """Bytes that are promised and never come."""


def success(kind: str, result: Any) -> Answered:
    """The answer to a query that could be evaluated."""
    return Answered(json.dumps({"status": "success", "data": {"resultType": kind, "result": result}}).encode())


def number(value: float | str) -> Answered:
    """A vector of one element."""
    return success("vector", [{"metric": {"tenant": "secret-tenant"}, "value": [1.0, str(value)]}])


def refused(status: int, kind: str, error: str) -> Answered:
    """The answer to one that could not."""
    return Answered(json.dumps({"status": "error", "errorType": kind, "error": error}).encode(), status)


class FakePrometheus:
    """`with FakePrometheus() as server:`; `answers` by query, and `otherwise` for all others."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        """`tls`: certificate and key."""
        self.answers: dict[str, Answered] = {}
        self.otherwise = success("vector", [])
        self.token = ""
        """Who does not send it gets 401."""
        self.asked: list[str] = []
        self.forms: list[dict[str, str]] = []
        self.before: Callable[[str], object] = lambda _: None
        """Runs before an answer to this query is sent."""
        self._lock = threading.Lock()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, query: str, authorization: str) -> Answered:
        with self._lock:
            self.asked.append(query)
        self.before(query)
        if path != "/api/v1/query":
            return Answered(b"not found", 404)
        if self.token and authorization != f"Bearer {self.token}":
            return Answered(b"who are you", 401)
        return self.answers.get(query, self.otherwise)

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                fake.forms.append({name: values[0] for name, values in form.items()})
                found = fake.answer(self.path, form["query"][0], self.headers.get("Authorization", ""))
                self.send_response(found.status)
                self.send_header("Content-Length", str(len(found.body) + found.missing))
                for name, value in found.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # nobody waits for it any more
                    self.wfile.write(found.body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
