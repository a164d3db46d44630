"""Whether clients need keys, tokens or either, and which tokens, as the gateway's pod says by environment.

| variable | meaning | default |
|---|---|---|
| TUNEYARD_JWT_ISSUER | `iss` of the tokens | needed where tokens are taken |
| TUNEYARD_JWT_AUDIENCES | JSON list: a token must be for one of these (`aud`) | needed |
| TUNEYARD_JWT_CLAIM | the claim that names the tenant, or its path by dots | tenant |
| TUNEYARD_JWT_JWKS_URI | where the issuer has its signing keys | none |
| TUNEYARD_JWT_JWKS_FILE | file with signing keys, in this process's container | none; one of the two |
| TUNEYARD_JWT_CA | file with the authority of the first, in Envoy's container | the usual ones |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tuneyard.systems.envoy.tokens import CLAIM, Tokens

NOBODY = ("", "None")
"""Modes in which clients need nothing."""
_KEYS, _TOKENS, _BOTH = "ApiKeys", "Jwt", "ApiKeysAndJwt"


@dataclass(frozen=True)
class GivenTokens:
    """Which tokens are taken, and what they are proven with if the installation has given that."""

    accepted: Tokens
    jwks: Path | None


def token_options(environment: Mapping[str, str]) -> GivenTokens | None:
    """What the environment says, None where no tokens are taken; ValueError where it makes no sense.

    A mode that is none must not become `everybody may`.
    """
    mode = environment.get("TUNEYARD_AUTH", "")
    if mode not in (*NOBODY, _KEYS, _TOKENS, _BOTH):
        raise ValueError(f"TUNEYARD_AUTH is None, {_KEYS}, {_TOKENS} or {_BOTH}, not {mode}")
    if mode not in (_TOKENS, _BOTH):
        return None
    issuer = environment.get("TUNEYARD_JWT_ISSUER", "")
    if not issuer:
        raise ValueError("TUNEYARD_JWT_ISSUER is missing: tokens of any issuer would be taken")
    claim = environment.get("TUNEYARD_JWT_CLAIM") or "tenant"
    if not CLAIM.fullmatch(claim):
        raise ValueError(f"TUNEYARD_JWT_CLAIM must be letters, digits and _ . / : @ -, not {claim!r}")
    uri, file = environment.get("TUNEYARD_JWT_JWKS_URI", ""), environment.get("TUNEYARD_JWT_JWKS_FILE", "")
    if bool(uri) == bool(file):
        raise ValueError("one of TUNEYARD_JWT_JWKS_URI and TUNEYARD_JWT_JWKS_FILE must say where the signing keys are")
    accepted = Tokens(
        issuer=issuer,
        audiences=_audiences(environment.get("TUNEYARD_JWT_AUDIENCES", "")),
        claim=claim,
        jwks_uri=_address(uri),
        ca=environment.get("TUNEYARD_JWT_CA", ""),
        keys_too=mode == _BOTH,
    )
    return GivenTokens(accepted, Path(file) if file else None)


def _audiences(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found or not all(isinstance(one, str) and one for one in found):
        raise ValueError("TUNEYARD_JWT_AUDIENCES must be a JSON list: tokens for other services would be taken")
    return tuple(found)


def _address(uri: str) -> str:
    url = urlsplit(uri)
    if uri and (url.scheme not in ("http", "https") or not url.hostname or url.username):
        raise ValueError("TUNEYARD_JWT_JWKS_URI must be http:// or https:// and a host, without credentials")
    return uri
