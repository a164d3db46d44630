"""What a real Envoy does with tenants' keys: who gets in, what each may call, and what nobody can pretend."""

from __future__ import annotations

import json
import random
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contract.envoy import Rig, eventually, model, revision
from tests.contract.test_gateway_routing import assert_openai_error
from tests.fakes.upstream import Upstream
from tests.systemprompts import ALWAYS
from tuneyard.api import names
from tuneyard.api.routing import Affinity
from tuneyard.planning.tenants import Caller, Policy
from tuneyard.systems.envoy.tenancy import caller_text, gate_caller, shard_of, shard_resources
from tuneyard.systems.envoy.translate import model_resources

pytestmark = pytest.mark.envoy

KEY, OTHER, POOR = (f"sk-{name}-0123456789abcdef" for name in ("acme", "beta", "poor"))
CALLERS = {
    KEY: Caller("acme", Policy(("chat", "team-*"))),
    OTHER: Caller("beta", Policy(("*",))),
    POOR: Caller("poor", None),
}
MODELS = ("chat", "team-a", "team-b/x:1", "support")


def put_keys(rig: Rig, callers: Mapping[str, Caller]) -> None:
    tables: dict[str, dict[str, str]] = {}
    for key, caller in callers.items():
        tables.setdefault(shard_of(key), {})[key] = caller_text(caller)
    for shard, table in tables.items():
        rig.ads.put(shard, shard_resources(shard, table))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


@asynccontextmanager
async def serving(folder: Path, pod: Upstream) -> AsyncIterator[Rig]:
    async with Rig(folder, keys=True) as rig:
        put_keys(rig, CALLERS)
        await rig.serve(*(model(name, revision("v1", 100, [pod.address])) for name in MODELS))
        yield rig


async def test_who_gets_in(tmp_path: Path, pod: Upstream) -> None:
    async with serving(tmp_path, pod) as rig:
        for shown in (
            bearer(KEY),
            {"authorization": f"bearer  {KEY}"},
            {"x-api-key": KEY},
            bearer(KEY) | {"x-api-key": "no"},
        ):
            assert (await rig.post({"model": "chat"}, headers=shown))[0] == 200, shown
        near = shard_mate(KEY)
        assert shard_of(near) == shard_of(KEY)
        for shown in (
            {}, bearer(""), bearer("short"), bearer(KEY + "x"), bearer(KEY[:-1]), bearer(near),
            bearer("x" * 60_000 + KEY),
            {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, {"api-key": KEY}, {"cookie": f"x-api-key={KEY}"},
            {"x-api-key": f"{KEY},{KEY}"}, {"x-api-key": f"{KEY} acme"}, {"tuneyard-gate": f"{KEY} acme"},
            {"x-tenant": "acme"}, {"x-tuneyard-tenant": "acme"}, {"x-model": shard_of(KEY)},
        ):  # fmt: skip
            for path in ("/v1/chat/completions", "/v1/feedback", "/nowhere"):
                status, _, answer = await rig.post({"model": "chat"}, headers=shown, path=path)
                if status == 431 and "xxxx" in str(shown):
                    continue  # longer than headers may be
                assert status == 401, (shown, path)
                assert_openai_error(answer, code="invalid_api_key")
            assert (await rig.get("/v1/models", headers={k: v for k, v in shown.items() if len(v) < 1000}))[0] == 401
        assert len(pod.received) == 4


def shard_mate(key: str) -> str:
    """Another key that stands, or would stand, in the same table."""
    return "sk-somebody-else-" + key[-4:]


async def test_a_key_with_more_behind_it_is_none(tmp_path: Path, pod: Upstream) -> None:
    """What stands behind a key in its table cannot be claimed as a part of it, to be somebody else."""
    more = " acme ,chat,"
    key = next(k for k in (f"sk-acme-{n:012}" for n in range(100_000)) if shard_of(k) == shard_of(k + more))
    async with Rig(tmp_path, keys=True) as rig:
        put_keys(rig, {key: CALLERS[KEY]})
        await rig.serve(model("chat", revision("v1", 100, [pod.address])))
        assert (await rig.post({"model": "chat"}, headers={"x-api-key": key}))[0] == 200
        for shown in ({"x-api-key": key + more}, {"tuneyard-gate": key + more}, bearer(key + more)):
            assert (await rig.post({"model": "chat"}, headers=shown))[0] == 401
    assert [received.headers["x-tenant"] for received in pod.received] == ["acme"]


async def test_what_each_may_call(tmp_path: Path, pod: Upstream) -> None:
    async with serving(tmp_path, pod) as rig:
        for key, allowed in ((KEY, {"chat", "team-a", "team-b/x:1"}), (OTHER, set(MODELS)), (POOR, set[str]())):
            called = {m for m in MODELS if (await rig.post({"model": m}, headers=bearer(key)))[0] == 200}
            assert called == allowed
        status, listed = await rig.get("/v1/models", headers=bearer(KEY))
        assert (status, [m["id"] for m in listed["data"]]) == (200, ["chat", "team-a", "team-b/x:1"])
        assert listed["object"] == "list" and listed["data"][0]["owned_by"] == "tuneyard"
        assert [m["id"] for m in (await rig.get("/v1/models", headers=bearer(OTHER)))[1]["data"]] == sorted(MODELS)
        assert (await rig.get("/v1/models/team-b%2Fx:1", headers=bearer(KEY)))[1]["id"] == "team-b/x:1"
        for answer in (
            (await rig.post({"model": "chat"}, headers=bearer(POOR)))[::2],
            await rig.get("/v1/models", headers=bearer(POOR)),
        ):
            status, body = answer
            assert status == 403
            error = assert_openai_error(
                body if isinstance(body, bytes) else json.dumps(body).encode(), code="no_policy"
            )
            assert error["message"] == "The tenant poor has no policy: it may call no model."


async def test_others_models_are_as_unknown_as_none(tmp_path: Path, pod: Upstream) -> None:
    """Whoever tries names learns nothing, from no part of the answer."""
    async with serving(tmp_path, pod) as rig:

        async def asked(name: str) -> list[object]:
            status, headers, body = await rig.post({"model": name}, headers=bearer(KEY))
            async with rig.session.get(f"/v1/models/{name}", headers=bearer(KEY)) as response:
                got = (response.status, sorted(response.headers), await response.text())
            return [status, sorted(headers), body.decode().replace(name, "NAME"), *got]

        assert await asked("support") == await asked("nothing") == await asked("team-nothing")
        assert (await asked("support"))[0] == 404
        logged = await rig.envoy.logged(8)
    posts = [line for line in logged if line["method"] == "POST"]
    assert {line["error"] for line in posts} == {"model_not_allowed", "model_not_found"}, "the log tells them apart"
    assert not pod.received


async def test_nobody_can_pretend_and_no_engine_sees_a_credential(tmp_path: Path, pod: Upstream) -> None:
    async with serving(tmp_path, pod) as rig:
        spoofed = {
            "x-tenant": "beta", "X-Tenant": "beta", "x-tuneyard-allowed": ", *", "x-tuneyard-gate": "open",
            "x-model": "support", "x-tuneyard-tenant": "beta", "cookie": f"key={OTHER}", "api-key": OTHER,
            "x-api-key": OTHER,
            "tuneyard-gate": OTHER,
        }  # fmt: skip
        assert (await rig.post({"model": "support"}, headers=bearer(KEY) | spoofed))[0] == 404
        assert [m["id"] for m in (await rig.get("/v1/models", headers=bearer(KEY) | spoofed))[1]["data"]][
            -1
        ] != "support"
        assert (await rig.post({"model": "chat"}, headers=bearer(KEY) | spoofed))[0] == 200
        twice = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {OTHER}")]
        async with rig.session.post("/v1/completions", json={"model": "chat"}, headers=twice) as response:
            assert response.status == 401, "which of two is meant nobody can say"
        (received,) = pod.received
        logged = await rig.envoy.logged(4)
    assert received.headers["authorization"] == "Bearer key-of-default-base"
    assert received.headers["x-tenant"] == "acme"
    everything = str(received.headers) + json.dumps(logged) + rig.envoy.log.read_text()
    assert not [key for key in CALLERS if key in everything]
    assert [line["tenant"] for line in logged] == ["acme", "acme", "acme", None]


async def test_the_script_reads_policies_and_tables_as_the_planner_does(tmp_path: Path, pod: Upstream) -> None:
    """Keys of every length and alphabet, patterns and names at random."""
    chance = random.Random(6)
    alphabets = ("0123456789abcdef", "abcXYZ019-_", "".join(map(chr, range(33, 127))))
    keys = ["".join(chance.choices(a, k=chance.choice((16, 17, 64, 512)))) for a in alphabets for _ in range(20)]
    keys += [secrets.token_urlsafe(32) for _ in range(20)]
    words = list(_words(chance))
    callers = {key: Caller(f"t{n}", Policy(tuple(chance.sample(words, 4)))) for n, key in enumerate(keys)}
    names = sorted({w.replace("*", chance.choice(("", "a", "ab"))) or "a" for w in words} - {""})
    names = [name for name in names if name[0].isalnum()]
    async with Rig(tmp_path, keys=True) as rig:
        put_keys(rig, callers)
        await rig.serve(*(model(name, revision("v1", 100, [pod.address])) for name in names))
        for key, caller in callers.items():
            assert caller.policy is not None
            status, listed = await rig.get("/v1/models", headers=bearer(key))
            allowed = [name for name in names if caller.policy.allows(name)]
            assert (status, [m["id"] for m in listed["data"]]) == (200, allowed), (key, caller)
        errors = [await rig.envoy.stat(f"http.gateway.lua.{name}.errors") for name in ("extract", "rewrite")]
    assert errors == [0, 0]


def _words(chance: random.Random) -> Iterator[str]:
    yield from (
        "*",
        "a",
        "ab",
        "a*",
        "*a",
        "a*a",
        "*b*",
        "a.b",
        "a-*",
        "a%b*".replace("%", ":"),
        "a-b-*-c",
        "**",
        "a**b",
    )
    for _ in range(40):
        yield chance.choice("ab*") + "".join(chance.choices("ab-./*", k=chance.randrange(1, 6)))


async def test_tenants_stay_on_a_revision_and_on_a_pod(tmp_path: Path) -> None:
    """By whom their keys say they are, whichever of the keys they show, and whatever clients say of themselves."""
    callers = {f"sk-{n:02}-{key}-0123456789ab": Caller(f"t{n}", Policy(("*",))) for n in range(16) for key in "ab"}
    async with AsyncExitStack() as stack:
        pods = [await stack.enter_async_context(Upstream(f"pod-{number}")) for number in range(3)]
        rig = await stack.enter_async_context(Rig(tmp_path, keys=True))
        put_keys(rig, callers)
        one = model("chat", *(revision(n, 50, [p.address for p in pods]) for n in ("v1", "v2")))
        affinity = Affinity(header="x-tenant")
        await rig.serve(replace(one, stable="v1", sticky_by="x-tenant", affinity=affinity))
        told: dict[str, set[str]] = {}
        for number in range(4):
            for key, caller in callers.items():
                shown = bearer(key) | {"x-tenant": f"somebody-{number}"}
                status, headers, _ = await rig.post({"model": "chat"}, headers=shown)
                assert status == 200
                told.setdefault(caller.tenant, set()).add(headers["x-revision"])
        where = {
            tenant: {p.name for p in pods for r in p.received if r.headers["x-tenant"] == tenant} for tenant in told
        }
    assert all(len(revisions) == 1 for revisions in told.values()), told
    assert set().union(*told.values()) == {"v1", "v2"}
    assert all(len(found) == 1 for found in where.values()), where
    assert len(set().union(*where.values())) > 1


TOKEN = "fedcba9876543210" * 4
GATE = {names.GATE_TOKEN_HEADER: TOKEN, names.REVISION_HEADER: "v2"}


async def test_a_gates_token_is_no_key_and_no_key_a_gates_token(tmp_path: Path, pod: Upstream) -> None:
    """It asks revisions of its model in its own header, and stands beside no tenant's key."""
    v1, v2 = (replace(revision(n, w, [pod.address]), prompt=ALWAYS) for n, w in (("v1", 100), ("v2", 0)))
    body = {"model": "chat", "prompt": "hi"}
    async with serving(tmp_path, pod) as rig:
        routes = replace(model("chat", v1, v2), gated=True)
        rig.ads.put("chat", model_resources(routes, lambda *_: "key", lambda *_: TOKEN))
        rig.ads.put(shard_of(TOKEN), shard_resources(shard_of(TOKEN), {TOKEN: gate_caller("chat")}))
        rig.ads.publish()
        await eventually(lambda: rig.ads.complete, "the gates' routes are there")
        status, answered, _ = await rig.post(body, path="/v1/completions", headers=GATE)
        assert (status, answered["x-revision"]) == (200, "v2")
        asked = {names.REVISION_HEADER: "v2"}
        for shown in (
            bearer(TOKEN), bearer(TOKEN) | asked, bearer(TOKEN) | GATE,
            {"x-api-key": TOKEN}, {"x-api-key": TOKEN} | asked,
            {names.GATE_TOKEN_HEADER: TOKEN}, GATE | {names.GATE_TOKEN_HEADER: KEY}, GATE | bearer("no"),
            GATE | {"authorization": "Basic x"},
        ):  # fmt: skip
            status, _, answer = await rig.post(body, headers=shown)
            assert status == 401, shown
            assert_openai_error(answer, code="invalid_api_key")
        assert (await rig.get("/v1/models", headers=GATE))[0] == 401
        assert (await rig.get("/v1/models/chat", headers=GATE))[0] == 401
        assert (await rig.post({"request_id": "x", "score": 1}, path="/v1/feedback", headers=GATE))[0] == 401
        status, _, answer = await rig.post(body, headers=GATE | {names.REVISION_HEADER: "v3"})
        assert status == 404
        assert_openai_error(answer, code="revision_not_found")
        assert (await rig.post({"model": "support"}, headers=GATE))[0] == 404
        # beside a tenant's key it opens nothing: neither the revision, nor a way past the model's system prompt
        messages = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        for shown in (bearer(KEY) | GATE, {"x-api-key": KEY} | GATE):
            status, answered, answer = await rig.post(messages, headers=shown)
            assert (status, answered.get("x-revision")) == (200, "v1"), answer
            assert (await rig.post(body, path="/v1/completions", headers=shown))[0] == 400
        logged = [line for line in await rig.envoy.logged(19) if line["status"] == 200]
    assert [line["tenant"] for line in logged] == [names.GATE_TENANT, "acme", "acme"]
    assert len(pod.received) == 3
    assert not [r for r in pod.received if TOKEN in str(r.headers)]


async def test_a_script_that_fails_lets_nobody_in(tmp_path: Path, pod: Upstream) -> None:
    async with serving(tmp_path, pod) as rig:
        # a table that says nothing that could be read
        rig.ads.put(shard_of(KEY), shard_resources(shard_of(KEY), {KEY: " "}))
        rig.ads.publish()
        await eventually(lambda: rig.ads.complete, "Envoy has the broken table")
        status, _, answer = await rig.post({"model": "chat"}, headers=bearer(KEY))
        assert status == 500
        assert_openai_error(answer, code="gateway_error", kind="server_error")
        assert (await rig.get("/v1/models", headers=bearer(KEY)))[0] == 500
        assert await rig.envoy.stat("http.gateway.lua.extract.errors") == 2
    assert not pod.received
