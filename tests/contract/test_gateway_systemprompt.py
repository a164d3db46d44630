"""An adapter's system prompt through the real Envoy: what an engine gets, and that nobody gets around it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chats import CLIENTS, Bodies, parsed, roles
from tests.contract.envoy import Rig, model, revision
from tests.contract.gateway_process import MASTER, GatewayProcess, Team, becomes, engine_name_of
from tests.fakes.upstream import Upstream
from tests.systemprompts import ALWAYS, IF_ABSENT, TABLE, TEXT
from tuneyard.api import names
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.systemprompt import CHATS, RefusedError, message_of, with_system_prompt

pytestmark = pytest.mark.envoy

BODIES = 60 * int(os.environ.get("TUNEYARD_EXAMPLES", "20"))
"""Random ones for each of the two ways to apply a prompt; seven milliseconds each on a busy machine."""


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod") as one:
        yield one


def served(name: str, pod: Upstream, prompt: SystemPrompt | None) -> ModelRoutes:
    return model(name, replace(revision("v1", 100, [pod.address], engine="engine"), prompt=prompt), header=True)


@pytest.mark.parametrize("prompt", [IF_ABSENT, ALWAYS], ids=["IfAbsent", "Always"])
async def test_what_the_engine_gets(tmp_path: Path, pod: Upstream, prompt: SystemPrompt) -> None:
    message = message_of(prompt).encode()
    async with Rig(tmp_path) as rig:
        await rig.serve(served("m", pod, prompt), served("plain", pod, None))
        for case, (body, if_absent, always) in TABLE.items():
            wanted = always if prompt.always else if_absent
            # also where the request names its revision
            for headers in ({}, {"x-revision": "v1"}):
                before = len(pod.received)
                status, _, answer = await rig.post(body, path=f"{CHATS}?x=1", headers=headers)
                if wanted is None:
                    error = json.loads(answer)["error"]
                    assert (status, error["code"], len(pod.received)) == (400, "invalid_body", before), case
                    continue
                assert status == 200, (case, answer)
                told = pod.received[-1]
                assert told.body == wanted.replace(b'"model":"m"', b'"model":"engine"').replace(b"%M", message), case
                assert told.headers["content-length"] == str(len(told.body))
        body = TABLE["a role twice"][0]
        assert (await rig.post(body.replace(b'"m"', b'"plain"')))[0] == 200
        assert pod.received[-1].body == body.replace(b'"m"', b'"engine"')
        assert await rig.envoy.stat("http.gateway.lua.rewrite.errors") == 0


async def test_other_paths_and_large_bodies(tmp_path: Path, pod: Upstream) -> None:
    long = SystemPrompt(text="\x01" * 8192, apply="Always")
    async with Rig(tmp_path) as rig:
        await rig.serve(served("mild", pod, IF_ABSENT), served("strict", pod, ALWAYS), served("long", pod, long))
        for name, path, status in (
            ("mild", "/v1/completions", 200),
            ("strict", "/v1/completions", 400),
            ("mild", "/v1/embeddings", 200),
            ("strict", "/v1/embeddings", 200),
        ):
            body = b'{"model":"%s","prompt":"hi","input":"hi"}' % name.encode()
            before = len(pod.received)
            got, _, answer = await rig.post(body, path=path)
            assert got == status
            if got == 200:
                assert pod.received[-1].body == body.replace(name.encode(), b"engine")
            else:
                assert "use /v1/chat/completions" in json.loads(answer)["error"]["message"]
                assert len(pod.received) == before
        before = len(pod.received)
        for room, status in ((100_000, 200), (1000, 413)):  # 49 KB of JSON are put into it
            content = b"x" * ((8 << 20) - room)
            body = b'{"model":"long","messages":[{"role":"user","content":"%s"}]}' % content
            got, _, answer = await rig.post(body)
            assert got == status
        assert json.loads(answer)["error"]["code"] == "request_too_large"
        assert [r.json["messages"][0]["content"] for r in pod.received[before:]] == [long.text]


@pytest.mark.apiserver
async def test_answers_copies_and_gates_of_an_adapter_that_has_one(gateway: GatewayProcess, team: Team) -> None:
    """From the object in the API server to what pods get."""
    async with Upstream("pod-a") as a, Upstream("pod-b") as b:
        team.make_adapter("plain")
        team.make_adapter("prompted", systemPrompt={"text": TEXT, "apply": "Always"})
        team.make_pod(a, "plain")
        team.make_pod(b, "prompted")
        gate = {"name": "speed", "benchmark": {"max": {"ttftP95": "2x"}}}
        gates = {"mode": "Progressive", "gates": [gate], "steps": [{"weight": 1, "hold": "5m"}]}
        team.make_deployment(
            "chat",
            {"plain": 100},
            revisions=["plain", "prompted"],
            mirror={"revision": "prompted", "percent": 100},
            rollout=gates,
        )
        team.rollout("chat", stable="plain", allowed={"plain": 100})
        await gateway.applies(f"{team.namespace}/chat", {"plain": 100, "prompted": 0})
        body = b'{"model":"chat","messages":[{"role":"system","content":"mine"},{"role":"user","content":"%s"}]}'
        plain, prompted = (engine_name_of(name).encode() for name in ("plain", "prompted"))

        async def copied() -> bool:
            assert (await gateway.rig.post(body % b"copied"))[0] == 200
            return any(b"copied" in r.body for r in b.received)

        await becomes(copied, True, "copies arrive")
        assert a.received[-1].body == (body % b"copied").replace(b"chat", plain, 1)
        token = names.gate_token(MASTER, team.namespace, "chat")
        headers = {"x-revision": "prompted", names.GATE_TOKEN_HEADER: token}
        assert (await gateway.rig.post(body % b"of a gate", headers=headers))[0] == 200
        measured = {"model": "chat", "prompt": "how fast?"}
        assert (await gateway.rig.post(measured, path="/v1/completions", headers=headers))[0] == 200
        # copies still come in between
        (told,) = (r for r in b.received if r.path == "/v1/completions")
        assert told.json == measured | {"model": prompted.decode()}
        head = b'{"model":"%s","messages":[%s,{"role":"user","content":"' % (prompted, message_of(ALWAYS).encode())
        wanted = {head + said + b'"}]}' for said in (b"copied", b"of a gate")}
        assert {r.body for r in b.received if r.path == CHATS} == wanted


@pytest.mark.apiserver
async def test_what_a_prompt_makes_a_candidate_refuse_is_counted_as_its_refusals(
    gateway: GatewayProcess, team: Team, pod: Upstream
) -> None:
    """Stable answers the same requests: so a rollout sees the difference, and Prometheus has it too."""
    team.make_adapter("plain")
    team.make_adapter("strict", systemPrompt={"text": TEXT, "apply": "Always"})
    team.make_pod(pod, "plain", "strict")
    slo = {"analysis": {"slo": {"errorRate": "1%"}}}
    team.make_deployment("chat", {"plain": 50, "strict": 50}, rollout=slo, routing={"allowRevisionHeader": True})
    await gateway.judges(f"{team.namespace}/chat", {"plain": 50, "strict": 50})
    body = {"model": "chat", "prompt": "hi"}
    told = Counter([(await gateway.rig.post(body, path="/v1/completions"))[0] for _ in range(60)])
    assert told.keys() == {200, 400} and min(told.values()) > 10
    assert pod.asked == {engine_name_of("plain"): told[200]}
    # who names the revision is no random sample
    named = {names.REVISION_HEADER: "strict"}
    assert (await gateway.rig.post(body, path="/v1/completions", headers=named))[0] == 400

    async def counted() -> dict[str, dict[str, tuple[int, int]]]:
        found = (await gateway.evidence()).deployments[f"{team.namespace}/chat"].counts
        sums = {r: {o: [*map(sum, zip(*t.values(), strict=True))] for o, t in by.items()} for r, by in found.items()}
        return {r: {o: (numbers[0], numbers[1]) for o, numbers in by.items()} for r, by in sums.items()}

    answered, refused = told[200], told[400]
    expected = {
        "plain": {
            "errorRate": (answered, 0),
            "unjudged": (answered, 0),
            "clientErrors": (answered, 0),
            "clientsLeft": (answered, 0),
        },
        "strict": {"unjudged": (refused, refused), "clientErrors": (refused, refused), "clientsLeft": (refused, 0)},
    }
    await becomes(counted, expected, "refusals are the candidate's")
    series = f'tuneyard_requests_total{{namespace="{team.namespace}",deployment="chat",revision="strict",outcome='
    assert f'{series}"client_error"}} {refused + 1}' in await gateway.page()


@pytest.mark.parametrize("prompt", [IF_ABSENT, ALWAYS], ids=["IfAbsent", "Always"])
async def test_random_bodies(tmp_path: Path, pod: Upstream, prompt: SystemPrompt) -> None:
    """Envoy's script does what its double does, which property tests hold against a JSON parser."""
    bodies, outcomes = Bodies(1), Counter[str]()
    async with Rig(tmp_path) as rig:
        await rig.serve(served("support", pod, prompt))
        for _ in range(BODIES):
            body = bodies.next()
            status, _, answer = await rig.post(body)
            error = json.loads(answer).get("error", {})
            if status == 404 or error.get("param") == "model":
                outcomes["not ours"] += 1  # `extract` has refused it
                continue
            try:
                wanted = with_system_prompt(body.replace(b"support", b"engine", 1), CHATS, prompt)
            except RefusedError:
                outcomes["refused"] += 1
                assert (status, error.get("param")) == (400, "messages"), body
                continue
            outcomes["passed"] += 1
            assert status == 200, (body, answer)
            came = pod.received[-1].body
            assert came == wanted, body
            read = parsed(came)
            if prompt.always and read is not None:
                first, *others = roles(read)
                assert (first, read.last("messages")[0].last("content")) == ("system", TEXT)
                assert set(others) <= set(CLIENTS)
        assert await rig.envoy.stat("http.gateway.lua.rewrite.errors") == 0
        assert await rig.envoy.stat("http.gateway.lua.extract.errors") == 0
    assert min(outcomes["refused"], outcomes["passed"]) > BODIES / 10, outcomes
