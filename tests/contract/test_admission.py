"""The admission policies on a real API server: every way around them that was thought of is tried.

The first part repeats each line of the proof of the design for agents; the others are the operator's and the
protection of what is in use. Every refusal has its allowed neighbour, so that a policy that refuses all would fail.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.chart import NAMESPACE, install, refusal, rendered, token
from tests.contract.gatejobs import REFUSED_JOBS
from tests.contract.test_admission_rbac import MODELS, RBAC, children
from tuneyard.api import names
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import APPLY, MERGE, Api, ApiError, Object

pytestmark = pytest.mark.apiserver

OURS = names.ANNOTATION_ADAPTERS
MANAGED = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
ACCESS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
OWN_POD_ONLY = "tuneyard-agent may only change its own pod"
_PATIENCE = 30.0


def pod_path(name: str, subresource: str = "") -> str:
    return f"/api/v1/namespaces/{MODELS}/pods/{name}" + (f"/{subresource}" if subresource else "")


def annotated(**annotations: str | None) -> Object:
    return {"metadata": {"annotations": {OURS if k == "ours" else k: v for k, v in annotations.items()}}}


def make_pod(api: Api, name: str) -> Object:
    """A pod that runs as the agents' account; replaces one of the same name."""
    try:
        api.request("DELETE", pod_path(name), query={"gracePeriodSeconds": "0"})
    except ApiError as error:
        assert error.not_found, str(error)
    body = {
        "metadata": {"name": name, "labels": {"a": "b"}, "annotations": {"keep": "1"}},
        "spec": {"serviceAccountName": names.AGENT_SERVICE_ACCOUNT, "containers": [{"name": "c", "image": "x"}]},
    }
    return api.request("POST", f"/api/v1/namespaces/{MODELS}/pods", body=body)


def make_base(api: Api, name: str, used_by: list[str]) -> str:
    """A BaseModel that is used by these; returns its path."""
    base = {
        "apiVersion": names.API_VERSION,
        "kind": "BaseModel",
        "metadata": {"name": name, "namespace": MODELS},
        "spec": {"source": {"volume": {"name": "v", "path": "p"}}},
    }
    objects.apply_status(api, objects.apply(api, base), {"usedBy": used_by, "conditions": []})
    return objects.path(names.API_VERSION, "BaseModel", MODELS, name)


def until_refused(attempt: Callable[[str], object]) -> None:
    """The API server compiles new policies within seconds and lets everything through until then.

    `attempt` gets a text that is another one each time, so that it never asks for what is there already.
    """
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            attempt(str(time.monotonic_ns()))
        except ApiError as error:
            assert error.status == 403, str(error)
            return
        time.sleep(0.1)
    raise AssertionError("the policy never came into force")


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """An API server of its own with the chart's accounts, rights and policies in force, and a namespace with a pool."""
    with ApiServer() as started:
        started.install_crds()
        api = started.api()
        started.namespace(NAMESPACE)
        started.namespace(MODELS)
        install(started, [o for o in rendered() if o["kind"] in ACCESS or o["kind"].startswith("ValidatingAdmission")])
        install(started, [o for o in children() if o["kind"] in ACCESS])
        make_pod(api, "probe")
        agent = started.api(token(api, MODELS, names.AGENT_SERVICE_ACCOUNT))
        until_refused(lambda x: agent.request("PATCH", pod_path("probe"), body=annotated(x=x), content_type=MERGE))
        base = make_base(api, "probe", ["x"])
        until_refused(lambda _: api.request("DELETE", base, query={"dryRun": "All"}))
        operator = started.api(token(api, NAMESPACE, "tuneyard-operator"))
        probe = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe", "namespace": MODELS}}
        until_refused(lambda x: objects.apply(operator, {**probe, "data": {"x": x}}))
        yield started


@dataclass(frozen=True)
class Agent:
    """An agent with a token bound to the pod `mine`, beside a pod that is not its own."""

    admin: Api
    api: Api
    pod: Object

    def patch(self, body: Object, *, pod: str = "mine", subresource: str = "") -> None:
        self.api.request("PATCH", pod_path(pod, subresource), body=body, content_type=MERGE)

    def refused(self, body: Object, *, pod: str = "mine", subresource: str = "") -> str:
        return refusal(self.api, "PATCH", pod_path(pod, subresource), body, MERGE)

    def annotations(self, pod: str = "mine") -> dict[str, str]:
        return dict(self.admin.request("GET", pod_path(pod))["metadata"].get("annotations") or {})


@pytest.fixture
def agent(server: ApiServer) -> Agent:
    admin = server.api()
    mine = make_pod(admin, "mine")
    make_pod(admin, "other")
    return Agent(admin, server.api(token(admin, MODELS, names.AGENT_SERVICE_ACCOUNT, mine)), mine)


class TestAgent:
    def test_writes_and_removes_the_one_annotation_of_its_own_pod(self, agent: Agent) -> None:
        agent.patch(annotated(ours='{"v": 1}'))
        assert agent.annotations() == {"keep": "1", OURS: '{"v": 1}'}
        agent.patch(annotated(ours=None))
        assert agent.annotations() == {"keep": "1"}

    def test_writes_it_by_server_side_apply_too(self, agent: Agent) -> None:
        body = {"apiVersion": "v1", "kind": "Pod", **annotated(ours="applied")}
        body["metadata"]["name"] = "mine"
        agent.api.request("PATCH", pod_path("mine"), body=body, content_type=APPLY, query={"fieldManager": "agent"})
        assert agent.annotations()[OURS] == "applied"

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (annotated(other="1"), "only change the annotation tuneyard.dev/adapters"),
            (annotated(keep="2"), "only change the annotation tuneyard.dev/adapters"),
            (annotated(keep=None), "only change the annotation tuneyard.dev/adapters"),
            (annotated(ours="1", other="1"), "only change the annotation tuneyard.dev/adapters"),
            ({"metadata": {"labels": {names.LABEL_POOL: "somebody-elses"}}}, "not labels, finalizers or owners"),
            ({"metadata": {"labels": {"a": None}}}, "not labels, finalizers or owners"),
            ({"metadata": {"finalizers": ["x.example/y"]}}, "not labels, finalizers or owners"),
            (
                {"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "o", "uid": "u"}]}},
                "not labels, finalizers or owners",
            ),
            ({"spec": {"containers": [{"name": "c", "image": "evil"}]}}, "may only change annotations"),
            ({"spec": {"activeDeadlineSeconds": 1}}, "may only change annotations"),
        ],
    )
    def test_changes_nothing_else_of_its_own_pod(self, body: Object, words: str, agent: Agent) -> None:
        assert words in agent.refused(body)
        assert agent.annotations() == {"keep": "1"}

    def test_does_not_touch_another_pod(self, agent: Agent) -> None:
        words = agent.refused(annotated(ours="1"), pod="other")
        assert f"{OWN_POD_ONLY} mine, not other" in words
        assert agent.annotations("other") == {"keep": "1"}

    def test_a_token_that_is_bound_to_no_pod_writes_nothing(self, agent: Agent, server: ApiServer) -> None:
        loose = server.api(token(agent.admin, MODELS, names.AGENT_SERVICE_ACCOUNT))
        words = refusal(loose, "PATCH", pod_path("mine"), annotated(ours="1"), MERGE)
        assert f"{OWN_POD_ONLY} (token not bound to a pod), not mine" in words

    @pytest.mark.parametrize("subresource", ["status", "ephemeralcontainers", "resize", "eviction", "binding"])
    def test_rights_hold_no_subresource(self, subresource: str, agent: Agent) -> None:
        assert "cannot" in agent.refused({"status": {"message": "x"}}, subresource=subresource)

    def test_rights_hold_no_deletion(self, agent: Agent) -> None:
        assert "cannot delete" in refusal(agent.api, "DELETE", pod_path("mine"))

    def test_with_rights_to_subresources_the_policy_still_refuses_until_it_is_gone(
        self, agent: Agent, server: ApiServer
    ) -> None:
        subresources = ["pods/status", "pods/ephemeralcontainers", "pods/resize"]
        wide = {"name": "wide", "namespace": MODELS}
        role_ref = {"apiGroup": RBAC, "kind": "Role", "name": "wide"}
        rules = [{"apiGroups": [""], "resources": subresources, "verbs": ["get", "patch"]}]
        subject = {"kind": "ServiceAccount", "name": names.AGENT_SERVICE_ACCOUNT, "namespace": MODELS}
        too_much: list[Object] = [
            {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": wide, "rules": rules},
            {
                "apiVersion": f"{RBAC}/v1",
                "kind": "RoleBinding",
                "metadata": wide,
                "roleRef": role_ref,
                "subjects": [subject],
            },
        ]
        install(server, too_much)
        status = {"status": {"message": "it is me"}}
        container = {"spec": {"ephemeralContainers": [{"name": "e", "image": "x"}]}}
        bigger = {"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1"}}}]}}
        policy, name = "validatingadmissionpolicybindings", "tuneyard-agent-own-pod"
        path = f"/apis/admissionregistration.k8s.io/v1/{policy}/{name}"
        binding = agent.admin.request("GET", path)
        try:
            assert "may not change pod subresources" in agent.refused(status, subresource="status")
            assert "may not change pod subresources" in agent.refused(container, subresource="ephemeralcontainers")
            agent.refused(bigger, subresource="resize")
            agent.admin.request("DELETE", path)
            self._until_allowed(lambda: agent.patch(status, subresource="status"))
        finally:
            for right in too_much:
                agent.admin.request("DELETE", objects.path(right["apiVersion"], right["kind"], MODELS, "wide"))
            restored = {**binding, "metadata": {"name": name}}
            install(server, [restored])
            until_refused(lambda x: agent.patch(annotated(other=x)))

    @staticmethod
    def _until_allowed(attempt: Callable[[], None]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return attempt()
            except ApiError:
                assert time.monotonic() < deadline, "without the policy nothing else refuses: the test proves nothing"
                time.sleep(0.1)

    def test_an_administrator_is_not_hindered(self, agent: Agent) -> None:
        agent.admin.request("PATCH", pod_path("other"), body=annotated(ours="x", other="y"), content_type=MERGE)
        assert agent.annotations("other")["other"] == "y"

    def test_the_token_ends_with_its_pod_also_when_the_name_comes_back(self, agent: Agent) -> None:
        agent.patch(annotated(ours="1"))
        make_pod(agent.admin, "mine")
        with pytest.raises(ApiError) as refused:
            agent.patch(annotated(ours="2"))
        # 401 once the API server's cache of tokens has run out; until then the policy sees the other uid
        assert refused.value.status in (401, 403)
        assert agent.annotations() == {"keep": "1"}


@pytest.fixture
def operator(server: ApiServer) -> Api:
    return server.api(token(server.api(), NAMESPACE, "tuneyard-operator"))


def secret(name: str, *, labels: dict[str, str] | None = None, **fields: Any) -> Object:
    metadata = {"name": name, "namespace": MODELS, "labels": labels or {}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"key": "eA=="}, **fields}


def role(name: str, *rules: Object) -> Object:
    metadata = {"name": name, "namespace": MODELS, "labels": MANAGED}
    return {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": list(rules)}


def binding(role_ref: Object, *subjects: Object) -> Object:
    metadata = {"name": "try", "namespace": MODELS, "labels": MANAGED}
    ref = {"apiGroup": RBAC, **role_ref}
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": ref,
        "subjects": list(subjects),
    }


def daemon_set(name: str, **pod: Any) -> Object:
    labels = {"app": "x"}
    container = {"name": "c", "image": "x", "securityContext": {"allowPrivilegeEscalation": False}}
    spec = {"serviceAccountName": names.AGENT_SERVICE_ACCOUNT, "containers": [container], **pod}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": MODELS, "labels": MANAGED},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}},
    }


TOKEN_OF_ANOTHER = secret("x-engine-key", labels=MANAGED, type="kubernetes.io/service-account-token")
TOKEN_OF_ANOTHER["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "default"}
PODS_READ = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
AGENT_ROLE = {"kind": "Role", "name": names.AGENT_SERVICE_ACCOUNT}


class TestOperator:
    def test_makes_changes_and_removes_everything_that_it_plans(self, operator: Api) -> None:
        for child in children():
            stored = objects.apply(operator, child)
            again = {**child, "metadata": {**child["metadata"], "annotations": {"changed": "1"}}}
            objects.apply(operator, again)
            if child["kind"] in ACCESS:
                continue  # other tests use these
            uid = stored["metadata"]["uid"]
            metadata = child["metadata"]
            assert objects.delete(
                operator, child["apiVersion"], child["kind"], MODELS, str(metadata["name"]), uid=str(uid)
            )

    @pytest.mark.parametrize(
        ("wanted", "words"),
        [
            (secret("x-engine-key"), "managed-by"),
            (secret("anything", labels=MANAGED), "names end in -engine-key"),
            (TOKEN_OF_ANOTHER, "of type Opaque"),
            (
                role("tuneyard-agent", {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}),
                "only grant reading and patching pods",
            ),
            (role("tuneyard-agent", {**PODS_READ, "verbs": ["*"]}), "only grant reading and patching pods"),
            (role("tuneyard-agent", {**PODS_READ, "resources": ["pods", "pods/exec"]}), "only grant reading"),
            (role("tuneyard-agent", {**PODS_READ, "apiGroups": ["*"]}), "only grant reading"),
            (role("plan", {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}), "plans by name"),
            (role("another", {**PODS_READ, "verbs": ["patch"]}), "attempting to grant RBAC permissions"),
            (daemon_set("miner"), "whose names end in -prewarm"),
            (daemon_set("x-prewarm", serviceAccountName="default"), "with pods of tuneyard-agent"),
            (daemon_set("x-prewarm", hostNetwork=True), "neither a namespace of the host"),
            (daemon_set("x-prewarm", hostPID=True), "neither a namespace of the host"),
            (daemon_set("x-prewarm", hostIPC=True), "neither a namespace of the host"),
            (
                daemon_set("x-prewarm", initContainers=[{"name": "i", "image": "x"}]),
                "nor a container whose privileges can grow",
            ),
            *REFUSED_JOBS,
            (binding({"kind": "ClusterRole", "name": "cluster-admin"}), "attempting to grant RBAC permissions"),
            (binding(AGENT_ROLE, {"kind": "User", "name": "mallory", "apiGroup": RBAC}), "only bind roles to"),
            (
                binding(AGENT_ROLE, {"kind": "ServiceAccount", "name": "default", "namespace": MODELS}),
                "only bind roles to",
            ),
            (
                binding(AGENT_ROLE, {"kind": "ServiceAccount", "name": "tuneyard-agent", "namespace": "elsewhere"}),
                "only bind roles to",
            ),
        ],
    )
    def test_makes_nothing_else(self, wanted: Object, words: str, operator: Api) -> None:
        where = objects.path(wanted["apiVersion"], wanted["kind"], MODELS, wanted["metadata"]["name"])
        assert words in refusal(operator, "PATCH", where, wanted, APPLY)

    def test_neither_reads_changes_nor_takes_over_somebody_elses_secret(self, operator: Api, server: ApiServer) -> None:
        install(server, [secret("theirs-engine-key"), secret("theirs")])
        for name in ("theirs-engine-key", "theirs"):
            where = objects.path("v1", "Secret", MODELS, name)
            for attempt in ({}, {"metadata": {"labels": MANAGED}}, {"data": {"key": "eQ=="}}):
                assert "managed-by" in refusal(operator, "PATCH", where, attempt, MERGE)
            assert "managed-by" in refusal(operator, "DELETE", where)
            assert "cannot get" in refusal(operator, "GET", where)

    def test_leaves_other_peoples_objects_and_the_charts_own_alone(self, operator: Api, server: ApiServer) -> None:
        own = [o for o in rendered() if o["kind"] in ("ConfigMap", "Secret")]
        theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": MODELS}}
        install(server, [*own, theirs])
        for obj in (*own, theirs):
            metadata = obj["metadata"]
            where = objects.path("v1", obj["kind"], metadata["namespace"], metadata["name"])
            assert "managed-by" in refusal(operator, "PATCH", where, {"data": {"x": None}}, MERGE)
            assert "managed-by" in refusal(operator, "DELETE", where)

    def test_writes_status_and_never_a_spec(self, operator: Api, server: ApiServer) -> None:
        where = make_base(server.api(), "spec-or-status", [])
        stored = operator.request("GET", where)
        objects.apply_status(operator, stored, {"digest": "sha256:" + "0" * 64, "conditions": []})
        for body in ({"spec": {"serving": {"replicas": 3}}}, {"metadata": {"labels": {"a": "b"}}}):
            assert "cannot patch" in refusal(operator, "PATCH", where, body, MERGE)


class TestInUse:
    @pytest.mark.parametrize(
        ("users", "words"),
        [
            (["acme"], "ModelDeployment acme: remove the revisions that name it (or the ModelDeployment) first"),
            (
                ["acme-chat", "acme-support"],
                "ModelDeployments acme-chat, acme-support: remove the revisions that name it (or the ModelDeployments) "
                "first",
            ),
            ([f"m{n:02}" for n in range(10)], "m07, m08, m09: remove"),
            (
                [*(f"m{n:02}" for n in range(50)), "and 7 more"],
                "m08, m09 and others (`tuneyard lineage bmodel/used -n models` shows all): remove",
            ),
            ([f"{n:0>253}" for n in range(51)], f"{9:0>253} and others"),
        ],
    )
    def test_a_base_in_use_cannot_be_deleted_and_the_message_names_its_users(
        self, users: list[str], words: str, server: ApiServer
    ) -> None:
        api = server.api()
        where = make_base(api, "used", users)
        said = refusal(api, "DELETE", where)
        assert f"used is used by ModelDeployment{'s' if len(users) > 1 else ''} {users[0]}" in said
        assert words in said
        make_base(api, "used", [])
        api.request("DELETE", where)

    def test_an_adapters_message_says_how_to_see_them_all(self, server: ApiServer) -> None:
        api = server.api()
        adapter = {
            "apiVersion": names.API_VERSION,
            "kind": "LoRAAdapter",
            "metadata": {"name": "used", "namespace": MODELS},
            "spec": {"baseModel": "b", "source": {"volume": {"name": "v", "path": "p"}}},
        }
        users = {"usedBy": [f"m{n:02}" for n in range(11)], "conditions": []}
        objects.apply_status(api, objects.apply(api, adapter), users)
        where = objects.path(names.API_VERSION, "LoRAAdapter", MODELS, "used")
        assert "m09 and others (`tuneyard lineage lora/used -n models` shows all)" in refusal(api, "DELETE", where)

    def test_one_that_nobody_has_seen_yet_can_be_deleted(self, server: ApiServer) -> None:
        api = server.api()
        base = {
            "apiVersion": names.API_VERSION,
            "kind": "BaseModel",
            "metadata": {"name": "unseen", "namespace": MODELS},
            "spec": {"source": {"volume": {"name": "v", "path": "p"}}},
        }
        objects.apply(api, base)
        api.request("DELETE", objects.path(names.API_VERSION, "BaseModel", MODELS, "unseen"))

    @pytest.mark.parametrize("controller", ["namespace-controller", "generic-garbage-collector"])
    def test_deleting_the_namespace_is_not_hindered(self, controller: str, server: ApiServer) -> None:
        make_base(server.api(), "going", ["acme-support"])
        user = f"--as=system:serviceaccount:kube-system:{controller}"
        done = server.kubectl("delete", "bmodel", "going", "-n", MODELS, user, "--as-group=system:masters")
        assert done.returncode == 0, done.stderr
