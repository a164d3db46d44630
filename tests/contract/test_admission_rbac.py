"""What each account may do, as tables: what it must, and everything near that it must not. RBAC alone, no policies."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.chart import CRD, NAMESPACE, install, may, named, rendered
from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.gatereports import GateReports
from tuneyard.api.gates import Gate
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.planning.children import namespace_access, pool_companions
from tuneyard.planning.gatejobs import companions, job_object, reports_object
from tuneyard.planning.gateobservations import GateJob, JobMark
from tuneyard.planning.observations import EngineKeys
from tuneyard.planning.plan import Redacted
from tuneyard.planning.pools import Pool
from tuneyard.planning.prewarm import prewarm_objects
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.settings import Settings
from tuneyard.systems.kube.client import Api, Object

pytestmark = pytest.mark.apiserver

MODELS = "models"
OPERATOR = f"system:serviceaccount:{NAMESPACE}:tuneyard-operator"
GATEWAY = f"system:serviceaccount:{NAMESPACE}:tuneyard-gateway"
AGENT = f"system:serviceaccount:{MODELS}:{names.AGENT_SERVICE_ACCOUNT}"
T, RBAC = names.GROUP, "rbac.authorization.k8s.io"
READ = ("get", "list", "watch")
CHILD = ("list", "watch", "create", "patch", "delete")
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
KINDS_OF_OURS = ("basemodels", "loraadapters", "modeldeployments")

# (group, resource): verbs that the account has in a namespace with pools; every other verb it must not have
OPERATOR_MAY: dict[tuple[str, str], tuple[str, ...]] = {
    **{(T, kind): READ for kind in KINDS_OF_OURS},
    **{(T, f"{kind}/status"): ("patch",) for kind in KINDS_OF_OURS},
    ("", "pods"): READ,
    ("", "configmaps"): ("get", *CHILD),
    ("", "services"): CHILD,
    ("", "serviceaccounts"): CHILD,
    ("", "secrets"): ("create", "patch", "delete"),
    ("apps", "deployments"): CHILD,
    ("apps", "daemonsets"): CHILD,
    ("batch", "jobs"): ("list", "create", "patch", "delete"),
    ("policy", "poddisruptionbudgets"): CHILD,
    ("networking.k8s.io", "networkpolicies"): CHILD,
    (RBAC, "roles"): CHILD,
    (RBAC, "rolebindings"): CHILD,
    ("events.k8s.io", "events"): ("get", "create", "patch"),
}
GATEWAY_MAY: dict[tuple[str, str], tuple[str, ...]] = {
    **{(T, kind): READ for kind in KINDS_OF_OURS},
    ("", "pods"): READ,
}
AGENT_MAY: dict[tuple[str, str], tuple[str, ...]] = {("", "pods"): ("get", "patch")}

# what somebody who took an account over would try
TEMPTING: tuple[tuple[str, str], ...] = (
    ("", "secrets"),
    ("", "configmaps"),
    ("", "pods"),
    ("", "pods/exec"),
    ("", "pods/log"),
    ("", "pods/status"),
    ("", "pods/ephemeralcontainers"),
    ("", "pods/eviction"),
    ("", "serviceaccounts"),
    ("", "serviceaccounts/token"),
    ("", "services"),
    ("", "namespaces"),
    ("", "nodes"),
    ("", "persistentvolumeclaims"),
    ("", "events"),
    ("apps", "deployments"),
    ("apps", "daemonsets"),
    ("apps", "daemonsets/status"),
    ("apps", "replicasets"),
    ("batch", "jobs"),
    ("policy", "poddisruptionbudgets"),
    ("networking.k8s.io", "networkpolicies"),
    ("coordination.k8s.io", "leases"),
    (RBAC, "roles"),
    (RBAC, "rolebindings"),
    (RBAC, "clusterroles"),
    (RBAC, "clusterrolebindings"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
    ("apiextensions.k8s.io", "customresourcedefinitions"),
    ("certificates.k8s.io", "certificatesigningrequests"),
    *((T, kind) for kind in KINDS_OF_OURS),
    *((T, f"{kind}/status") for kind in KINDS_OF_OURS),
)


def a_pool() -> tuple[Pool, BaseModelResource]:
    base = BaseModelResource.from_dict(
        {
            "metadata": {"name": "base", "namespace": MODELS, "uid": "6a3b1a6e-0f0e-4f0a-9a51-3e1f0b8a1c00"},
            "spec": {"source": {"volume": {"name": "models", "path": "base"}}},
        }
    )
    return Pool(MODELS, "base", "base", None, resolved_serving(), ("d",), frozenset()), base


def a_prewarmed_base() -> BaseModelResource:
    cache = {"hostPath": {"path": "/var/cache/tuneyard"}, "prewarm": {"nodeSelector": {"gpu": "true"}}}
    return BaseModelResource.from_dict(
        {
            "metadata": {"name": "remote", "namespace": MODELS, "uid": "0b5e2f5c-52a8-4f5b-8b71-2c3f2a9d7e11"},
            "spec": {"source": {"s3": {"uri": "s3://models/base/"}}, "serving": {"cache": cache}},
        }
    )


def gate_objects() -> list[Object]:
    """What a gate is run with."""
    deployment = ModelDeploymentResource.from_dict(
        {
            "metadata": {"name": "acme", "namespace": MODELS, "uid": "5b1c1d3e-9a7e-4c8e-8f56-0d6f4f1f5a22"},
            "spec": {
                "revisions": [{"name": "v1", "baseModel": "base"}],
                "traffic": [{"revision": "v1", "weight": 100}],
            },
        }
    )
    gate = Gate.from_dict(
        {
            "name": "graded",
            "evaluation": {
                "prompts": {"configMap": "evals"},
                "min": {"judge": 0.5},
                "judge": {"url": "https://llm.example.com/v1", "model": "m", "secret": "judge"},
            },
        }
    )
    settings = Settings(tuneyard_namespace=NAMESPACE)
    mark = JobMark(gate="graded", key="0123456789abcdef", revision="v2", stable="v1", attempt=1)
    job = job_object(deployment, gate, mark, settings)
    made = GateJob(job["metadata"]["name"], "7c4b6a0e-52a8-4f5b-8b71-2c3f2a9d7e11", "", mark, "")
    told = companions(deployment, gate, made, Redacted("a token"), settings)
    return [job, *told, reports_object(deployment, GateReports(deployment="acme"), None)]


def children() -> list[Object]:
    """What the operator makes in a namespace with one pool, and one base that is fetched beforehand."""
    pool, base = a_pool()
    settings = Settings(tuneyard_namespace=NAMESPACE)
    return [
        *namespace_access(MODELS, [base], ["hub-token"], settings),
        *pool_companions(pool, base, EngineKeys(b"master" * 8), settings, datetime(2026, 1, 1, tzinfo=UTC)),
        *gate_objects(),
        *prewarm_objects(a_prewarmed_base(), resolved_serving(a_prewarmed_base().spec.serving), [], None, settings),
    ]


@pytest.fixture(scope="module")
def api(apiserver: ApiServer) -> Iterator[Api]:
    """An API server with the chart, and a namespace as the operator leaves it."""
    spaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in (NAMESPACE, MODELS, "other")]
    rights = [o for o in rendered() if o["apiVersion"].startswith(RBAC) or o["kind"] == "ServiceAccount"]
    made = [o for o in children() if o["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    install(apiserver, [*spaces, *rights, *made])
    yield apiserver.api()


@pytest.mark.parametrize(
    ("user", "table"),
    [(OPERATOR, OPERATOR_MAY), (GATEWAY, GATEWAY_MAY), (AGENT, AGENT_MAY)],
    ids=["operator", "gateway", "agent"],
)
def test_an_account_may_do_what_it_must_and_nothing_else(
    user: str, table: dict[tuple[str, str], tuple[str, ...]], api: Api
) -> None:
    wrong = [
        f"{'may' if allowed else 'may not'} {verb} {group}/{resource}"
        for group, resource in dict.fromkeys([*table, *TEMPTING])
        for verb in VERBS
        if (allowed := may(api, user, verb, resource, group=group, namespace=MODELS))
        != (verb in table.get((group, resource), ()))
    ]
    assert wrong == []


@pytest.mark.parametrize("user", [GATEWAY, AGENT])
def test_rights_to_pods_end_at_the_namespace(user: str, api: Api) -> None:
    for verb in VERBS:
        assert not may(api, user, verb, "pods", namespace="other"), verb
        assert not may(api, user, verb, "pods"), f"{verb} in all namespaces"


def test_agents_read_the_plans_of_their_namespace_and_no_other_config_map(api: Api) -> None:
    for verb in READ:
        assert may(api, AGENT, verb, "configmaps", name=names.pool_plan("base"), namespace=MODELS)
        assert may(api, AGENT, verb, "configmaps", name=names.prewarm("remote"), namespace=MODELS)
        assert not may(api, AGENT, verb, "configmaps", name="somebody-elses", namespace=MODELS)
    assert not may(api, AGENT, "patch", "configmaps", name=names.pool_plan("base"), namespace=MODELS)


def test_agents_read_the_secrets_that_sources_name_and_no_others(api: Api) -> None:
    assert may(api, AGENT, "get", "secrets", name="hub-token", namespace=MODELS)
    assert not may(api, AGENT, "get", "secrets", name="somebody-elses", namespace=MODELS)
    for verb in ("list", "watch", "patch", "delete"):
        assert not may(api, AGENT, verb, "secrets", name="hub-token", namespace=MODELS), verb


def test_the_operator_leads_by_its_own_lease(api: Api) -> None:
    def on_lease(verb: str, name: str = "tuneyard-operator", namespace: str = NAMESPACE) -> bool:
        return may(api, OPERATOR, verb, "leases", group="coordination.k8s.io", name=name, namespace=namespace)

    assert all(on_lease(verb) for verb in ("get", "create", "update"))
    assert not on_lease("update", name="kube-scheduler")
    assert not on_lease("get", namespace="kube-system")
    assert not on_lease("delete")


def test_the_operator_may_grant_only_what_agents_need(api: Api) -> None:
    for verb in ("escalate", "bind"):
        assert may(api, OPERATOR, verb, "roles", group=RBAC, name=names.AGENT_SERVICE_ACCOUNT, namespace=MODELS)
        assert not may(api, OPERATOR, verb, "roles", group=RBAC, name="another", namespace=MODELS)
        assert not may(api, OPERATOR, verb, "clusterroles", group=RBAC, name="cluster-admin")
    assert not may(api, OPERATOR, "impersonate", "users", name="admin")
    assert not may(api, OPERATOR, "impersonate", "serviceaccounts", namespace=NAMESPACE)


@pytest.mark.parametrize("user", [OPERATOR, GATEWAY, AGENT])
def test_nobody_touches_what_the_chart_made(user: str, api: Api) -> None:
    if user != OPERATOR:
        for verb in VERBS:
            assert not may(api, user, verb, "secrets", name="tuneyard-master", namespace=NAMESPACE)
    for verb in ("update", "patch", "delete"):
        assert not may(api, user, verb, "validatingadmissionpolicies", group="admissionregistration.k8s.io")


def test_viewers_and_editors_of_a_namespace_get_rights_by_aggregation() -> None:
    view, edit = (named(rendered(), "ClusterRole", name) for name in ("tuneyard-view", "tuneyard-edit"))
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    kinds = {o["spec"]["names"]["plural"] for o in rendered() if o["kind"] == CRD}
    for role in (view, edit):
        (rule,) = role["rules"]
        assert set(rule["resources"]) == kinds, "and no status"
