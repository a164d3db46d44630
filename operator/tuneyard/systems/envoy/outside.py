"""Servers of others that Envoy asks itself: how it knows that one is who it says. No byte is sent before that."""

from __future__ import annotations

import ipaddress

from tuneyard.systems.envoy.documents import Json, extension

SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"
"""Where Envoy's image has the authorities that the world trusts."""


def believed(host: str, authorities: str) -> Json:
    """TLS whose certificate must name the host (a name or an address) and come from an authority in that file."""
    by_address = is_address(host)
    matcher = {"san_type": "IP_ADDRESS" if by_address else "DNS", "matcher": {"exact": host}}
    trusted = {"trusted_ca": {"filename": authorities}, "match_typed_subject_alt_names": [matcher]}
    return extension(
        "tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        **({} if by_address else {"sni": host}),
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context": trusted,
        },
    )


def is_address(host: str) -> bool:
    """Whether there is no name to be looked up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
