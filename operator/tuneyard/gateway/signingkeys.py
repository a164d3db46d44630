"""The signing keys that the installation gives for tokens, from a mounted file to Envoy, which asks every few seconds.

Rules:
- the file is read anew for each request: the kubelet replaces it when the ConfigMap has changed;
- what is no list of public keys is not passed on, so that Envoy goes on with those that it has: it is told as an error,
  once for each content, and counted. Secret keys (`oct`, or a private part) are refused: a ConfigMap is no place for
  them, and with `oct` whoever reads it could make tokens.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry, Gauge

from tuneyard.systems.envoy.tokens import KEYS_PATH

_PUBLIC = ("RSA", "EC", "OKP")
_log = logging.getLogger(__name__)


def problem_of(text: str) -> str:
    """What is wrong with a list of signing keys; empty: nothing."""
    try:
        keys = json.loads(text)["keys"]
        kinds = [(str(key.get("kty")), "d" in key) for key in keys]
    except (ValueError, TypeError, KeyError, AttributeError):
        return 'it is no JWKS: {"keys": [...]}'
    if not kinds:
        return "it holds no key"
    if any(kind not in _PUBLIC or private for kind, private in kinds):
        return f"it holds a key that is not public: only the public parts of {', '.join(_PUBLIC)} may be there"
    return ""


class SigningKeys:
    """Answers Envoy."""

    def __init__(self, path: Path, registry: CollectorRegistry) -> None:
        """`path`: of the file, which may come later."""
        self._path = path
        self._told = ""
        self._wrong = Gauge(
            "tuneyard_gateway_signing_keys_unreadable",
            "1 while the signing keys of tokens that the installation gives cannot be used.",
            registry=registry,
        )

    def join(self, app: web.Application) -> None:
        """Answer there."""
        app.router.add_get(KEYS_PATH, self._answer)

    async def _answer(self, _: web.Request) -> web.Response:
        try:
            text = self._path.read_text(encoding="utf-8")
            problem = problem_of(text)
        except (OSError, UnicodeDecodeError) as error:
            text, problem = "", f"it cannot be read: {error}"
        self._tell(problem)
        return web.Response(status=503) if problem else web.Response(text=text, content_type="application/json")

    def _tell(self, problem: str) -> None:
        self._wrong.set(bool(problem))
        if problem and problem != self._told:
            _log.error("the signing keys in %s are not used: %s", self._path, problem)
        elif self._told and not problem:
            _log.info("the signing keys in %s are used again", self._path)
        self._told = problem
