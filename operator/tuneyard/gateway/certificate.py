"""The certificate that clients of this gateway are shown, by Envoy's own word: this process never sees its key.

Rules:
- what counts is what Envoy has in use, not what lies in the Secret: a certificate that Envoy refused is not there;
- without one the gateway is not ready, since Envoy closes every connection on that port;
- one that has expired is still shown: clients say best what they think of it, and nothing would be better without it;
- Envoy is asked every LOOK seconds, and oftener while it has none. It says in its own log why it refused a file.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

import aiohttp
from prometheus_client import CollectorRegistry, Gauge

LOOK, LOOK_WITHOUT = 5.0, 0.5
"""Seconds between two looks, with a certificate and without."""
_PATIENCE = 3
"""Looks that an Envoy which has just started may have none without being talked about."""

_log = logging.getLogger(__name__)


def expiry(certificates: str) -> float | None:
    """When the first certificate of Envoy's page /certs that it shows to somebody expires, in Unix time; None: none.

    A certificate comes with others that signed it; the first of its chain that expires makes it worthless.
    ValueError where the page is not one.
    """
    listed = json.loads(certificates)["certificates"]
    shown = [c["expiration_time"] for one in listed for c in one.get("cert_chain", ())]
    return min((datetime.fromisoformat(text).timestamp() for text in shown), default=None)


class Certificate:
    """Follows the certificate in use."""

    def __init__(
        self,
        ask: Callable[[], Awaitable[str]],
        now: Callable[[], float],
        registry: CollectorRegistry,
        *,
        folder: str,
        secret: str = "",
    ) -> None:
        """`ask` gets Envoy's page /certs, `now` is Unix time; `folder` and `secret`: where Envoy reads it from."""
        self._ask = ask
        self._now = now
        self._where = folder + (f" (Secret {secret})" if secret else "")
        self._expires: float | None = None
        self._without = 0
        self._said: object = ()
        Gauge(
            "tuneyard_gateway_certificate_expires_seconds",
            "Time until the certificate that clients are shown expires; negative afterwards, 0 while there is none.",
            registry=registry,
        ).set_function(lambda: 0.0 if self._expires is None else self._expires - self._now())

    @property
    def ready(self) -> bool:
        """Whether Envoy has a certificate to show."""
        return self._expires is not None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK if self.ready else LOOK_WITHOUT)

    async def look(self) -> None:
        """Ask once, and log what is new."""
        try:
            self._expires = expiry(await self._ask())
        except (aiohttp.ClientError, OSError, TimeoutError):
            return  # Envoy is away for a moment, or not there yet: what it last said holds
        except (ValueError, KeyError) as error:
            self._say(error.args, logging.ERROR, "Envoy's page of certificates cannot be read: %s", error)
            return
        self._report()

    def _report(self) -> None:
        if self._expires is None:
            self._without += 1
            self._said = ()
            if self._without == _PATIENCE:
                _log.error(
                    "not ready: Envoy has no certificate for TLS. %s must hold tls.crt and tls.key that belong "
                    "together, in PEM, as must the authority of clients if there is one; Envoy's log says what it "
                    "refuses. A corrected one needs no restart",
                    self._where,
                )
            return
        self._without = 0
        until = datetime.fromtimestamp(self._expires).astimezone().isoformat(timespec="seconds")
        if self._expires <= self._now():
            self._say(
                (self._expires, "expired"), logging.ERROR, "the certificate in %s has expired: %s", self._where, until
            )
        else:
            self._say(self._expires, logging.INFO, "the certificate in use is valid until %s", until)

    def _say(self, what: object, level: int, text: str, *args: object) -> None:
        """Once, until something else is to be said."""
        if what != self._said:
            self._said = what
            _log.log(level, text, *args)
