"""TLS between clients and the gateway's Envoy: a second listener, and what the plain one still does beside it.

Rules:
- the key is mounted into Envoy's container alone, and Envoy reads the files by itself (file-based SDS): the process
  that configures it only names them, so that neither it nor its rights ever hold a key;
- both files of a certificate are read anew when the kubelet moves its link `..data`, which it does for all of a
  Secret's files at once. What does not fit together is refused, and the one before goes on. Connections live on with
  what they began with;
- an Envoy that has read no certificate yet closes connections: it answers nobody in its own name;
- clients choose HTTP/2 or 1.1 by ALPN; all ciphers of TLS 1.2 are forward secret and authenticated;
- without a port of plain HTTP for clients (`plain`), the plain listener stays for gates, whose pods know no authority
  that signed this certificate: it takes only paths of theirs, and only on routes that need a gate's token, both
  refused by rbac, which fails closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tuneyard.api import names
from tuneyard.systems.envoy.documents import (
    EXTENSIONS,
    GATE_ROUTES,
    JSON_CONTENT,
    Json,
    error_body,
    extension,
    status_is,
    tcp,
)

MinVersion = Literal["1.2", "1.3"]
CERTIFICATE, CLIENT_CA = "certificate", "client_ca"
"""Envoy's names of what it reads; they stand in its counters: sds.certificate.key_rotation_failed."""
TLS_STAT_PREFIX = "clients_tls"

_VERSIONS: dict[MinVersion, str] = {"1.2": "TLSv1_2", "1.3": "TLSv1_3"}
_CIPHERS = (
    "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]",
    "[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""Of TLS 1.2; those of 1.3 are all good, and not to be chosen. In brackets the client chooses: not all have AES."""
_CURVES = ("X25519MLKEM768", "X25519", "P-256")
_GATE_PATHS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class Tls:
    """How clients are spoken to. Folders are as Envoy's container sees them."""

    port: int
    certificate: str
    """Folder with tls.crt and tls.key."""
    sources: str
    """Folder of the files that tell Envoy where to look, written beside its bootstrap."""
    min_version: MinVersion = "1.2"
    client_ca: str = ""
    """Folder with ca.crt, whose holders alone are let in; empty: everybody is."""
    plain: bool = True
    """Whether clients may use the plain listener too."""
    secret: str = ""
    """The Kubernetes Secret that is mounted there, for messages."""

    def source(self, secret: str) -> str:
        """The file that says where Envoy finds that secret."""
        return f"{self.sources}/tls-{secret}.json"


def _secret(name: str, **content: Json) -> Json:
    return {
        "resources": [{"@type": EXTENSIONS + "transport_sockets.tls.v3.Secret", "name": name, **content}],
    }


def sources(tls: Tls) -> dict[str, Json]:
    """The files that tell Envoy where to look, by path. They hold names of files and no secret."""
    certificate = {
        "certificate_chain": {"filename": f"{tls.certificate}/tls.crt"},
        "private_key": {"filename": f"{tls.certificate}/tls.key"},
        "watched_directory": {"path": tls.certificate},
    }
    told = {tls.source(CERTIFICATE): _secret(CERTIFICATE, tls_certificate=certificate)}
    if tls.client_ca:
        authority = {
            "trusted_ca": {"filename": f"{tls.client_ca}/ca.crt"},
            "watched_directory": {"path": tls.client_ca},
        }
        told[tls.source(CLIENT_CA)] = _secret(CLIENT_CA, validation_context=authority)
    return told


def _told_by(tls: Tls, secret: str) -> Json:
    source = {"path_config_source": {"path": tls.source(secret)}, "initial_fetch_timeout": "1s"}
    return {"name": secret, "sds_config": {**source, "resource_api_version": "V3"}}


def _transport(tls: Tls) -> Json:
    common: Json = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {
            "tls_minimum_protocol_version": _VERSIONS[tls.min_version],
            "tls_maximum_protocol_version": "TLSv1_3",
            "cipher_suites": list(_CIPHERS),
            "ecdh_curves": list(_CURVES),
        },
        "tls_certificate_sds_secret_configs": [_told_by(tls, CERTIFICATE)],
    }
    if tls.client_ca:
        common["validation_context_sds_secret_config"] = _told_by(tls, CLIENT_CA)
    return extension(
        "tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=bool(tls.client_ca),
    )


def _allow(name: str, policy: Json) -> Json:
    return extension(
        name,
        "filters.http.rbac.v3.RBAC",
        # counted apart from what `gate` refuses, which is a script's failure
        rules_stat_prefix=name,
        rules={"action": "ALLOW", "policies": {name: {"principals": [{"any": True}], **policy}}},
    )


def _gate_paths() -> Json:
    """Before any script: one of them answers clients by itself."""
    path = {"or_rules": {"rules": [{"url_path": {"path": {"exact": p}}} for p in _GATE_PATHS]}}
    token = {"header": {"name": names.GATE_TOKEN_HEADER, "present_match": True}}
    return _allow("gate_paths", {"permissions": [{"and_rules": {"rules": [path, token]}}]})


def _gate_routes() -> Json:
    """Once the route is known, which has compared the token: `xds.route_name.startsWith("gate/")`."""
    name = {"select_expr": {"operand": {"ident_expr": {"name": "xds"}}, "field": "route_name"}}
    starts = {"function": "startsWith", "target": name, "args": [{"const_expr": {"string_value": GATE_ROUTES}}]}
    return _allow("gate_routes", {"permissions": [{"any": True}], "condition": {"call_expr": starts}})


def _for_gates(manager: Json) -> Json:
    """The connection manager of a port that answers gates and nobody else."""
    message = "This port is not for clients: use HTTPS."
    refusal = {
        "filter": status_is("EQ", 403),
        "headers_to_add": [JSON_CONTENT],
        "body_format_override": {"json_format": error_body(message, "invalid_request_error", "https_required")},
    }
    mappers: Sequence[Json] = manager["local_reply_config"]["mappers"]
    filters: list[Json] = manager["http_filters"]
    known = next(n for n, one in enumerate(filters, 1) if one["name"] == "extract")
    return {
        **manager,
        # behind the scripts' own refusals, before what the gateway says of 403 elsewhere
        "local_reply_config": {"mappers": [mappers[0], refusal, *mappers[1:]]},
        "http_filters": [_gate_paths(), *filters[:known], _gate_routes(), *filters[known:]],
    }


def listeners(plain: Json, tls: Tls | None) -> list[Json]:
    """The gateway's listeners; `plain` takes clients' requests without TLS."""
    if tls is None:
        return [plain]
    ((chain,), address) = plain["filter_chains"], plain["address"]["socket_address"]["address"]
    encrypted = {
        **plain,
        "name": TLS_STAT_PREFIX,
        "stat_prefix": TLS_STAT_PREFIX,
        "address": tcp(address, tls.port),
        # a client that begins and never ends its handshake
        "filter_chains": [{**chain, "transport_socket": _transport(tls), "transport_socket_connect_timeout": "10s"}],
    }
    if tls.plain:
        return [plain, encrypted]
    (http,) = chain["filters"]
    for_gates = {**chain, "filters": [{**http, "typed_config": _for_gates(http["typed_config"])}]}
    return [{**plain, "filter_chains": [for_gates]}, encrypted]
