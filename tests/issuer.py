"""An issuer of tokens: its keys, tokens signed with them and with what attackers have, and a server of its JWKS."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import time
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ISSUER, AUDIENCE = "https://login.example.com", "tuneyard"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _number(value: int, length: int | None = None) -> str:
    return _base64(value.to_bytes(length or (value.bit_length() + 7) // 8, "big"))


def unsigned(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """What is signed of a token."""
    return f"{_base64(json.dumps(header).encode())}.{_base64(json.dumps(claims).encode())}"


def claims_of(tenant: str | None = "acme", **more: Any) -> dict[str, Any]:
    """Good claims, but for what `more` says; None removes one."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "user-1", "iat": now, "exp": now + 600, "tenant": tenant, **more}
    return {name: value for name, value in claims.items() if value is not None}


class SigningKey:
    """RSA, or EC where asked."""

    def __init__(self, kid: str, *, curve: bool = False) -> None:
        self.kid = kid
        self._rsa = None if curve else rsa.generate_private_key(65537, 2048)
        self._ec = ec.generate_private_key(ec.SECP256R1()) if curve else None

    @property
    def alg(self) -> str:
        return "RS256" if self._rsa else "ES256"

    def jwk(self) -> dict[str, str]:
        """The public part."""
        told = {"kid": self.kid, "use": "sig", "alg": self.alg}
        if self._rsa:
            public = self._rsa.public_key().public_numbers()
            return told | {"kty": "RSA", "n": _number(public.n), "e": _number(public.e)}
        assert self._ec
        point = self._ec.public_key().public_numbers()
        return told | {"kty": "EC", "crv": "P-256", "x": _number(point.x, 32), "y": _number(point.y, 32)}

    def pem(self) -> bytes:
        """The public part as a file, which everybody has."""
        key = self._rsa or self._ec
        assert key
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, claims: dict[str, Any] | None = None, **header: Any) -> str:
        """A token with these claims; `header` changes what its header says."""
        said = {"alg": self.alg, "typ": "JWT", "kid": self.kid, **header}
        text = unsigned({n: v for n, v in said.items() if v is not None}, claims or claims_of())
        if self._rsa:
            return f"{text}.{_base64(self._rsa.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"
        assert self._ec
        r, s = decode_dss_signature(self._ec.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def by_secret(secret: bytes, claims: dict[str, Any] | None = None, **header: Any) -> str:
    """A token signed with HS256."""
    text = unsigned({"alg": "HS256", "typ": "JWT", **header}, claims or claims_of())
    return f"{text}.{_base64(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def jwks(*keys: SigningKey) -> str:
    """The list of those keys."""
    return json.dumps({"keys": [key.jwk() for key in keys]})


class JwksServer:
    """Where the issuer has its signing keys; it can be away, or say nonsense."""

    def __init__(self, *keys: SigningKey, tls: ssl.SSLContext | None = None) -> None:
        self.text, self.status, self.asked = jwks(*keys), 200, 0
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def uri(self) -> str:
        return f"http{'s' if self._tls else ''}://localhost:{self.port}/keys"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of before if there was one."""
        app = web.Application()
        app.router.add_get("/keys", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Be away."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(text=self.text, status=self.status, content_type="application/json")
