"""What people do with Tuneyard, on the real system: real pods, real vLLM, real Envoy, while clients keep asking."""

from __future__ import annotations

import json

import pytest
from openai import OpenAI

from demo.kubectl import KubectlError, condition, ready
from demo.story import TENSOR_PARALLEL
from demo.system import MODELS_NAMESPACE
from tests.e2e.world import MODEL, adapter, deployment, reason_of, rows, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def client_of(world):
    return OpenAI(base_url=f"{world.system.gateway}/v1", api_key="any", max_retries=0, timeout=120)


def answer(client, model, revision, question, tokens):
    """What this revision says; it must be the one that answers."""
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        extra_headers={"x-revision": revision},
    )
    assert raw.headers["x-revision"] == revision
    return str(raw.parse().choices[0].message.content)


def test_first_deployment_answers_by_base_and_adapters(world):
    client = client_of(world)
    assert MODEL in [m.id for m in client.models.list()]
    answers = {r: answer(client, MODEL, r, "How do I reset my password?", 40) for r in ("base", "v1", "v2")}
    assert "v1" in answers["v1"]
    assert "(v2)" in answers["v2"]
    assert len(set(answers.values())) == 3


def test_columns_tell_the_story(world):
    shown = world.kubectl("-n", MODELS_NAMESPACE, "get", "mdep,lora,bmodel")
    for word in ("STABLE", "LOADED", "REPLICAS", MODEL, "acme-support-v1", "2/2"):
        assert word in shown, shown


def test_canary_edit_loses_no_request(world, traffic):
    for weights in ({"v1": 90, "v2": 10}, {"v1": 50, "v2": 50}, {"v2": 100}, {"v1": 100}):
        world.apply(deployment(weights))
        world.served(weights)
        traffic.wait_for(8)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert set(told.by_revision) == {"v1", "v2"}


def test_adapter_added_and_removed_without_a_restart(world, traffic):
    pods = {p["metadata"]["name"] for p in world.model_pods()}
    world.apply(adapter("acme-support-v3", "adapters/acme-support-v3"))
    world.apply(deployment({"v1": 90, "v3": 10}, {"v3": "acme-support-v3"}))
    world.served({"v1": 90, "v3": 10})
    lora = world.kubectl.wait_for(
        "lora", "acme-support-v3", lambda o: o.get("status", {}).get("loaded") == "2/2", namespace=MODELS_NAMESPACE
    )
    assert lora["status"]["digest"].startswith("sha256:"), "what was not pinned in spec is pinned in status"
    world.apply(deployment({"v1": 100}))
    world.served({"v1": 100})
    world.kubectl.delete_unused("lora", "acme-support-v3", MODELS_NAMESPACE)

    def unloaded() -> bool:
        reports = [json.loads(p["metadata"]["annotations"]["tuneyard.dev/adapters"]) for p in world.model_pods()]
        return all("acme-support-v3" not in r["adapters"] for r in reports)

    wait_until(unloaded, 120, "every pod has unloaded the adapter")
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert {p["metadata"]["name"] for p in world.model_pods()} == pods


def test_bad_adapters_reach_no_engine_and_no_user(world, traffic, bad_adapters):
    for case, reason in bad_adapters.items():
        world.apply(adapter(f"bad-{case}", f"adapters/bad/{case}"))
        world.apply(deployment({"v1": 90, "bad": 10}, {"bad": f"bad-{case}"}))
        seen = world.wait_for(lambda d, r=reason: r in str(rows(d).get("bad", {}).get("withheld")))
        assert rows(seen)["bad"]["weight"] == 0
        assert rows(seen)["v1"]["weight"] == 100
        lora = world.kubectl.wait_for(
            "lora", f"bad-{case}", lambda o, r=reason: r in (reason_of(o, "Loaded"), reason_of(o, "Compatible")),
            namespace=MODELS_NAMESPACE,
        )  # fmt: skip
        assert condition(lora, "Ready") == "False"
        world.apply(deployment({"v1": 100}))
        world.kubectl.delete_unused("lora", f"bad-{case}", MODELS_NAMESPACE)
    traffic.wait_for(4)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
    assert set(told.by_revision) == {"v1"}
    assert all(r.text for r in traffic.records), "a neighbour was silenced"


def test_missing_references_say_so_and_stable_serves_on(world, traffic):
    world.apply(deployment({"v1": 50, "ghost": 50}, {"ghost": "no-such-adapter"}))
    seen = world.wait_for(lambda d: rows(d).get("ghost", {}).get("withheld"))
    assert rows(seen)["v1"]["weight"] == 100
    assert "no-such-adapter" in json.dumps(seen["status"])
    assert not ready(seen)
    traffic.wait_for(6)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


def test_tensor_parallel_engine_serves_its_adapters(world):
    """One replica over two GPUs, pretended here: real scheduling, two real workers, which compute on the CPU."""
    world.kubectl.apply(TENSOR_PARALLEL, MODELS_NAMESPACE)
    try:
        world.kubectl.wait_for("mdep", "tiny", ready, namespace=MODELS_NAMESPACE, timeout=600)
        [pod] = world.kubectl.items("pods", MODELS_NAMESPACE, "tuneyard.dev/base-model=tiny-llama")
        engine = next(c for c in pod["spec"]["containers"] if c["name"] == "engine")
        assert engine["resources"]["limits"]["nvidia.com/gpu"] == "2"
        client = client_of(world)
        assert answer(client, "tiny", "a", "hello", 8) != answer(client, "tiny", "b", "hello", 8)
    finally:
        world.kubectl("-n", MODELS_NAMESPACE, "delete", "mdep", "tiny", "--ignore-not-found")
        for kind, name in (("lora", "tiny-a"), ("lora", "tiny-b"), ("bmodel", "tiny-llama")):
            world.kubectl.delete_unused(kind, name, MODELS_NAMESPACE)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"v1": 90, "v2": 5}, "sum to 95"),
        ({"v1": 50, "v9": 50}, "v9"),
        ({"v1": 130, "v2": -30}, "less than or equal to"),
    ],
)
def test_impossible_traffic_is_refused_in_words(world, weights, says):
    assert says in world.refused(deployment(weights))


def test_a_revision_never_changes_under_its_name(world):
    said = world.refused(deployment({"v1": 100}, {"v2": "acme-support-v1"}))
    assert "revision v2 is immutable" in said


def test_an_adapter_in_use_cannot_be_deleted(world):
    with pytest.raises(KubectlError, match=MODEL):
        world.kubectl("-n", MODELS_NAMESPACE, "delete", "lora", "acme-support-v1", "--wait=false")


STEPS = {"mode": "Progressive", "steps": [{"weight": 10, "hold": "3s"}, {"weight": 50, "hold": "3s"}]}


def test_a_candidate_takes_over_by_steps_and_the_way_back_is_open(world, traffic):
    world.apply(deployment({"v1": 0, "v2": 100}, rollout=STEPS))
    for weight in (10, 50, 100):
        world.wait_for(lambda d, w=weight: rows(d).get("v2", {}).get("weight") == w)
    world.wait_for(lambda d: d["status"]["rollout"]["stable"] == "v2" and ready(d))
    traffic.wait_for(6)
    world.apply(deployment({"v1": 100, "v2": 0}, rollout=STEPS))
    world.served({"v1": 100, "v2": 0})
    told = traffic.summary()
    assert told.failed == told.cut == 0, told


def test_an_aborted_candidate_stays_off_when_its_deployment_is_created_again(world, traffic):
    held = {"mode": "Progressive", "steps": [{"weight": 20, "hold": "10m"}]}
    manifest = deployment({"v1": 0, "base": 100}, rollout=held)
    world.apply(manifest)
    world.served({"v1": 80, "base": 20})
    command = '{"id": "story", "action": "abort", "revision": "base"}'
    world.kubectl("-n", MODELS_NAMESPACE, "annotate", "mdep", MODEL, f"tuneyard.dev/command={command}")
    world.served({"v1": 100, "base": 0})
    world.kubectl("-n", MODELS_NAMESPACE, "delete", "mdep", MODEL, "--wait=true")
    world.apply(manifest)
    seen = world.served({"v1": 100, "base": 0})
    assert [v["revision"] for v in seen["status"]["rollout"]["verdicts"]] == ["base"]
    assert reason_of(seen, "Stalled") == "CandidateRejected"
    world.apply(deployment({"v1": 0, "base": 100}, rollout={**held, "retryToken": "once more"}))
    world.served({"v1": 80, "base": 20})
    traffic.wait_for(4)
    told = traffic.summary()
    assert told.failed == told.cut == 0, told
