"""Which pods can serve a revision now: the one function that operator and gateways share.

Rules:
- a pod counts when its report can be read, its engine is Ready and serves the revision's base; one that is leaving only
  for what no other pod serves, and for a while (handover.py);
- with an adapter it counts only when it says Loaded under exactly the engine name that the adapter's known digest
  gives: while nobody knows the digest, or after it changed under the same name, no pod counts;
- pods count for nothing while the BaseModel or the LoRAAdapter object is missing, or the adapter is another base's;
- an external revision has one, its API's host, unless its credentials are missing (external.py);
- a report is a tenant's pod's own word: an address that cannot be another pod's front is not an endpoint. Otherwise a
  forged report could have gateways call themselves, or whatever else listens on their nodes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import PodReport
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.planning.pools import pool_of


class ReportingPod(Protocol):
    """What of a model pod matters here; PodObservation is one."""

    @property
    def name(self) -> str:
        """metadata.name."""

    @property
    def namespace(self) -> str:
        """metadata.namespace."""

    @property
    def pool(self) -> str:
        """Label tuneyard.dev/pool."""

    @property
    def deleted(self) -> bool:
        """Whether the pod is leaving."""

    @property
    def hands_over(self) -> bool:
        """Whether it is leaving and still serves what nobody else does."""

    @property
    def report(self) -> PodReport | None:
        """Its newest readable report."""


@dataclass(frozen=True, order=True)
class Endpoint:
    """One place that can answer: `address` is ip:port, `pod` the pod's name."""

    address: str
    pod: str
    tls: bool = False
    """Whether it takes TLS, by its own word."""


def adapter_digest(revision: Revision, adapter: LoRAAdapterResource | None) -> str | None:
    """The digest of the adapter that a revision serves, or None while there is none or it must not be asked for."""
    if adapter is None or revision.adapter is None or adapter.spec.base_model != revision.base_model:
        return None
    return adapter.pinned_digest


def engine_name(revision: Revision, adapter: LoRAAdapterResource | None) -> str | None:
    """What the engine, or somebody else's API, is asked for; None while that is not known or must not be asked for."""
    if revision.external is not None:
        return revision.external.model
    if revision.adapter is None:
        return revision.base_model
    digest = adapter_digest(revision, adapter)
    return names.engine_adapter_name(revision.adapter, digest) if digest else None


def is_address(text: str) -> bool:
    """Whether the text is `ip:port` (`[ip]:port` for IPv6) of something that can be a pod's front."""
    host, _, port = text.rpartition(":")
    if port != str(names.FRONT_PORT) or "%" in host:
        return False
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return False
    return bracketed == (address.version == 6) and not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
        or _is_no_pods(address)
    )


def _is_no_pods(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Reserved: broadcast, and IPv6 that holds an IPv4 address. Of IPv4, clouds do give 240.0.0.0/4 to pods."""
    return str(address) == "255.255.255.255" or (address.version == 6 and address.is_reserved)


def _serves(report: PodReport, revision: Revision, asked_for: str) -> bool:
    if report.engine != "Ready" or report.base_model != revision.base_model or not is_address(report.address):
        return False
    if revision.adapter is None:
        return True
    adapter = report.adapters.get(revision.adapter)
    return adapter is not None and adapter.state == "Loaded" and adapter.engine_name == asked_for


def ready_pods(
    deployment: ModelDeploymentResource,
    adapters: Iterable[LoRAAdapterResource],
    base_models: Iterable[BaseModelResource],
    pods: Iterable[ReportingPod],
    lacking: Collection[str] = (),
) -> dict[str, tuple[Endpoint, ...]]:
    """Endpoints per revision of the deployment, sorted by address.

    The arguments may hold objects of other namespaces and pools; those are left out. `lacking`: the external revisions
    that nothing can be sent to.
    """
    namespace = deployment.metadata.namespace
    known = {a.metadata.name: a for a in adapters if a.metadata.namespace == namespace}
    bases = {b.metadata.name for b in base_models if b.metadata.namespace == namespace}
    there = [p for p in pods if p.namespace == namespace]
    alive, leaving = [p for p in there if not p.deleted], [p for p in there if p.deleted and p.hands_over]
    result: dict[str, tuple[Endpoint, ...]] = {}
    for revision in deployment.spec.revisions:
        if (external := revision.external) is not None:
            there_is = revision.name not in lacking
            result[revision.name] = (Endpoint(f"{external.host}:{external.port}", external.host),) if there_is else ()
            continue
        asked_for = engine_name(revision, known.get(revision.adapter or ""))
        pool = pool_of(deployment, revision)
        if asked_for is None or revision.base_model not in bases:
            result[revision.name] = ()
            continue
        result[revision.name] = _serving(alive, pool, revision, asked_for) or _serving(
            leaving, pool, revision, asked_for
        )
    return result


def _serving(pods: Iterable[ReportingPod], pool: str, revision: Revision, asked_for: str) -> tuple[Endpoint, ...]:
    """Those of the pods that serve the revision."""
    return tuple(
        sorted(
            Endpoint(pod.report.address, pod.name, bool(pod.report.tls))
            for pod in pods
            if pod.pool == pool and pod.report is not None and _serves(pod.report, revision, asked_for)
        )
    )


def ready_endpoints(
    deployment: ModelDeploymentResource,
    adapters: Iterable[LoRAAdapterResource],
    base_models: Iterable[BaseModelResource],
    pod_reports: Iterable[ReportingPod],
    lacking: Collection[str] = (),
) -> dict[str, list[str]]:
    """Addresses (ip:port) per revision of the deployment, sorted; every revision has an entry."""
    found = ready_pods(deployment, adapters, base_models, pod_reports, lacking)
    return {revision: [e.address for e in endpoints] for revision, endpoints in found.items()}
