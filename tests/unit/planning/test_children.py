"""The objects beside the pods: what they must and must not allow, and that the API server knows every field."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes import client

from tests.builders import BASE, KEYS, NAMESPACE, SETTINGS, base_model, deployment, prewarmed_base, revision
from tuneyard.api import names
from tuneyard.api.documents import PLAN_KEY, PlannedAdapter, PoolPlan
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.children import (
    ANNOTATION_UNUSED_ADAPTERS,
    KINDS,
    content_hash,
    label_value,
    marked,
    namespace_access,
    pool_companions,
    pool_deployment,
    pool_plan,
    service_name,
)
from tuneyard.planning.pools import Pool, pools_of
from tuneyard.planning.prewarm import prewarm_objects
from tuneyard.planning.resolvedserving import resolved_serving

BASE_OBJECT = base_model()
REMOTE = prewarmed_base()


def the_pool(**fields: Any) -> Pool:
    return pools_of(BASE_OBJECT, [deployment(revisions=[revision("v1", "v1")], **fields)])[0]


def everything(pool: Pool) -> list[dict[str, Any]]:
    plan = PoolPlan(
        pool=pool.name, base_model=BASE, adapters=[PlannedAdapter(name="v1", source=BASE_OBJECT.spec.source)]
    )
    marks = {ANNOTATION_UNUSED_ADAPTERS: {"v1": "2026-01-01T00:00:00Z"}}
    return [
        *namespace_access(NAMESPACE, [BASE_OBJECT], (), SETTINGS),
        pool_plan(pool, BASE_OBJECT, plan, marks, None),
        *pool_companions(pool, BASE_OBJECT, KEYS, SETTINGS, datetime(2026, 1, 1, tzinfo=UTC)),
        pool_deployment(pool, BASE_OBJECT, SETTINGS),
        *prewarm_objects(REMOTE, resolved_serving(REMOTE.spec.serving), [], None, SETTINGS),
    ]


def of_kind(kind: str) -> dict[str, Any]:
    return next(o for o in everything(the_pool()) if o["kind"] == kind and names.LABEL_POOL in o["metadata"]["labels"])


@pytest.mark.parametrize(
    "obj", everything(the_pool(serving=ServingSpec(tensor_parallel_size=2))), ids=lambda o: o["kind"]
)
@pytest.mark.lasting
def test_the_api_knows_every_field(obj):
    """A field that it does not know would be lost without a word."""
    api = client.ApiClient()
    version = obj["apiVersion"].rpartition("/")[2].capitalize()
    read = api.deserialize(json.dumps(obj), f"{version}{obj['kind']}", "application/json")
    assert api.sanitize_for_serialization(read) == json.loads(json.dumps(obj))


def test_all_kinds_are_listed_for_those_who_watch_them():
    found = {(o["apiVersion"], o["kind"]) for o in everything(the_pool())}
    assert found == set(KINDS)


def test_everything_is_labelled_owned_hashed_and_in_the_namespace():
    for obj in everything(the_pool()):
        metadata = obj["metadata"]
        assert metadata["namespace"] == NAMESPACE
        assert metadata["labels"][names.LABEL_MANAGED_BY] == "tuneyard"
        assert [o["uid"] for o in metadata["ownerReferences"]] == [BASE_OBJECT.metadata.uid]
        assert "blockOwnerDeletion" not in metadata["ownerReferences"][0], "needs a right that nothing else needs"
        assert re.fullmatch("[0-9a-f]{16}", metadata["annotations"][names.ANNOTATION_CONTENT])


def test_a_hash_tells_contents_apart_also_of_secrets():
    obj = {"kind": "Secret", "metadata": {"name": "a"}, "data": {"key": KEYS.of("n", "p")}}
    other = {**obj, "data": {"key": KEYS.of("n", "q")}}
    assert content_hash(obj) == content_hash(json.loads(json.dumps(obj))) != content_hash(other)
    assert marked(marked(obj))["metadata"]["annotations"] != {}


def test_the_plan_reads_back_and_says_which_pool_it_is():
    found = of_kind("ConfigMap")
    plan = PoolPlan.model_validate_json(found["data"][PLAN_KEY])
    assert (plan.pool, plan.base_model, plan.max_rank) == (BASE, BASE, 16)
    assert [a.name for a in plan.adapters] == ["v1"]


def test_the_secret_holds_the_derived_key_and_prints_nothing():
    secret = of_kind("Secret")
    stored = json.loads(json.dumps(secret))["data"]["key"]
    assert stored != str(secret["data"]["key"]) == "[redacted]"
    assert stored not in str(secret)


def test_a_drain_is_never_blocked_for_ever():
    spec = of_kind("PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_only_gateways_and_scrapers_reach_the_front():
    spec = of_kind("NetworkPolicy")["spec"]
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"port": names.FRONT_PORT, "protocol": "TCP"}]
    labels = [peer["namespaceSelector"]["matchLabels"] for peer in rule["from"]]
    assert labels == [{"kubernetes.io/metadata.name": "tuneyard-system"}, {"tuneyard.dev/scrape": "true"}]


def test_rights_are_no_wider_than_used():
    roles = {o["metadata"]["name"]: o["rules"] for o in everything(the_pool()) if o["kind"] == "Role"}
    pods, plans = {"apiGroups": [""], "resources": ["pods"]}, {"apiGroups": [""], "resources": ["configmaps"]}
    read = ["get", "list", "watch"]
    assert roles == {
        "tuneyard-agent": [{**pods, "verbs": ["get", "patch"]}],
        "tuneyard-gateway": [{**pods, "verbs": read}],
        **{n: [{**plans, "resourceNames": [n], "verbs": read}] for n in (names.pool_plan(BASE), names.prewarm(BASE))},
    }


def test_agents_may_read_the_secrets_that_sources_name_and_no_others():
    made = namespace_access(NAMESPACE, [BASE_OBJECT], {"s3", "hub"}, SETTINGS)
    (role,) = [o for o in made if o["kind"] == "Role" and o["metadata"]["name"] == "tuneyard-agent"]
    assert role["rules"][1:] == [
        {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["hub", "s3"], "verbs": ["get"]}
    ]


def test_what_a_namespace_shares_is_owned_by_all_its_bases_in_one_order():
    bases = [base_model("b"), base_model("a")]
    owners = namespace_access(NAMESPACE, bases, (), SETTINGS)[0]["metadata"]["ownerReferences"]
    assert [o["uid"] for o in owners] == ["uid-a", "uid-b"]
    assert namespace_access(NAMESPACE, bases, (), SETTINGS) == namespace_access(NAMESPACE, bases[::-1], (), SETTINGS)


@pytest.mark.parametrize("pool", ["llama", "llama-3.1-8b", "7b", "a" * 52, "1." * 26])
def test_services_have_names_that_dns_allows(pool):
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", service_name(pool))


def test_services_of_different_pools_differ():
    found = {service_name(p) for p in ("a.b", "a-b", "pool-a.b", "1a", "pool-1a")}
    assert len(found) == 5


def test_label_values_are_bounded():
    assert len(label_value("x" * 253)) <= 63
    assert label_value("llama-3.1-8b") == "llama-3.1-8b"


def test_a_pools_secret_is_written_once_a_period_and_again_in_time() -> None:
    """Its certificate is the same bytes until it is another one; the operator looks every few minutes."""
    pool, begin = the_pool(), datetime(2026, 1, 1, tzinfo=UTC)

    def mark(now: datetime) -> str:
        secret = next(o for o in pool_companions(pool, BASE_OBJECT, KEYS, SETTINGS, now) if o["kind"] == "Secret")
        assert secret["data"].keys() == {"key", "tls.crt", "tls.key"}
        return str(secret["metadata"]["annotations"][names.ANNOTATION_CONTENT])

    marks = [mark(begin + hours * timedelta(hours=6)) for hours in range(4 * 60)]
    assert len(set(marks)) == 3, "60 days, from the middle of a period"
    assert marks == sorted(marks, key=marks.index), "none comes back"
