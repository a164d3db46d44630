"""Tokens in the place of keys: Envoy's own filter (jwt_authn) proves them, the script `extract` goes by what it found.

Rules:
- the filter refuses nobody: it leaves the claims of a token that it has proven in dynamic metadata, else what is wrong
  with it. So refusals are the scripts', in OpenAI's shape, and a key beside tokens is no failure. Nobody but the filter
  writes there, and a script that fails leaves the gate closed: what is not proven gets no further;
- a token counts in `Authorization: Bearer` alone. Envoy would look into the query too, where tokens end up in logs;
- it must be of the issuer, for one of the audiences, and end some day: one without `exp` would be a key that nobody can
  take back. CLOCK_SKEW seconds are forgiven;
- Envoy fetches the signing keys by itself, before they are needed and again every REFRESH seconds, and goes on with
  what it has while nobody answers. An Envoy that has none yet asks with each token that comes, the script says 503;
  tenants' keys need none of this;
- where the installation gives the signing keys itself, they come in the same way, over the Unix socket of the gateway
  process, which reads them from a mounted file: a new file needs no restart;
- proven tokens are not remembered (jwt_cache_config): Envoy would believe them after their signing key is gone;
- claims are removed from the metadata when the tenant is known: no log and no other process gets them.
Without tokens nothing of this is in a configuration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from tuneyard.systems.envoy.documents import Json, extension, script, static_cluster, tcp
from tuneyard.systems.envoy.outside import SYSTEM_CA, believed, is_address

FILTER = "jwt_authn"
METADATA = "envoy.filters.http.jwt_authn"
"""Where the filter leaves what it found, whatever it is called."""
CLUSTER = "jwks"
KEYS_PATH = "/jwks"
"""Where the gateway process says on its Unix socket which signing keys the installation has given."""

CLOCK_SKEW = 60
REFRESH, REFRESH_OWN = 60, 5
"""Seconds: from the issuer, and from the process beside it, which only reads a file."""
_PATIENCE = "3s"
"""For one answer of the issuer; an Envoy that starts waits so long before it listens, if it must."""
_AT_ONCE = 32
"""Fetches of one Envoy that has no signing keys: more tokens than that get 503 at once."""

CLAIM = re.compile(r"[A-Za-z0-9_./:@-]{1,253}")
"""What may be the claim's name or path: it becomes a text of a script."""


@dataclass(frozen=True)
class Tokens:
    """Which tokens are taken, and how the tenant stands in them."""

    issuer: str
    audiences: tuple[str, ...]
    claim: str
    """Name of the claim, or its path by dots."""
    jwks_uri: str = ""
    """Where the issuer has its signing keys; empty: the gateway process has them."""
    ca: str = ""
    """File of the authority that the issuer's server is signed by, in Envoy's container; empty: the usual ones."""
    keys_too: bool = False
    """Whether tenants' keys are taken as well."""


def token_script(tokens: Tokens) -> str:
    """What stands behind the script `tenants`, where tokens are taken."""
    constants = f"local TENANT_CLAIM, KEYS_TOO = '{tokens.claim}', {str(tokens.keys_too).lower()}\n"
    return constants + script("tokens")


def token_filter(tokens: Tokens, own_keys: str) -> Json:
    """The filter; `own_keys`: the cluster of the gateway process."""
    own = not tokens.jwks_uri
    asked: Json = {"uri": f"http://{own_keys}{KEYS_PATH}", "cluster": own_keys, "timeout": _PATIENCE}
    if not own:
        asked |= {"uri": tokens.jwks_uri, "cluster": CLUSTER}
    provider = {
        "issuer": tokens.issuer,
        "audiences": list(tokens.audiences),
        "require_expiration": True,
        "clock_skew_seconds": CLOCK_SKEW,
        "from_headers": [{"name": "authorization", "value_prefix": f"{b}earer "} for b in "Bb"],
        # it is the script that removes the token: it looks at how it was sent
        "forward": True,
        "payload_in_metadata": "claims",
        "failed_status_in_metadata": "failed",
        "remote_jwks": {
            "http_uri": asked,
            "cache_duration": f"{REFRESH_OWN if own else REFRESH}s",
            "async_fetch": {"failed_refetch_duration": "1s"},
        },
    }
    either = [{"provider_name": "tenants"}, {"allow_missing_or_failed": {}}]
    return extension(
        FILTER,
        "filters.http.jwt_authn.v3.JwtAuthentication",
        providers={"tenants": provider},
        rules=[{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": either}}}],
    )


def token_clusters(tokens: Tokens | None) -> list[Json]:
    """The issuer's server as a cluster, none without one."""
    if tokens is None or not tokens.jwks_uri:
        return []
    url = urlsplit(tokens.jwks_uri)
    host, encrypted = url.hostname or "", url.scheme == "https"
    limits = {"max_connections": _AT_ONCE, "max_pending_requests": _AT_ONCE, "max_requests": _AT_ONCE}
    cluster = static_cluster(
        CLUSTER,
        tcp(host, url.port or (443 if encrypted else 80)),
        type="STATIC" if is_address(host) else "LOGICAL_DNS",
        circuit_breakers={"thresholds": [limits]},
        **({} if is_address(host) else {"dns_lookup_family": "ALL", "wait_for_warm_on_init": False}),
        **({"transport_socket": believed(host, tokens.ca or SYSTEM_CA)} if encrypted else {}),
    )
    return [cluster]
