"""Requests through the real Envoy: which revision gets them, what of them arrives, what is refused and how."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.contract.envoy import Rig, engine_key, model, revision
from tests.fakes.upstream import Upstream
from tuneyard.systems.envoy.translate import cluster_name

pytestmark = pytest.mark.envoy

EXACT = [
    b'{"model":"%s","tools":[{"b":1,"a":{"z":9007199254740993,"A":1.0e5}}],"messages":[]}',
    b' \r\n\t{ "messages":[{"content":"caf\\u00e9 \\"model\\": \\"x\\" \\\\"}],\n  "model" :\t"%s" , "n":1} ',
    '{"messages":[{"content":"日本語 😀 {[\\"]}"}],"model":"%s","seed":-0.0}'.encode(),
    b'{"metadata":{"model":"not this one","x":[{"model":"nor this"}]},"model":"%s"}',
    b'{"messages":[{"content":"ends in a backslash \\\\"},{"content":"\\\\\\""}],"model":"%s"}',
    b'{"model":"%s","messages":[{"role":"user","content":"' + b"x" * 200_000 + b'"}]}',
]
"""Bodies whose every byte but the model's name has to arrive."""

MALFORMED = {
    b"": "must be a JSON object",
    b"[]": "must be a JSON object",
    b'"model"': "must be a JSON object",
    b"model=support": "must be a JSON object",
    b'\xef\xbb\xbf{"model":"support"}': "must be a JSON object",
    b"{}": "provide a model",
    b'{"messages":[]}': "provide a model",
    b'{"messages":[{"model":"support"}]}': "provide a model",
    b'{"model":""}': "provide a model",
    b'{"model":null}': "must be a string",
    b'{"model":{"model":"support"}}': "must be a string",
    b'{"model":"other","model":"support"}': "twice",
    b'{"m\\u006fdel":"other","model":"support"}': "escapes",
    b'{"model":"support","messages":[': "brackets",
    b'{"model":"support"}}': "not valid JSON",
    b'{"model":"support"} {"model":"other"}': "follows the object",
    b'{"model":"support': "string does not end",
    b'{"model":"support","a":"\x00"}': "UTF-8",
    '{"model":"support"}'.encode("utf-16-le"): "UTF-8",
    b'{"model":"support","a":' + b"[" * 300 + b"]" * 300 + b"}": "nested",
}


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with Upstream("a") as a, Upstream("b") as b:
        yield a, b


def assert_openai_error(body: bytes, *, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, kind)
    assert error["message"]
    return error


async def test_every_byte_but_the_models_name_arrives(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    pod = pods[0]
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address], engine="a-much-longer-name-0123456789ab")))
        for body in EXACT:
            status, headers, _ = await rig.post(body % b"support")
            assert (status, headers["x-revision"]) == (200, "v1")
            assert pod.received[-1].body == body % b"a-much-longer-name-0123456789ab"


async def test_a_chunked_body_and_an_escaped_slash(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    pod = pods[0]
    async with Rig(tmp_path) as rig:
        await rig.serve(model("org/big.model:8b", revision("v1", 100, [pod.address])))
        body = b'{"model":"org\\/big.model:8b","x":"' + b"y" * 100_000 + b'"}'

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 999):
                yield body[at : at + 999]

        async with rig.session.post("/v1/completions", data=pieces()) as response:
            assert response.status == 200
        assert pod.received[-1].body == body.replace(b"org\\/big.model:8b", b"engine-v1")
        assert pod.received[-1].headers["content-length"] == str(len(pod.received[-1].body))


async def test_malformed_bodies_never_reach_a_model(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [p.address for p in pods])))
        for body, words in MALFORMED.items():
            status, _, answer = await rig.post(body)
            assert status == 400, body
            assert words in assert_openai_error(answer, code="invalid_body")["message"], body
        status, _, answer = await rig.post(b'{"model":"support","x":"' + b"y" * (8 << 20) + b'"}')
        assert status == 413
        assert_openai_error(answer, code="request_too_large")
        for encoding in ("gzip", "br", "identity, gzip"):
            status, _, answer = await rig.post({"model": "support"}, headers={"content-encoding": encoding})
            assert status == 415
            assert_openai_error(answer, code="unsupported_content_encoding")
        status, _, _ = await rig.post(b'{"model":"support","x":"' + b"y" * ((8 << 20) - 1000) + b'"}')
        assert status == 200
    assert [len(p.received) for p in pods] in ([1, 0], [0, 1])


async def test_unknown_models_and_paths(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        for name in ("nope", "support2", "Support", "-", "a b", "x" * 300, "<script>", "engine-v1"):
            status, _, answer = await rig.post({"model": name})
            assert status == 404, name
            assert_openai_error(answer, code="model_not_found")
        for path in ("/", "/v1", "/v1/load_lora_adapter", "/v1/chat/completions/x", "/adapters", "/invocations"):
            status, _, answer = await rig.post({"model": "support"}, path=path)
            assert status == 404, path
            assert_openai_error(answer, code="unknown_url")
        async with rig.session.put("/v1/chat/completions", json={"model": "support"}) as response:
            assert response.status == 405
            assert_openai_error(await response.read(), code="method_not_allowed")
    assert not pods[0].received


async def test_what_clients_may_not_say(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """Spoofed headers choose nothing, and a client's credentials never reach the engine."""
    a, b = pods
    async with Rig(tmp_path) as rig:
        await rig.serve(
            model("support", revision("v1", 100, [a.address])), model("secret", revision("v1", 100, [b.address]))
        )
        spoofed = {
            "authorization": "Bearer clients-own",
            "x-api-key": "clients-own",
            "cookie": "clients-own",
            "x-model": "secret",
            "x-tuneyard-gate": "open",
            "x-revision": "v1",
            "x-envoy-max-retries": "9",
            "x-envoy-retry-on": "5xx",
            "x-envoy-upstream-rq-timeout-ms": "1",
        }
        status, _, _ = await rig.post({"model": "support"}, headers=spoofed)
        assert status == 200
        for body in (b"{}", b"not json", b'{"model":"nope"}'):
            status, _, _ = await rig.post(body, headers=spoofed)
            assert status in (400, 404)
        assert not b.received
        (received,) = a.received
        assert received.headers["authorization"] == f"Bearer {engine_key('default', 'base')}"
        assert "clients-own" not in str(received)
        told = {h for h in received.headers if h.startswith("x-")}
        assert not told & (spoofed.keys() - {"x-model"})
        assert received.headers["x-model"] == "support"


async def test_a_gateway_that_is_its_own_pod_answers_once(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """An endpoint that is a gateway, under a model whose engine name is a model's name, makes no loop."""
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [f"127.0.0.1:{rig.port}"], engine="support")))
        async with asyncio.timeout(10):
            status, _, answer = await rig.post({"model": "support"})
        assert status == 508
        assert_openai_error(answer, code="loop_detected", kind="server_error")
        assert await rig.envoy.stat("http.gateway.downstream_rq_total") == 2
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        assert (await rig.post({"model": "support"}))[0] == 200
        assert (await rig.post({"model": "support"}, headers={"tuneyard-hop": "0"}))[0] == 508


async def test_weights_within_three_sigma(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    a, b = pods
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 90, [a.address]), revision("v2", 10, [b.address])))
        count = 10_000

        async def some(number: int) -> Counter[str]:
            return Counter([(await rig.post(b'{"model":"support"}'))[1]["x-revision"] for _ in range(number)])

        told = sum(await asyncio.gather(*(some(count // 20) for _ in range(20))), Counter[str]())
        assert told.total() == count
        assert abs(told["v2"] - count * 0.1) <= 3 * sqrt(count * 0.1 * 0.9)
        # body and pod are always of one revision
        assert a.asked == Counter({"engine-v1": told["v1"]})
        assert b.asked == Counter({"engine-v2": told["v2"]})


async def test_choosing_a_revision_only_where_it_is_allowed(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    a, b = pods
    revisions = revision("v1", 100, [a.address]), revision("v2", 0, [b.address])
    async with Rig(tmp_path) as rig:
        await rig.serve(model("closed", *revisions), model("open", *revisions, header=True))
        for name, header, expected in (
            ("closed", "v2", "v1"),
            ("closed", "nope", "v1"),
            ("open", "v2", "v2"),
            ("open", "v1", "v1"),
            ("open", None, "v1"),
        ):
            status, headers, answer = await rig.post({"model": name}, headers={"x-revision": header} if header else {})
            assert (status, headers["x-revision"]) == (200, expected)
            assert json.loads(answer)["model"] == f"engine-{expected}"
        status, _, answer = await rig.post({"model": "open"}, headers={"x-revision": "nope"})
        assert status == 404
        assert_openai_error(answer, code="revision_not_found")
    assert all("x-revision" not in r.headers for r in (*a.received, *b.received))


async def test_a_share_that_nobody_may_serve(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(
            model("half", revision("v1", 0), revision("v2", 50, [pods[0].address]), unserved=50),
            model("none", revision("v1", 0), unserved=100),
            model("empty", revision("v1", 100, [])),
        )
        for name, code in (("none", "model_not_ready"), ("empty", "unavailable")):
            status, headers, answer = await rig.post({"model": name})
            assert (status, headers["retry-after"]) == (503, "5")
            assert_openai_error(answer, code=code, kind="server_error")
        fates = Counter([(await rig.post({"model": "half"}))[0] for _ in range(400)])
        assert fates.keys() == {200, 503}
        assert abs(fates[503] - 200) <= 60  # six standard deviations


async def test_models_are_listed(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])), model("org/none", unserved=100))
        async with openai.AsyncOpenAI(base_url=f"{rig.url}/v1", api_key="any", max_retries=0) as client:
            assert [m.id for m in (await client.models.list()).data] == ["org/none", "support"]
            assert (await client.models.retrieve("support")).owned_by == "tuneyard"
            assert (await client.models.retrieve("org/none")).created == 1_700_000_000
            with pytest.raises(openai.NotFoundError) as refused:
                await client.models.retrieve("nope")
            assert refused.value.code == "model_not_found"
            rig.drop("org/none")
            await rig.serve(model("later", revision("v1", 100, [pods[0].address])))
            assert [m.id for m in (await client.models.list()).data] == ["later", "support"]
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="org/none", messages=[])
            answer = await client.chat.completions.create(model="later", messages=[])
            assert answer.choices[0].message.content == "hello from a"
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.chat.completions.create(model="", messages=[])
            assert wrong.value.param == "model"


@pytest.mark.parametrize("name", ["extract", "rewrite"])
@pytest.mark.parametrize("spoof", [{}, {"x-model": "support", "x-tuneyard-gate": "open"}])
async def test_a_failing_script_fails_closed(
    tmp_path: Path, pods: tuple[Upstream, Upstream], name: str, spoof: dict[str, str]
) -> None:
    broken = "function envoy_on_request(handle) handle:headers():replace('x-seen', '1'); error('broken') end"
    async with Rig(tmp_path, scripts={name: broken}) as rig:
        # the base's own name is the engine's: an unmodified body would be answered
        await rig.serve(model("support", revision("v1", 100, [pods[0].address], engine="support")))
        status, _, answer = await rig.post({"model": "support"}, headers=spoof)
        assert status == 500
        assert_openai_error(answer, code="gateway_error", kind="server_error")
        assert await rig.envoy.stat(f"http.gateway.lua.{name}.errors") == 1
    assert not pods[0].received


async def test_a_failing_watcher_of_answers_lets_them_pass(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    broken = "function envoy_on_response(handle) error('broken') end"
    async with Rig(tmp_path, scripts={"answer": broken}) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        assert (await rig.post({"model": "support"}))[0] == 200


async def test_every_answer_can_be_traced_to_the_bytes_that_gave_it(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    digest, merged = "sha256:" + "5e" * 32, "sha256:" + "b0" * 32
    base = replace(revision("v0", 0, [pods[0].address], engine="smollm2"), digest=merged)
    unread = revision("v-1", 0, [pods[0].address], engine="smollm2")
    tuned = replace(revision("v1", 100, [pods[1].address]), adapter="acme-support-v1", digest=digest)
    lost = replace(revision("v2", 0), engine_name=None, adapter="acme-support-v2")
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", base, unread, tuned, lost, header=True))
        # what an engine says of itself counts for nothing
        forged = {"x-adapter": "forged@sha256:00", "x-base-model": "forged@sha256:00", "x-revision": "forged"}
        asked = {"model": "support", "headers": forged}
        for chosen, status, headers in (
            ({}, 200, ["v1", f"acme-support-v1@{digest}", None]),
            ({"x-revision": "v1"}, 200, ["v1", f"acme-support-v1@{digest}", None]),
            ({"x-revision": "v0"}, 200, ["v0", None, f"smollm2@{merged}"]),
            ({"x-revision": "v-1"}, 200, ["v-1", None, None]),
            ({"x-revision": "v2"}, 503, [None, None, None]),
        ):
            answered, said, _ = await rig.post(asked, headers=chosen)
            told_of = [said.get(name) for name in ("x-revision", "x-adapter", "x-base-model")]
            assert [answered, *told_of] == [status, *headers]
        told = await rig.envoy.logged(5)
    fields = ("model", "revision", "adapter", "adapter_digest", "base_model", "base_digest")
    assert [tuple(line[f] for f in fields) for line in told] == [
        *[("support", "v1", "acme-support-v1", digest, None, None)] * 2,
        ("support", "v0", None, None, "smollm2", merged),
        ("support", "v-1", None, None, None, None),
        ("support", None, None, None, None, None),
    ]


async def test_a_bases_digest_that_becomes_known_costs_no_request(
    tmp_path: Path, pods: tuple[Upstream, Upstream]
) -> None:
    """What is told of a cluster never changes: it is another cluster, warm before requests go there."""
    unread = revision("v1", 100, [pods[0].address], engine="smollm2")
    digest = "sha256:" + "b0" * 32
    read = replace(unread, digest=digest)
    assert cluster_name(model("support", unread), unread) != cluster_name(model("support", read), read)
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", unread))
        asked = {"model": "support", "stream": True, "chunks": 20, "delay": 0.02}
        running = asyncio.create_task(rig.post(asked))
        await rig.serve(model("support", read))
        said: list[str | None] = []
        for _ in range(50):
            status, headers, _ = await rig.post({"model": "support"})
            assert status == 200
            said.append(headers.get("x-base-model"))
        assert said[-1] == f"smollm2@{digest}"
        assert (await running)[0] == 200


async def test_the_access_log_tells_all_but_secrets(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [pods[0].address])))
        asked = {"model": "support", "messages": [{"role": "user", "content": "my-secret-prompt"}]}
        timed = {"stream": True, "chunks": 11, "delay": 0.03, "first": 0.3, "stream_options": {"include_usage": True}}
        credentials = {"authorization": "Bearer clients-secret", "x-request-id": "my-request"}
        await rig.post(asked, headers=credentials)
        await rig.post({**asked, **timed})
        await rig.post({**asked, "model": "nope"})
        whole, stream, refused = await rig.envoy.logged(3)
        text = rig.envoy.access_log.read_text()
    for secret in ("my-secret-prompt", "clients-secret", engine_key("default", "base"), "hello from"):
        assert secret not in text
    assert whole["request_id"] == "my-request"
    assert (whole["model"], whole["deployment"], whole["revision"]) == ("support", "default/md-support", "v1")
    assert (whole["pod"], whole["address"], whole["attempts"]) == ("pod-0", pods[0].address, 1)
    assert (whole["status"], whole["path"]) == (200, "/v1/chat/completions")
    assert (whole["prompt_tokens"], whole["completion_tokens"]) == (11, 3)
    assert (stream["prompt_tokens"], stream["completion_tokens"]) == (7, 11)
    assert stream["headers_ms"] < 250 < stream["ttft_ms"] < 600
    assert 20 < stream["itl_ms"] < 60
    assert stream["chunks"] >= 11
    assert (refused["status"], refused["error"], refused["pod"]) == (404, "model_not_found", None)


async def test_usage_is_found_wherever_chunks_are_cut(tmp_path: Path) -> None:
    """A usage object cut anywhere, and generated text that looks like one."""
    usage = b'"usage":{"prompt_tokens":123,"total_tokens":579,"completion_tokens":456}'
    spoof = json.dumps({"content": usage.decode().replace("123", "999")}).encode()
    body = b'{"choices":[' + spoof + b"]," + usage + b',"prompt_logprobs":null}'
    cuts = iter(range(len(spoof), len(body), 5))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            await reader.read(1000)
            cut = next(cuts)
            head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body[:cut])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.write(body[cut:])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 100, [f"127.0.0.1:{port}"])))
        for _ in range(12):
            assert (await rig.post({"model": "support"}))[2] == body
        for line in await rig.envoy.logged(12):
            assert (line["prompt_tokens"], line["completion_tokens"]) == (123, 456)
    server.close()


async def test_admin_is_reachable_from_inside_the_pod_only(tmp_path: Path) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(model("support", revision("v1", 0), unserved=100))
        assert engine_key("default", "base") not in (await rig.get("/config_dump"))[1]["error"]["message"]
        assert _open_sockets(tmp_path) == {"ads.sock": 0, "envoy-admin.sock": 0}


def _open_sockets(folder: Path) -> dict[str, int]:
    """Sockets, and what others than their owner may do with them."""
    return {s.name: s.stat().st_mode & 0o077 for s in folder.iterdir() if s.is_socket()}
