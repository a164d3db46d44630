"""What the API server says of `serving.autoscaling` blocks that cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import Cluster
from tuneyard.systems.kube.client import ApiError

pytestmark = pytest.mark.apiserver

GOOD = {"minReplicas": 1, "maxReplicas": 4, "targets": {"inFlightRequests": 16}}
DEAR = {"perHour": 10, "perReplicaHour": 4}


def base(serving: dict[str, Any]) -> dict[str, Any]:
    return {"source": {"volume": {"name": "models", "path": "m"}}, "serving": serving}


def chat(serving: dict[str, Any]) -> dict[str, Any]:
    return {
        "revisions": [{"name": "v1", "baseModel": "b", "serving": serving}],
        "traffic": [{"revision": "v1", "weight": 100}],
        "serving": serving,
    }


@pytest.fixture(scope="module")
def cluster(apiserver: ApiServer) -> Cluster:
    return Cluster(apiserver, "autoscaling-rules")


@pytest.mark.parametrize(
    "serving",
    [
        {"autoscaling": GOOD},
        {"autoscaling": {"maxReplicas": 1, "targets": {"ttft": {"max": "800ms"}}}},
        {"autoscaling": {**GOOD, "minReplicas": 0}, "scaleToZeroAfter": "30m"},
        {"autoscaling": {**GOOD, "minReplicas": 2, "costCeiling": DEAR}},
        {"autoscaling": {"external": True}},
        {
            "autoscaling": {
                **GOOD,
                "scaleUp": {"stabilizationWindow": "30s", "maxStep": 2},
                "scaleDown": {"stabilizationWindow": "10m"},
            }
        },
    ],
)
def test_taken(cluster: Cluster, serving: dict[str, Any]) -> None:
    cluster.apply("BaseModel", "taken", base(serving))
    cluster.apply("ModelDeployment", "taken", chat(serving))
    cluster.delete("ModelDeployment", "taken")


@pytest.mark.parametrize(
    ("serving", "words"),
    [
        ({"autoscaling": GOOD, "replicas": 2}, "serving has replicas or autoscaling, not both"),
        ({"autoscaling": {**GOOD, "minReplicas": 0}}, "minReplicas: 0 and scaleToZeroAfter belong together"),
        ({"autoscaling": GOOD, "scaleToZeroAfter": "5m"}, "minReplicas: 0 and scaleToZeroAfter belong together"),
        ({"autoscaling": {"external": True}, "scaleToZeroAfter": "5m"}, "belong together"),
        ({"autoscaling": {"maxReplicas": 4}}, "autoscaling needs maxReplicas and targets"),
        ({"autoscaling": {"targets": {"inFlightRequests": 4}}}, "autoscaling needs maxReplicas and targets"),
        ({"autoscaling": {**GOOD, "external": True}}, "with external: true it takes nothing else"),
        ({"autoscaling": {**GOOD, "targets": {}}}, "autoscaling.targets needs at least one target"),
        ({"autoscaling": {**GOOD, "minReplicas": 5}}, "minReplicas may not be above maxReplicas"),
        ({"autoscaling": {**GOOD, "minReplicas": 3, "costCeiling": DEAR}}, "does not pay for minReplicas"),
        ({"autoscaling": {**GOOD, "costCeiling": {"perHour": 1, "perReplicaHour": 2}}}, "does not pay for minReplicas"),
    ],
)
def test_refused_with_what_to_do(cluster: Cluster, serving: dict[str, Any], words: str) -> None:
    for kind, spec in (("BaseModel", base(serving)), ("ModelDeployment", chat(serving))):
        with pytest.raises(ApiError, match=words):
            cluster.apply(kind, "refused", spec)
