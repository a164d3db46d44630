"""What a gateway process makes of Envoy's page of certificates, and of how its pod says what there is to be."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from tuneyard.gateway.certificate import Certificate, expiry
from tuneyard.gateway.tlsoptions import tls_options
from tuneyard.systems.envoy.tls import Tls

NOW = 1_767_225_600.0  # 2026-01-01
METRIC = "tuneyard_gateway_certificate_expires_seconds"


def page(*chains: tuple[str, ...]) -> str:
    return json.dumps(
        {"certificates": [{"ca_cert": [], "cert_chain": [{"expiration_time": t} for t in c]} for c in chains]}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"certificates": []}', None),
        ('{"certificates": [{"ca_cert": [{"expiration_time": "2025-01-01T00:00:00Z"}]}]}', None),
        (page(()), None),
        (page(("2026-01-01T00:01:00Z",)), NOW + 60),
        (page(("2026-01-01T00:01:00Z", "2026-01-01T00:00:30Z")), NOW + 30),
        (page(("2026-01-01T00:01:00Z",), ("2025-12-31T23:59:00Z",)), NOW - 60),
    ],
)
def test_the_first_to_expire_counts(text: str, expected: float | None) -> None:
    assert expiry(text) == expected


class Envoy:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.page: str | Exception = '{"certificates": []}'

    async def certificates(self) -> str:
        if isinstance(self.page, Exception):
            raise self.page
        return self.page


async def test_what_is_said_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    envoy, registry = Envoy(), CollectorRegistry()
    now = NOW
    certificate = Certificate(envoy.certificates, lambda: now, registry, folder="/etc/tls", secret="mine")

    async def said(page: str | Exception, looks: int = 5) -> list[str]:
        caplog.clear()
        envoy.page = page
        with caplog.at_level(logging.INFO):
            for _ in range(looks):
                await certificate.look()
        return [record.getMessage() for record in caplog.records]

    def ready() -> bool:
        return certificate.ready

    assert not await said(page(), looks=2), "Envoy has only just started"
    (message,) = await said(page())
    assert message.startswith("not ready: Envoy has no certificate for TLS. /etc/tls (Secret mine) must hold tls.crt")
    assert not ready()
    assert registry.get_sample_value(METRIC) == 0
    assert len(await said(page(("2026-01-01T00:01:00Z",)))) == 1
    assert ready()
    assert registry.get_sample_value(METRIC) == 60
    assert not await said(aiohttp.ClientConnectionError("away"))
    assert ready(), "what it last said holds"
    assert len(await said("<html>")) == 1
    now = NOW + 90
    (message,) = await said(page(("2026-01-01T00:01:00Z",)))
    assert message.startswith("the certificate in /etc/tls (Secret mine) has expired")
    assert ready(), "it is still shown"
    assert registry.get_sample_value(METRIC) == -30
    (message,) = await said(page())
    assert not ready(), "an Envoy that started anew and found none"


def test_the_environment_says_how() -> None:
    folder = {"TUNEYARD_TLS_CERTIFICATE": "/etc/tls"}
    assert tls_options({}, Path("/run")) is None
    assert tls_options(folder, Path("/run")) == Tls(port=8443, certificate="/etc/tls", sources="/run")
    every = {
        "TUNEYARD_TLS_PORT": "9000",
        "TUNEYARD_TLS_MIN_VERSION": "1.3",
        "TUNEYARD_TLS_PLAIN": "false",
        "TUNEYARD_TLS_CLIENT_CA": "/etc/ca",
        "TUNEYARD_TLS_SECRET": "mine",
    }
    assert tls_options(folder | every, Path("/run")) == Tls(
        9000, "/etc/tls", "/run", min_version="1.3", client_ca="/etc/ca", plain=False, secret="mine"
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"TUNEYARD_TLS_MIN_VERSION": "1.1"}, "must be 1.2 or 1.3"),
        ({"TUNEYARD_TLS_CLIENT_CA": "/etc/ca"}, "TUNEYARD_TLS_PLAIN=false"),
    ],
)
def test_what_would_be_less_safe_than_it_looks_is_refused(more: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tls_options({"TUNEYARD_TLS_CERTIFICATE": "/etc/tls", **more}, Path("/run"))
