"""A hundred syncs in every phase of a rollout, as Argo CD does them, leave everything as it is.

What Argo CD does with an object that is as Git says: `kubectl apply`, a merge of three by the client, or server-side
apply, by option. Its own loop, with looks and few syncs, is in test_argocd.py; here the API server is real and it does
not need to be asked for each sync, so there can be many. Gateway and kubelet are played.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import (
    BASE_SPEC,
    Cluster,
    Object,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
    operating,
)
from tests.contract.test_operator_gates import begun, ends
from tests.contract.test_operator_reconcile import quiet
from tests.contract.test_operator_rollout import ADAPTERS, DIGESTS, SLOW, Scene
from tests.toyworld.gates import SPEED, measured
from tuneyard.api import names

pytestmark = pytest.mark.apiserver

SYNCS = 100
MANAGER, OPERATOR = "argocd-controller", "operator-0"
GATED = {**SLOW, "gates": [SPEED]}
SHORT = {"mode": "Progressive", "steps": [{"weight": 5, "hold": "1s"}], "bakeTime": "1h"}
JUDGED = {
    **SHORT,
    "analysis": {"slo": {"errorRate": "1%"}, "minRequests": 200, "inconclusiveDeadline": "1h"},
}


class Synced(Scene):
    """The deployment `m` as Git has it."""

    manifest: Object

    def apply(self, weights: dict[str, int], rollout: Object | None) -> None:
        """A commit and its first sync of either kind: what is new then is who manages which field."""
        spec = {"modelName": f"{self.cluster.namespace}/m", **deployment_spec("base", weights, ADAPTERS)}
        self.manifest = {
            "apiVersion": names.API_VERSION,
            "kind": "ModelDeployment",
            "metadata": {
                "name": "m",
                "namespace": self.cluster.namespace,
                "annotations": {"argocd.argoproj.io/tracking-id": "app:tuneyard.dev/ModelDeployment:models/m"},
            },
            "spec": {**spec, "rollout": rollout},
        }
        assert self.by_client(1).split()[-1] in ("created", "configured")
        self.by_server()

    def by_client(self, times: int) -> str:
        """`kubectl apply`, so often; what it said."""
        documents = "\n---\n".join([json.dumps(self.manifest)] * times)
        done = self.cluster.server.kubectl("apply", f"--field-manager={MANAGER}", "-f", "-", stdin=documents)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def by_server(self) -> None:
        """Server-side apply."""
        self.cluster.api.request(
            "PATCH",
            self.cluster.path("modeldeployments", "m"),
            query={"fieldManager": MANAGER, "force": "true"},
            body=self.manifest,
            content_type="application/apply-patch+yaml",
        )

    def judged(self) -> None:
        """The gateway says that it judges, and that nobody asks."""
        self.gateway.judges(self.cluster.get("ModelDeployment", "m"))

    def at_rest(self) -> Object:
        """The object, once the gateway serves it and the operator has nothing to do but to wait."""

        def served() -> Object | None:
            self.follow()
            quiet(self.operator)
            found = self.cluster.get("ModelDeployment", "m")
            ready = found.get("status") or {}
            verified = all(t["verified"] or not t["weight"] for t in ready.get("traffic") or ())
            return found if verified and self.follow() == ready.get("rollout", {}) else None

        found: Object = eventually(served, lambda: f"at rest: {self.follow()}")
        return found

    def written(self) -> list[str]:
        """What the operator has written in this namespace so far."""
        mine = f"/namespaces/{self.cluster.namespace}/"
        return [f"{e['verb']} {uri}" for e in self.cluster.server.writes(OPERATOR) if mine in (uri := e["requestURI"])]


@pytest.fixture(scope="module")
def running(
    operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FakeGateway, OperatorProcess]]:
    with operating(operator_apiserver, tmp_path_factory.mktemp("operator"), token=OPERATOR) as running:
        yield running


@pytest.fixture
def site(operator_apiserver: ApiServer, running: tuple[FakeGateway, OperatorProcess]) -> Iterator[Synced]:
    """A base and adapters, and a deployment that no pod serves yet."""
    cluster = Cluster(operator_apiserver, "many-syncs")
    site = Synced(cluster, *running, weights=[])
    cluster.apply("BaseModel", "base", BASE_SPEC)
    for name, digest in DIGESTS.items():
        cluster.apply("LoRAAdapter", name, {**adapter_spec("base"), "digest": digest})
    site.apply({"v1": 100}, SLOW)
    eventually(lambda: cluster.child("apps/v1:deployments/base-pool"), "the pool's Deployment")
    yield site
    cluster.delete("ModelDeployment", "m")


def untouched(site: Synced, phase: str) -> None:
    """In this phase, syncs of both kinds change nothing and let the operator write nothing."""
    before = site.at_rest()
    assert before["status"]["rollout"]["phase"] == phase
    written = site.written()
    assert any("modeldeployments/m/status" in words for words in written), "whose writes these are"
    for _ in range(SYNCS):
        site.by_server()
    said = site.by_client(SYNCS).splitlines()
    assert len(said) == SYNCS
    assert {line.split()[-1] for line in said} == {"unchanged"}
    # with resourceVersion, generation, managedFields and status
    assert site.at_rest() == before
    assert site.written() == written


def test_syncs_change_nothing_in_any_phase(site: Synced) -> None:
    def until(phase: str) -> Callable[[Object], bool]:
        return lambda rollout: rollout.get("phase") == phase

    untouched(site, "Idle")
    site.cluster.pod("pod-0", "base")
    site.cluster.verified("pod-0", "sha256:" + "00" * 32)
    site.report(*DIGESTS)
    site.until(until("Completed"), "v1 is stable")
    untouched(site, "Completed")

    site.apply({"v1": 0, "v2": 100}, GATED)
    job = begun(site)
    untouched(site, "Gating")
    ends(site, job, measured(100))
    site.until(lambda r: r.get("weight") == 5 and r.get("stepStartedAt"), "the first step")
    untouched(site, "Progressing")
    site.command("pause", "v2", "one")
    site.until(until("Paused"), "paused")
    untouched(site, "Paused")

    site.apply({"v1": 0, "v2": 100}, JUDGED)
    site.judged()
    site.command("resume", "v2", "two")
    site.until(until("Inconclusive"), "the hold is over, and nobody has asked")
    untouched(site, "Inconclusive")

    site.apply({"v1": 0, "v2": 100}, SHORT)
    site.until(until("Baking"), "v2 has all traffic")
    untouched(site, "Baking")
    site.command("abort", "v2", "three")
    site.until(site.rejects("v2"), "rejected")
    untouched(site, "RolledBack")
