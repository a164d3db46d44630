"""What the kubelet and Prometheus ask the operator, in threads of their own: /healthz, /readyz and /metrics.

`/healthz` fails when a watch has been silent for too long although the API server answers: then something here is
stuck, and a restart helps. While the API server is away a restart would only lose what is known.
"""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tuneyard.systems.envoy.listening import everywhere, listening_socket

STALE_SECONDS = 150.0
"""Three watches' length: each ends after 45 s, and a bookmark comes before."""

Answer = tuple[int, str]


class Health:
    """Judges the process by the ages of its watches."""

    def __init__(
        self,
        ages: Mapping[str, Callable[[], float]],
        api_answers: Callable[[], bool],
        ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ages = ages
        self._api_answers = api_answers
        self._ready = ready
        self._clock = clock
        self._started = clock()

    def healthz(self) -> Answer:
        """(status, text) for the liveness probe."""
        up = self._clock() - self._started
        # a watch that never began is as old as the process
        stale = {resource: min(age(), up) for resource, age in self._ages.items() if min(age(), up) > STALE_SECONDS}
        if not stale:
            return 200, "ok\n"
        told = ", ".join(f"{resource} {age:.0f} s" for resource, age in sorted(stale.items()))
        if self._api_answers():
            return 503, f"stale watches: {told}\n"
        return 200, f"the API server does not answer; last heard of: {told}\n"

    def readyz(self) -> Answer:
        """(status, text) for the readiness probe."""
        return (200, "ok\n") if self._ready() else (503, "the first lists have not come yet\n")


class HealthServer:
    """Serves health and metrics on all addresses; port 0 takes any."""

    def __init__(self, port: int, health: Health, registry: CollectorRegistry) -> None:
        self._server = _Server(("", port), _handler(health, registry))
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    """Listens on all addresses, of IPv6 too where there is any."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Take a socket of both kinds in the place of the one of IPv4."""
        port = self.server_address[1]
        self.socket.close()
        self.socket = listening_socket(everywhere(), int(port))
        self.server_address = self.socket.getsockname()


def _handler(health: Health, registry: CollectorRegistry) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 10
        server_version = "tuneyard"
        sys_version = ""

        def do_GET(self) -> None:
            """Answer one probe."""
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)
                return
            answers = {"/healthz": health.healthz, "/readyz": health.readyz}
            status, text = answers[path]() if path in answers else (404, "not found\n")
            self._answer(status, text.encode(), "text/plain; charset=utf-8")

        def _answer(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Probes every few seconds are not worth a line."""

    return Handler
