"""Reads from the cluster's API server while waiting for it: plain HTTPS with the administrator's certificate.

Waiting asks many times a second; a kubectl each time would take the processor from what is waited for.
"""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

_SECONDS = 5


class _Socket(ssl.SSLSocket):
    """Closes itself.

    Where the peer has gone before the handshake, `wrap_socket` raises and forgets the socket that it has made; the
    collector then closes it with a warning, in the middle of something else.
    """

    def __del__(self) -> None:
        self.close()


class Api:
    """The API server at a loopback address, `pki` being the folder with the cluster's certificates."""

    def __init__(self, address: str, pki: Path) -> None:
        self._server = f"https://{address}"
        self._context = ssl.create_default_context(cafile=pki / "ca.crt")
        self._context.sslsocket_class = _Socket
        self._context.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def ready(self) -> bool:
        """Whether it says that it is ready."""
        try:
            return self._read("/readyz") == b"ok"
        except (HTTPError, URLError, OSError):
            # Not listening yet, the relay found nobody, or some of its own checks still fail.
            return False

    def get(self, path: str) -> dict[str, Any] | None:
        """The object at `path`; None when there is none, or nobody to ask just now."""
        try:
            answer: dict[str, Any] = json.loads(self._read(path))
        except (HTTPError, URLError, OSError):
            return None
        return answer

    def _read(self, path: str) -> bytes:
        try:
            with urlopen(self._server + path, context=self._context, timeout=_SECONDS) as answer:
                content: bytes = answer.read()
        except HTTPError as error:
            # it holds the connection, which would be closed with a warning whenever the collector finds it
            error.close()
            raise
        return content
