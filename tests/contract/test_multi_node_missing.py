"""An operator that may make LeaderWorkerSets where nobody has installed them: it says so, works on, and makes them
by itself when they come.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.chart import named, rendered
from tests.contract.leaderworkersets import install_crds
from tests.contract.operator_process import BASE_SPEC, Cluster, deployment_spec, eventually, operating

pytestmark = pytest.mark.apiserver

GROUPS = "leaderworkerset.x-k8s.io/v1:leaderworkersets/base-group"


def test_the_kind_is_waited_for_and_found(
    operator_apiserver: ApiServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cluster = Cluster.of(operator_apiserver, request)
    options = {"token": "operator-0", "settings": {"leaderWorkerSets": True}}
    with operating(operator_apiserver, tmp_path, **options) as (_, operator):
        eventually(lambda: "working" in operator.said(), operator.said)
        serving = {**BASE_SPEC["serving"], "tensorParallelSize": 2, "nodesPerReplica": 2}
        cluster.apply("BaseModel", "base", {**BASE_SPEC, "serving": serving})
        cluster.apply("BaseModel", "plain", BASE_SPEC)
        cluster.apply("ModelDeployment", "m", deployment_spec("base", {"v0": 100}))
        cluster.apply("ModelDeployment", "other", deployment_spec("plain", {"v0": 100}))
        eventually(
            lambda: cluster.condition("BaseModel", "base", "Ready") == ("False", "LeaderWorkerSetMissing"),
            lambda: str(cluster.status("BaseModel", "base")),
        )
        eventually(lambda: cluster.child("apps/v1:deployments/plain-pool"), "others' pools are made all the same")
        assert operator.ask("/readyz")[0] == 200
        assert operator.said().count("cannot follow /apis/leaderworkerset") == 1, "told once, not every few seconds"
        install_crds(operator_apiserver)
        made = eventually(lambda: cluster.child(GROUPS), operator.said)
        assert made["spec"]["leaderWorkerTemplate"]["size"] == 2
        eventually(
            lambda: cluster.condition("BaseModel", "base", "Ready") == ("False", "Resolving"),
            lambda: str(cluster.status("BaseModel", "base")),
        )


def test_rights_come_with_the_setting() -> None:
    group = "leaderworkerset.x-k8s.io"
    for enabled, verbs in ((False, []), (True, ["list", "watch", "create", "patch", "delete"])):
        objects = rendered(leaderWorkerSets={"enabled": enabled})
        rules = named(objects, "ClusterRole", "tuneyard-operator")["rules"]
        assert [v for r in rules if group in r["apiGroups"] for v in r["verbs"]] == verbs
        config = named(objects, "ConfigMap", "tuneyard-config")["data"]["config.yaml"]
        assert f"leaderWorkerSets: {str(enabled).lower()}" in config
