"""A ModelDeployment as an HTTPRoute: what is written, and what is refused because it would not hold."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.unit.cli import world
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.cli.errors import UserError
from tuneyard.cli.httproute import Exported, Place, Wanted, to_gateway, to_pools

WANTED = Wanted([Place("edge", "public")], ["models.example.com"])
SERVICE = Place("tuneyard-system", "tuneyard-gateway", 8080)


def adapter(name: str) -> LoRAAdapterResource:
    """One that was read once."""
    return LoRAAdapterResource.from_dict(world.adapter(name).to_dict() | {"status": {"digest": world.DIGEST}})


ADAPTERS = [adapter(world.V1), adapter(world.V2)]


def canary(*, header: bool = True, **spec: Any) -> ModelDeploymentResource:
    whole = world.deployment(ready=True).to_dict()
    whole["spec"] |= {"routing": {"allowRevisionHeader": header}, **spec}
    return ModelDeploymentResource.from_dict(whole)


def served_by(*revisions: dict[str, Any]) -> ModelDeploymentResource:
    """Revisions of equal weight."""
    weight = 100 // len(revisions)
    whole = world.deployment(ready=True).to_dict()
    whole["spec"] |= {
        "revisions": list(revisions),
        "traffic": [{"revision": r["name"], "weight": weight} for r in revisions],
    }
    whole["status"]["traffic"] = [{"revision": r["name"], "specWeight": weight, "weight": weight} for r in revisions]
    return ModelDeploymentResource.from_dict(whole)


def test_to_gateways_each_backend_names_its_revision() -> None:
    exported = to_gateway(canary(), WANTED, SERVICE)
    route, grant = exported.objects
    (rule,) = route["spec"]["rules"]
    assert [(b["weight"], b["filters"][0]["requestHeaderModifier"]["set"]) for b in rule["backendRefs"]] == [
        (90, [{"name": "x-revision", "value": "v1"}]),
        (10, [{"name": "x-revision", "value": "v2"}]),
    ]
    assert {(b["namespace"], b["name"], b["port"]) for b in rule["backendRefs"]} == {
        ("tuneyard-system", "tuneyard-gateway", 8080)
    }
    assert rule["matches"][0]["headers"] == [{"name": "x-model", "value": "acme-support"}]
    assert route["spec"]["hostnames"] == ["models.example.com"]
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "edge"}]
    assert grant["metadata"]["namespace"] == "tuneyard-system"
    assert grant["spec"]["from"][0]["namespace"] == "models"
    # in Tuneyard's own namespace no grant is needed
    (alone,) = to_gateway(canary(), WANTED, Place("models", "gateways", 443)).objects
    assert "namespace" not in alone["spec"]["rules"][0]["backendRefs"][0]


def test_what_is_written_says_what_it_cannot_do() -> None:
    text = to_gateway(canary(), WANTED, SERVICE).text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert any("go stale" in line for line in comments)
    assert any("`x-model: acme-support`" in line for line in comments)
    assert [d["kind"] for d in yaml.safe_load_all(text)] == ["HTTPRoute", "ReferenceGrant"]


def test_weights_are_those_in_force() -> None:
    whole = canary().to_dict()
    whole["status"]["traffic"][0] |= {"weight": 100}
    whole["status"]["traffic"][1] |= {"weight": 0, "withheld": "rejected"}
    route, _ = to_gateway(ModelDeploymentResource.from_dict(whole), WANTED, SERVICE).objects
    assert [b["weight"] for b in route["spec"]["rules"][0]["backendRefs"]] == [100]


def pools(deployment: ModelDeploymentResource, adapters: list[LoRAAdapterResource] = ADAPTERS) -> Exported:
    return to_pools(deployment, WANTED, adapters, "tuneyard-system")


def test_to_pools_where_one_name_is_right_for_all() -> None:
    shared = {"name": "shared", "baseModel": world.BASE, "adapter": world.V1}
    own = {"name": "own", "baseModel": world.BASE, "adapter": world.V1, "serving": {"replicas": 1}}
    exported = pools(served_by(shared, own))
    (route,) = exported.objects
    backends = route["spec"]["rules"][0]["backendRefs"]
    assert [b["weight"] for b in backends] == [50, 50]
    assert backends[0]["name"] == "smollm2-pool"
    assert backends[1]["name"] != backends[0]["name"]
    text = exported.text()
    assert f'"model": "{world.V1}-{world.DIGEST[7:19]}"' in text
    assert "smollm2-engine-key" in text
    # two revisions of one pool are one backend
    (route,) = pools(served_by(shared, {**shared, "name": "again"})).objects
    assert [b["weight"] for b in route["spec"]["rules"][0]["backendRefs"]] == [100]


@pytest.mark.parametrize(
    ("export", "words"),
    [
        (lambda: to_gateway(canary(header=False), WANTED, SERVICE), "spec.routing.allowRevisionHeader"),
        (lambda: to_gateway(nothing(), WANTED, SERVICE), "serves nothing yet"),
        (lambda: pools(canary()), "different names .*--to gateway"),
        (lambda: pools(served_by({"name": "v1", "baseModel": world.BASE, "adapter": "unknown"})), "digest of adapter"),
    ],
)
def test_what_would_not_hold_is_refused(export: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        export()


def nothing() -> ModelDeploymentResource:
    return ModelDeploymentResource.from_dict(canary().to_dict() | {"status": {}})
