"""TLS between gateways and model pods: the pod's front takes it on the port of plain HTTP, gateways choose by endpoint.

Rules:
- a front looks at a connection's first bytes: TLS, or plain. While pools roll to it and back, and where a gateway is
  older than a pod, both go on; the kubelet's probes stay plain;
- a gateway speaks TLS to the endpoints whose pods say that they can, and then nothing else: the certificate must be of
  the installation's authority and name this very pool before a byte (the engine's key, a prompt) is sent;
- what a pod says of itself is its tenant's word: one that says it cannot gets its own pool's requests in plain text;
- where pods are to take TLS (`podTls.enabled`) every cluster is ready for it, whichever pods there are just now: one
  that changed with the first pod would be built anew by Envoy, just when requests wait for it. Elsewhere only those
  clusters are whose pods say that they take it still: a thousand of them are a thousand contexts.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneyard.api import names
from tuneyard.planning.endpoints import Endpoint
from tuneyard.systems.envoy.documents import EXTENSIONS, Json, extension

SECRET = "front"  # noqa: S105
"""Envoy's name of the front's certificate."""
_MATCH = "envoy.transport_socket_match"
_SPEAKS: Json = {"tls": True}


def to_pods(namespace: str, pool: str, endpoints: Iterable[Endpoint], authority: str, expected: bool) -> Json:
    """What a cluster of these endpoints says of TLS; `authority` in PEM, empty: TLS is spoken to nobody.

    `expected`: pods are to take TLS.
    """
    if not authority or not (expected or any(e.tls for e in endpoints)):
        return {}
    name = names.pod_server_name(namespace, pool)
    trusted = {
        "trusted_ca": {"inline_string": authority},
        "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": name}}],
    }
    socket = extension(
        "tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        sni=name,
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "validation_context": trusted,
        },
    )
    # endpoints that match nothing are spoken to in plain text
    return {"transport_socket_matches": [{"name": "tls", "match": _SPEAKS, "transport_socket": socket}]}


def spoken_to(endpoint: Endpoint) -> Json:
    """The endpoint's metadata by which its cluster chooses."""
    return {_MATCH: _SPEAKS} if endpoint.tls else {}


def front_source(folder: str) -> Json:
    """The file that tells a front where its certificate is; it holds no secret."""
    certificate = {
        "certificate_chain": {"filename": f"{folder}/tls.crt"},
        "private_key": {"filename": f"{folder}/tls.key"},
        "watched_directory": {"path": folder},
    }
    secret = {"@type": EXTENSIONS + "transport_sockets.tls.v3.Secret", "name": SECRET, "tls_certificate": certificate}
    return {"resources": [secret]}


def taking_both(listener: Json, source: str) -> Json:
    """A front's listener that takes TLS too; `source`: path of front_source's file."""
    (chain,) = listener["filter_chains"]
    told = {"path_config_source": {"path": source}, "initial_fetch_timeout": "1s", "resource_api_version": "V3"}
    socket = extension(
        "tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificate_sds_secret_configs": [{"name": SECRET, "sds_config": told}],
        },
    )
    encrypted = {
        **chain,
        "filter_chain_match": {"transport_protocol": "tls"},
        "transport_socket": socket,
        "transport_socket_connect_timeout": "10s",
    }
    inspector = extension("tls_inspector", "filters.listener.tls_inspector.v3.TlsInspector")
    return {
        **listener,
        "listener_filters": [inspector],
        "filter_chains": [encrypted, {**chain, "filter_chain_match": {"transport_protocol": "raw_buffer"}}],
    }
