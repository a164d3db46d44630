"""A ModelDeployment as an HTTPRoute of the Gateway API, for those who bring a gateway of their own. Pure.

Rules:
- weights are those in force (status.traffic), as they are at this moment: a route in their gateway follows nobody;
- an HTTPRoute reads no body. A request's model must stand in a header too, and a body reaches the backend as the client
  wrote it;
- to Tuneyard's own gateways that is enough: a route adds x-revision per backend, and they put the engine's name in;
- straight to pools it is enough only where one name is right for every revision with traffic: else it is refused, since
  the other revisions' requests would fail, or worse, be answered by a revision that was not chosen;
- no key is written: a route is no Secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tuneyard.api import names
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.cli.errors import UserError
from tuneyard.planning.children import service_name
from tuneyard.planning.endpoints import engine_name
from tuneyard.planning.pools import pool_of

Json = dict[str, Any]

_API = "gateway.networking.k8s.io"
_GRANTS = f"{_API}/v1beta1"
"""ReferenceGrant has this version in every release of the Gateway API since it came."""


@dataclass(frozen=True)
class Place:
    """A Kubernetes Service, or with port 0 a Gateway."""

    namespace: str
    name: str
    port: int = 0


@dataclass(frozen=True)
class Wanted:
    """What the route is to look like."""

    parents: Sequence[Place]
    hostnames: Sequence[str] = ()
    model_header: str = "x-model"


@dataclass(frozen=True)
class Exported:
    """Objects to apply, and what they cannot do."""

    objects: tuple[Json, ...]
    limits: tuple[str, ...]

    def text(self) -> str:
        """YAML with the limits on top."""
        head = "".join(f"# {line}\n" for line in self.limits)
        return head + yaml.safe_dump_all(self.objects, sort_keys=False, width=100_000)


def weights(deployment: ModelDeploymentResource) -> dict[str, int]:
    """Revisions with traffic, and their weights in force; UserError where nothing is served."""
    found = {t.revision: t.weight for t in deployment.status.traffic if t.weight}
    if not found:
        raise UserError(
            f"{deployment.metadata.name} serves nothing yet, so there are no weights to export: see "
            f"`tuneyard status {deployment.metadata.name}`"
        )
    return found


def to_gateway(deployment: ModelDeploymentResource, wanted: Wanted, service: Place) -> Exported:
    """Through Tuneyard's gateways, which are told the revision by header."""
    if deployment.spec.routing is None or not deployment.spec.routing.allow_revision_header:
        raise UserError(
            f"gateways take the header {names.REVISION_HEADER} from nobody for {deployment.metadata.name}: set "
            "spec.routing.allowRevisionHeader to true first. Without a split of your own no route per model is needed: "
            "the chart's gateway.httpRoute leads to all models, and Tuneyard's gateways split them"
        )
    namespace = deployment.metadata.namespace
    backends = [
        {
            **_reference(service, namespace),
            "weight": weight,
            "filters": [
                {
                    "type": "RequestHeaderModifier",
                    "requestHeaderModifier": {"set": [{"name": names.REVISION_HEADER, "value": revision}]},
                }
            ],
        }
        for revision, weight in weights(deployment).items()
    ]
    objects: list[Json] = [_route(deployment, wanted, backends)]
    if service.namespace != namespace:
        objects.append(_grant(deployment, service))
    limits = (
        *_limits(deployment, wanted),
        "Filters per backend are an extended feature of the Gateway API: see whether your implementation has it.",
        "A revision that is rejected keeps its share here until the route is exported again.",
    )
    return Exported(tuple(objects), limits)


def to_pools(
    deployment: ModelDeploymentResource, wanted: Wanted, adapters: Iterable[LoRAAdapterResource], operator: str
) -> Exported:
    """Straight to model pods. `operator`: the namespace of Tuneyard, whose pods alone NetworkPolicies let in."""
    shares, named = weights(deployment), {a.metadata.name: a for a in adapters}
    served = [r for r in deployment.spec.revisions if r.name in shares]
    for revision in served:
        if revision.external is not None:
            raise UserError(
                f"revision {revision.name} has no pods, {revision.external.host} serves it: export a route to the "
                "gateways instead (--to gateway)"
            )
    name = _one_name(served, named)
    pools: dict[str, int] = {}
    for revision in served:
        pool = pool_of(deployment, revision)
        pools[pool] = pools.get(pool, 0) + shares[revision.name]
    namespace = deployment.metadata.namespace
    backends = [
        {**_reference(Place(namespace, service_name(pool), names.FRONT_PORT), namespace), "weight": weight}
        for pool, weight in pools.items()
    ]
    secrets = ", ".join(names.pool_key_secret(pool) for pool in pools)
    limits = (
        *_limits(deployment, wanted),
        f'The body is not rewritten: clients must send "model": "{name}". It is another name for other files.',
        f"Engines demand their pool's key: add `authorization: Bearer KEY` per backend yourself, from {secrets}.",
        f"Where NetworkPolicies are enforced, pods take requests from the namespace {operator} only.",
        "A pod without the adapter answers 503, and nothing tries another one; no answer is counted or judged.",
    )
    return Exported((_route(deployment, wanted, backends),), limits)


def _one_name(served: Iterable[Revision], adapters: dict[str, LoRAAdapterResource]) -> str:
    found: dict[str, str] = {}
    for revision in served:
        name = engine_name(revision, adapters.get(revision.adapter or ""))
        if name is None:
            raise UserError(
                f"nobody knows the digest of adapter {revision.adapter} yet, and so not its name in engines"
            )
        found[revision.name] = name
    if len(set(found.values())) > 1:
        told = ", ".join(f"{revision} is {name}" for revision, name in found.items())
        raise UserError(
            f"engines know the revisions by different names ({told}), and a route cannot put them into bodies: split "
            "these by Tuneyard's gateways (--to gateway)"
        )
    return next(iter(found.values()))


def _limits(deployment: ModelDeploymentResource, wanted: Wanted) -> tuple[str, ...]:
    return (
        f"Weights of {deployment.metadata.namespace}/{deployment.metadata.name} as they were in force when this was "
        "exported. They go stale: export and apply again after every change; rollouts and rollbacks do not reach it.",
        f"The model in the body is not looked at: clients, or your gateway, must say `{wanted.model_header}: "
        f"{deployment.model_name}` too.",
    )


def _reference(service: Place, namespace: str) -> Json:
    elsewhere = {} if service.namespace == namespace else {"namespace": service.namespace}
    return {"name": service.name, **elsewhere, "port": service.port}


def _route(deployment: ModelDeploymentResource, wanted: Wanted, backends: list[Json]) -> Json:
    match = {
        "path": {"type": "PathPrefix", "value": "/v1"},
        "headers": [{"name": wanted.model_header, "value": deployment.model_name}],
    }
    spec: Json = {"parentRefs": [{"name": p.name, "namespace": p.namespace} for p in wanted.parents]}
    if wanted.hostnames:
        spec["hostnames"] = list(wanted.hostnames)
    # without end: streams
    spec["rules"] = [{"matches": [match], "backendRefs": backends, "timeouts": {"request": "0s"}}]
    return {"apiVersion": f"{_API}/v1", "kind": "HTTPRoute", "metadata": _metadata(deployment), "spec": spec}


def _metadata(deployment: ModelDeploymentResource, namespace: str = "", name: str = "") -> Json:
    """No label of Tuneyard's management: nobody keeps these objects."""
    return {
        "name": name or deployment.metadata.name,
        "namespace": namespace or deployment.metadata.namespace,
        "labels": {names.LABEL_DEPLOYMENT: names.bounded(deployment.metadata.name)},
        "annotations": {f"{names.GROUP}/exported-generation": str(deployment.metadata.generation)},
    }


def _grant(deployment: ModelDeploymentResource, service: Place) -> Json:
    """The owner of that namespace allows the reference: it is applied with his rights."""
    route = {"group": _API, "kind": "HTTPRoute", "namespace": deployment.metadata.namespace}
    return {
        "apiVersion": _GRANTS,
        "kind": "ReferenceGrant",
        "metadata": _metadata(
            deployment, service.namespace, names.bounded(f"routes-of-{deployment.metadata.namespace}")
        ),
        "spec": {"from": [route], "to": [{"group": "", "kind": "Service", "name": service.name}]},
    }
