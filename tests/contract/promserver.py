"""A real Prometheus on loopback that scrapes a page of the test."""

from __future__ import annotations

import http.server
import json
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml

from cluster import gobuild
from cluster.progress import Progress
from tests.contract.dying import die_with_parent
from tests.contract.operator_process import eventually
from tests.contract.ports import free_port


class PrometheusServer:
    """`with PrometheusServer(folder, series) as server:`; then the series can be asked for."""

    def __init__(self, folder: Path, series: Mapping[str, float], *, honor_labels: bool = False) -> None:
        self.folder = folder
        self._honor_labels = honor_labels
        self.series = dict(series)
        """What the page shows, which is read every second."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._program = gobuild.ensure(["prometheus"], Progress())["prometheus"]
        self._page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._page.daemon_threads = True
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._page.serve_forever, args=(0.05,), daemon=True).start()
        target = f"127.0.0.1:{self._page.server_address[1]}"
        scrape = {
            "job_name": "test",
            "scrape_interval": "1s",
            "honor_labels": self._honor_labels,
            "static_configs": [{"targets": [target]}],
        }
        config = self.folder / "prometheus.yml"
        config.write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(self._program),
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self.folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
            )
        for series, value in self.series.items():
            eventually(partial(self._shows, series, value), self.said)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
        self._page.shutdown()
        self._page.server_close()

    def known(self, series: str) -> float | None:
        """The newest value that the server has of a series."""
        assert self._process is not None and self._process.poll() is None, self.said()
        query = urllib.parse.urlencode({"query": series})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=5) as answer:
                found = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, OSError):
            return None
        return float(found[0]["value"][1]) if found else None

    def _shows(self, series: str, value: float) -> bool:
        return self.known(series) == value

    def said(self) -> str:
        """The end of its log."""
        return (self.folder / "server.log").read_text(errors="replace")[-3000:]

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        server = self

        class Page(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = "".join(f"{series} {value}\n" for series, value in server.series.items()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        return Page
