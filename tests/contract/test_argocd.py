"""Rollouts whose objects a real Argo CD applies from Git: what it shows, what its syncs change, what they cannot undo.

Operator, API server, Argo CD and Git are real; the gateway confirms what the shared function gives; pods are objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import yaml

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.argocd import TOKEN, ArgoCd
from tests.contract.fakegateway import FakeGateway
from tests.contract.operator_process import (
    BASE_SPEC,
    Cluster,
    Object,
    OperatorProcess,
    adapter_spec,
    deployment_spec,
    eventually,
)
from tests.contract.test_operator_rollout import ADAPTERS, DIGESTS, QUICK, SLOW, Scene, running
from tuneyard.api import names
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import MERGE

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

__all__ = ["running"]  # the fixture of rollouts

AUTOMATED: Object = {"automated": {"prune": True, "selfHeal": True}}
RETRYING: Object = {"limit": 10, "refresh": True, "backoff": {"duration": "20s", "factor": 2, "maxDuration": "3m"}}
_POOL = "apps/v1:deployments/base-pool"
REPLACE = ("Replace=true",)


def manifest(kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}


@dataclass
class Site:
    """An application of one deployment, in a namespace of its own."""

    argo: ArgoCd
    scene: Scene
    name: str

    @property
    def cluster(self) -> Cluster:
        return self.scene.cluster

    def commit(self, weights: dict[str, int], rollout: Object = SLOW, **more: Any) -> str:
        """Commit the deployment with these weights; returns the revision."""
        spec = {**deployment_spec("base", weights, ADAPTERS), "modelName": self.name, "rollout": rollout, **more}
        return self.argo.repository.commit({f"{self.name}/deployment.yaml": manifest("ModelDeployment", "m", spec)})

    def deploy(self, weights: dict[str, int], rollout: Object = SLOW) -> None:
        """Commit, and have it looked at."""
        self.commit(weights, rollout)
        self.argo.refresh(self.name)

    def stored(self) -> Object:
        return self.cluster.get("ModelDeployment", "m")

    def shows(self, sync: str, health: str, within: float = 20.0) -> None:
        """Wait until Argo CD's page says so."""

        def shown() -> bool:
            self.scene.follow()
            return self.argo.shown(self.name) == (sync, health)

        def instead() -> str:
            last = self.argo.operation(self.name)
            page = f"{self.argo.shown(self.name)}, {last.get('phase')}: {last.get('message')}"
            return f"{sync} and {health}, not {page}; {self.stored()}"

        eventually(shown, instead, within)

    def health(self, name: str = "m") -> tuple[str, str]:
        """Status and message of an object as the page shows them."""
        found = self.argo.get(self.name)["status"]["resources"]
        health = next(r["health"] for r in found if r["name"] == name)
        return health["status"], health.get("message", "")

    def quiet(self) -> Object:
        """The object, once operator and gateway have nothing to say any more."""
        known = ""

        def same() -> Object | None:
            nonlocal known
            self.scene.follow()
            found = self.stored()
            before, known = known, found["metadata"]["resourceVersion"]
            verified = all(t["verified"] for t in found["status"]["traffic"])
            return found if known == before and verified else None

        found: Object = eventually(same, "quiet")
        return found


@pytest.fixture(scope="module")
def argo(operator_apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArgoCd]:
    with ArgoCd(operator_apiserver, tmp_path_factory.mktemp("argocd")) as argo:
        yield argo


@pytest.fixture
def site(
    operator_apiserver: ApiServer,
    argo: ArgoCd,
    running: tuple[FakeGateway, OperatorProcess],
    request: pytest.FixtureRequest,
) -> Iterator[Site]:
    """v1 is stable, all from Git; the pod has every adapter."""
    name = re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_"))[-40:].strip("-")
    cluster = Cluster(operator_apiserver, name)
    site = Site(argo, Scene(cluster, *running, weights=[]), name)
    adapters = [manifest("LoRAAdapter", n, {**adapter_spec("base"), "digest": d}) for n, d in DIGESTS.items()]
    site.argo.repository.commit(
        {f"{name}/base.yaml": manifest("BaseModel", "base", BASE_SPEC), f"{name}/adapters.yaml": adapters}
    )
    site.commit({"v1": 100})
    site.argo.create(name, cluster.namespace, name, policy={**AUTOMATED, "retry": RETRYING})
    eventually(lambda: cluster.child(_POOL), lambda: f"the pool: {argo.said()}")
    rolled_out = dict.fromkeys(("replicas", "updatedReplicas", "readyReplicas", "observedGeneration"), 1)
    where = f"/apis/apps/v1/namespaces/{cluster.namespace}/deployments/base-pool/status"
    cluster.api.request("PATCH", where, body={"status": rolled_out}, content_type=MERGE)
    cluster.pod("pod-0", "base")
    cluster.verified("pod-0", "sha256:" + "00" * 32)
    site.scene.report("one", "two", "three")
    site.scene.until(lambda r: r.get("stable") == "v1" and r.get("phase") == "Completed", "v1 is stable")
    yield site
    argo.patch(name, {"spec": {"syncPolicy": {"automated": None}}})
    cluster.delete("ModelDeployment", "m")


def untouched(site: Site) -> None:
    """Looks and syncs of every kind leave the object exactly as it is, and looks alone begin no operation."""
    before = site.quiet()
    operation = site.argo.operation(site.name).get("startedAt")
    for how in ("normal", "normal", "hard"):
        site.argo.refresh(site.name, how)
    assert site.argo.operation(site.name).get("startedAt") == operation, "a status is no difference to be mended"
    for options in ((), ("ServerSideApply=true",), ("ApplyOutOfSyncOnly=true",)):
        assert site.argo.sync(site.name, *options)["phase"] == "Succeeded"
    after = site.quiet()
    for each in (before, after):
        # only who manages which field is new, after the first server-side apply
        each["metadata"].pop("managedFields")
        each["metadata"].pop("resourceVersion")
        each["metadata"].get("annotations", {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
    assert after == before


def test_looks_and_syncs_change_nothing_in_any_phase(site: Site) -> None:
    site.shows("Synced", "Healthy")
    untouched(site)
    site.deploy({"v1": 0, "v2": 100})
    site.scene.until(lambda r: r.get("weight") == 5 and r.get("stepStartedAt"), "5 %")
    site.shows("Synced", "Progressing")
    untouched(site)
    site.scene.command("pause", "v2", "one")
    site.scene.until(lambda r: r.get("phase") == "Paused", "paused")
    site.shows("Synced", "Suspended")
    assert site.health() == ("Suspended", "the rollout of v2 is paused at 5 %")
    untouched(site)
    site.scene.command("abort", "v2", "two")
    site.scene.until(site.scene.rejects("v2"), "rejected")
    site.shows("Synced", "Degraded")
    assert "v2 is rejected (Aborted: ended by command two); v1 serves" in site.health()[1]
    untouched(site)
    site.scene.command("resume", "v2", "three")
    site.scene.until(lambda r: r["lastCommand"]["id"] == "three" and r["lastCommand"]["accepted"], "resumed")
    site.deploy({"v1": 0, "v2": 0, "v3": 100}, {**QUICK, "bakeTime": "1h"})
    site.scene.until(lambda r: r.get("phase") == "Baking", "v3 has all traffic")
    site.shows("Synced", "Progressing")
    untouched(site)
    # another value, and not the field taken away: after syncs of both kinds Argo CD does not know that it was its own
    site.deploy({"v1": 0, "v2": 0, "v3": 100}, {**QUICK, "bakeTime": "1s"})
    site.scene.until(lambda r: r.get("stable") == "v3" and r.get("phase") == "Completed", "v3 is stable")
    site.shows("Synced", "Healthy")
    untouched(site)
    written = {w["objectRef"]["resource"] for w in site.cluster.server.writes(TOKEN)}
    assert "modeldeployments" in written, "whose writes these are"


def test_an_edit_by_hand_is_healed_and_the_rollout_goes_on_from_where_it_was(site: Site) -> None:
    site.deploy({"v1": 0, "v2": 100})
    site.scene.until(lambda r: r.get("weight") == 5 and r.get("stepStartedAt"), "5 %")
    before = site.quiet()
    site.scene.weights.clear()
    site.cluster.apply("ModelDeployment", "m", {**before["spec"], "traffic": [{"revision": "v2", "weight": 100}]})
    healed = site.scene.until(lambda _: site.stored()["spec"] == before["spec"], "Git's spec is back")
    assert (healed["candidate"], healed["step"], healed["stepStartedAt"]) == (
        "v2",
        0,
        before["status"]["rollout"]["stepStartedAt"],
    )
    assert all(w.get("v2", 0) <= 5 for w in site.scene.weights)


def test_a_bad_adapter_is_rolled_back_and_a_commit_resolves_it(site: Site) -> None:
    site.deploy({"v1": 0, "v2": 100})
    site.scene.until(lambda r: r.get("weight") == 5, "5 %")
    site.scene.command("abort", "v2", "one")
    site.shows("Synced", "Degraded")
    site.argo.repository.revert()
    site.argo.refresh(site.name)
    site.shows("Synced", "Healthy")
    rollout = site.scene.follow()
    assert (rollout["phase"], rollout["stable"]) == ("Completed", "v1")
    site.deploy({"v1": 0, "v2": 0, "v3": 100}, QUICK)
    site.scene.until(lambda r: r.get("stable") == "v3", "the mended one takes over")
    site.shows("Synced", "Healthy")


def test_a_commit_resolves_a_bad_sync_that_is_being_retried(site: Site) -> None:
    """Without retry.refresh the first commit is tried again and again, and the one that mends it waits."""
    unsorted = {"mode": "Progressive", "steps": [{"weight": 50}, {"weight": 5}]}
    bad = site.commit({"v1": 0, "v2": 100}, unsorted)
    site.argo.refresh(site.name)
    site.scene.until(lambda _: site.argo.operation(site.name).get("retryCount"), "it is tried again", 60)
    operation = site.argo.operation(site.name)
    assert "rollout.steps must have ascending weights" in operation["message"], operation
    assert operation["syncResult"]["revision"] == bad
    assert site.stored()["spec"]["traffic"] == [{"revision": "v1", "weight": 100}]
    mended = site.commit({"v1": 0, "v2": 100}, QUICK)
    site.argo.refresh(site.name)
    site.scene.until(lambda r: r.get("stable") == "v2", "v2 takes over", 90)
    assert site.argo.operation(site.name)["syncResult"]["revision"] == mended
    site.shows("Synced", "Healthy")


def test_an_edit_of_what_may_not_change_fails_in_our_words(site: Site) -> None:
    """Then somebody reaches for force, which deletes and creates again."""
    before = site.stored()["metadata"]["uid"]
    spec = deployment_spec("base", {"v1": 100}, {"v1": "two"})
    spec = {**spec, "modelName": site.name, "rollout": SLOW}
    site.argo.repository.commit({f"{site.name}/deployment.yaml": manifest("ModelDeployment", "m", spec)})
    site.argo.refresh(site.name)
    site.scene.until(lambda _: site.argo.operation(site.name).get("retryCount"), "it is tried again", 60)
    assert "v1" in site.argo.operation(site.name)["message"], site.argo.operation(site.name)["message"]
    assert site.stored()["metadata"]["uid"] == before
    assert site.stored()["spec"]["revisions"][0]["adapter"] == "one"


@pytest.mark.parametrize("force", [False, True], ids=["replace", "replace-by-force"])
def test_replacing_loses_no_verdict(site: Site, force: bool) -> None:
    site.deploy({"v1": 0, "v2": 100})
    site.scene.until(lambda r: r.get("weight") == 5, "5 %")
    site.scene.command("abort", "v2", "one")
    site.scene.until(site.scene.rejects("v2"), "rejected")
    eventually(lambda: site.scene.record().get("verdicts"), "the record")
    before = site.quiet()["metadata"]["uid"]
    site.scene.weights.clear()
    for _ in range(3):
        done = site.argo.sync(site.name, *REPLACE, force=force)
        assert done["phase"] == "Succeeded", done["message"]
        rollout = site.scene.until(site.scene.rejects("v2"), "still rejected")
        assert rollout["lastCommand"]["id"] == "one"
    assert (site.stored()["metadata"]["uid"] != before) is force, "this is what is being tested"
    assert not any(w.get("v2") for w in site.scene.weights)
    site.shows("Synced", "Degraded")


def test_actions_reach_the_operator_and_it_refuses_those_that_do_not_fit(site: Site) -> None:
    def run(action: str) -> Object:
        """The operator's answer."""
        known = (site.scene.follow().get("lastCommand") or {}).get("id")
        status, text = site.argo.run_action(site.name, site.cluster.namespace, "m", action)
        assert status == 200, text
        answered = site.scene.until(
            lambda r: (r.get("lastCommand") or {}).get("id") not in (None, known), f"{action} is answered"
        )
        found: Object = answered["lastCommand"]
        return found

    spec = site.quiet()["spec"]
    for action, words in (
        ("abort", "name the revision"),
        ("promote", "name the revision"),
        ("pause", "no rollout is under way"),
        ("resume", "the rollout is not paused"),
        ("retry", "name the revision"),
    ):
        answer = run(action)
        assert (answer["accepted"], words in answer["message"]) == (False, True), answer
    assert site.quiet()["spec"] == spec
    site.deploy({"v1": 0, "v2": 100})
    site.scene.until(lambda r: r.get("weight") == 5 and r.get("stepStartedAt"), "5 %")
    assert run("pause")["accepted"]
    site.shows("Synced", "Suspended")
    assert run("pause")["accepted"], "once more is the same again"
    assert run("resume")["accepted"]
    assert run("abort")["accepted"]
    site.shows("Synced", "Degraded")
    again = run("abort")
    assert (again["accepted"], again["message"]) == (False, "v2 is rejected already")
    assert run("retry")["accepted"]
    site.scene.until(lambda r: r.get("phase") == "Progressing" and r.get("stepStartedAt"), "once more")
    assert run("promote")["accepted"]
    site.scene.until(lambda r: r.get("stable") == "v2", "v2 takes over")
    site.shows("Synced", "Healthy")


def test_the_example_repository_is_synced_by_its_own_applications(site: Site) -> None:
    """kustomize as Argo CD runs it, server-side apply, two environments."""
    example = ROOT / "examples" / "gitops"
    files = {str(path.relative_to(example)): path.read_text() for path in sorted(example.rglob("*.yaml"))}
    site.argo.repository.commit(files)

    def synced(name: str) -> bool:
        return site.argo.shown(name)[0] == "Synced"

    def instead(name: str) -> str:
        return f"{name} is synced: {site.argo.get(name).get('status')}"

    for application in yaml.safe_load_all(files["argocd/applications.yaml"]):
        application["spec"]["source"]["repoURL"] = site.argo.repository.url
        site.argo.apply(application)
        name = application["metadata"]["name"]
        eventually(partial(synced, name), partial(instead, name))
        found = objects.listed(site.cluster.api, names.API_VERSION, "ModelDeployment", name)
        assert [d["metadata"]["name"] for d in found] == ["acme-support"]
        site.argo.patch(name, {"spec": {"syncPolicy": {"automated": None}}})
