"""How a gateway speaks TLS to clients, as its pod says by environment.

| variable | meaning | default |
|---|---|---|
| TUNEYARD_TLS_CERTIFICATE | folder with tls.crt and tls.key, in Envoy's container alone; none: no TLS | none |
| TUNEYARD_TLS_PORT | port of Envoy for TLS | 8443 |
| TUNEYARD_TLS_MIN_VERSION | 1.2 or 1.3 | 1.2 |
| TUNEYARD_TLS_PLAIN | false: the plain port is for gates only | true |
| TUNEYARD_TLS_CLIENT_CA | folder with ca.crt: only clients with a certificate of it are let in | none |
| TUNEYARD_TLS_SECRET | name of the Secret behind the first, for messages | none |
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuneyard.api import names
from tuneyard.systems.envoy.tls import MinVersion, Tls

_VERSIONS: dict[str, MinVersion] = {"1.2": "1.2", "1.3": "1.3"}


def tls_options(environment: Mapping[str, str], directory: Path) -> Tls | None:
    """What the environment says, None for no TLS; ValueError where it makes no sense."""
    folder = environment.get("TUNEYARD_TLS_CERTIFICATE")
    if not folder:
        return None
    version = environment.get("TUNEYARD_TLS_MIN_VERSION") or "1.2"
    if version not in _VERSIONS:
        raise ValueError(f"TUNEYARD_TLS_MIN_VERSION must be 1.2 or 1.3, not {version!r}")
    plain, client_ca = environment.get("TUNEYARD_TLS_PLAIN") != "false", environment.get("TUNEYARD_TLS_CLIENT_CA") or ""
    if plain and client_ca:
        raise ValueError("TUNEYARD_TLS_CLIENT_CA asks for certificates of clients: set TUNEYARD_TLS_PLAIN=false too")
    return Tls(
        port=int(environment.get("TUNEYARD_TLS_PORT") or names.GATEWAY_TLS_PORT),
        certificate=folder,
        sources=str(directory),
        min_version=_VERSIONS[version],
        client_ca=client_ca,
        plain=plain,
        secret=environment.get("TUNEYARD_TLS_SECRET") or "",
    )
