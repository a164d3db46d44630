"""Custom resources and pod reports -> what Envoy is told, compared with files that people can read.

`TUNEYARD_UPDATE=1 .venv/bin/pytest tests/golden` writes the files anew and removes those without an input.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.envoy import validation_errors
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.gateway.world import pod_of
from tuneyard.planning.routes import GatewayRoutes, Vanished, gateway_routes
from tuneyard.systems.envoy.accesslogs import AccessLog, stdout_log
from tuneyard.systems.envoy.ads import packed
from tuneyard.systems.envoy.bootstrap import bootstrap
from tuneyard.systems.envoy.delta import CLUSTER, ENDPOINTS, ROUTES, SCOPE
from tuneyard.systems.envoy.documents import Json
from tuneyard.systems.envoy.front import front_config
from tuneyard.systems.envoy.tenancy import tenant_script
from tuneyard.systems.envoy.translate import ModelResources, list_resources, model_resources

FOLDER = Path(__file__).parent / "xds"
INPUTS = sorted(p.stem for p in (FOLDER / "in").glob("*.yaml"))
UPDATE = os.environ.get("TUNEYARD_UPDATE") == "1"


def routes_of(name: str) -> GatewayRoutes:
    """The routes that the objects of an input make. A pod's report stands readable beside its metadata."""
    objects: dict[str, list[dict[str, Any]]] = {}
    for document in yaml.safe_load_all((FOLDER / "in" / f"{name}.yaml").read_text()):
        objects.setdefault(document["kind"], []).append(document)
    for pod in objects.get("Pod", []):
        pod["metadata"]["annotations"] = {names.ANNOTATION_ADAPTERS: json.dumps(pod.pop("report"))}
    deployments = [ModelDeploymentResource.model_validate(d) for d in objects.get("ModelDeployment", [])]
    adapters = [LoRAAdapterResource.model_validate(a) for a in objects.get("LoRAAdapter", [])]
    bases = [BaseModelResource.model_validate(b) for b in objects.get("BaseModel", [])]
    return gateway_routes(
        {d.metadata.key: d for d in deployments},
        {a.metadata.key: a for a in adapters},
        {b.metadata.key: b for b in bases},
        [pod_of(p) for p in objects.get("Pod", [])],
        vanished=Vanished(),
        now=0.0,
    )


def resources_of(routes: GatewayRoutes) -> list[ModelResources]:
    models = [
        model_resources(m, lambda ns, pool: f"<key of {ns}/{pool}>", lambda ns, name: f"<token of {ns}/{name}>")
        for m in routes.values()
    ]
    return [*models, list_resources(routes.values())]


def document_of(name: str) -> Json:
    routes = routes_of(name)
    return {
        "routes": {
            m.model: {
                "deployment": f"{m.namespace}/{m.deployment}",
                "unserved": m.unserved,
                "revisions": {
                    r.name: {
                        "weight": r.weight,
                        "pool": r.pool,
                        "engine_name": r.engine_name,
                        **({"digest": r.digest} if r.adapter or r.digest else {}),
                        "endpoints": [f"{e.pod} {e.address}" for e in r.endpoints],
                    }
                    for r in m.revisions
                },
            }
            for m in routes.values()
        },
        "xds": [
            {
                "scopes": r.scopes,
                "routes": r.routes,
                "clusters": r.clusters,
                "assignments": r.assignments,
                "needs": sorted(r.needs),
            }
            for r in resources_of(routes)
        ],
    }


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


@pytest.mark.parametrize("name", INPUTS)
def test_what_envoy_is_told(name: str) -> None:
    path = FOLDER / "out" / f"{name}.yaml"
    text = yaml.dump(document_of(name), Dumper=_Plain, sort_keys=False, width=110)
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, "run with TUNEYARD_UPDATE=1, then read the difference"


def test_no_file_is_left_over() -> None:
    orphans = [p for p in (FOLDER / "out").glob("*.yaml") if p.stem not in INPUTS]
    if UPDATE:
        for orphan in orphans:
            orphan.unlink()
        orphans = []
    assert not orphans


@pytest.mark.parametrize("name", INPUTS)
def test_the_types_fit(name: str) -> None:
    """Every field is one of Envoy's protocol buffers."""
    for resources in resources_of(routes_of(name)):
        for type_url, documents in (
            (SCOPE, resources.scopes),
            (ROUTES, resources.routes),
            (CLUSTER, resources.clusters),
            (ENDPOINTS, resources.assignments),
        ):
            for document in documents.values():
                assert packed(type_url, document).version


@pytest.mark.lasting
@pytest.mark.envoy
@pytest.mark.parametrize("name", INPUTS)
def test_envoy_accepts_it(name: str) -> None:
    """Envoy drops what it does not know from xDS without a word, but refuses it in a static configuration.

    Each model, and the list of them, has a listener of its own: one Envoy looks at all.
    """
    config = bootstrap("golden", requests="/dev/null")
    static = config["static_resources"]
    template = static["listeners"][0]
    static["listeners"] = []
    for number, resources in enumerate(resources_of(routes_of(name))):
        listener = copy.deepcopy(template) | {"name": str(number)}
        listener["address"]["socket_address"]["port_value"] += number
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["scoped_routes"]
        (manager["route_config"],) = resources.routes.values()
        static["listeners"].append(listener)
        static["clusters"] += resources.clusters.values()
        for cluster_name, assignment in resources.assignments.items():
            # endpoints stand in a cluster of type STATIC
            cluster = resources.clusters[cluster_name]
            as_static = {k: v for k, v in cluster.items() if k not in ("eds_cluster_config", "name", "type")}
            static["clusters"].append(
                {**as_static, "name": f"{cluster_name}/static", "type": "STATIC", "load_assignment": assignment}
            )
    assert validation_errors(config) == ""


@pytest.mark.lasting
@pytest.mark.envoy
def test_envoy_accepts_the_static_configurations() -> None:
    assert validation_errors(bootstrap("golden", requests="/dev/null")) == ""
    assert validation_errors(bootstrap("golden", requests="/dev/null", memory=1 << 30)) == ""
    assert validation_errors(bootstrap("golden", requests="/dev/null", tenants=tenant_script())) == ""
    assert validation_errors(bootstrap("golden", requests="/dev/null", access_log=stdout_log(AccessLog.ERRORS))) == ""
    assert validation_errors(front_config()) == ""
    broken = front_config()
    broken["static_resources"]["no_such_field"] = 1
    assert "no_such_field" in validation_errors(broken)
