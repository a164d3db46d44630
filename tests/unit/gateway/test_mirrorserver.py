"""What the gateway process takes for a copy or an answer, and what it drops."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestClient, TestServer

from tests.contract.envoy import eventually
from tests.unit.gateway.test_mirroring import BODY, Gateway, routes, said
from tuneyard.gateway.mirrorserver import application, told_id
from tuneyard.systems.envoy.mirroring import ANSWER_LIMIT, BODY_LIMIT

ANSWER = json.dumps({"choices": [{"message": {"content": "hello"}}]}).encode()
COPY = {
    "model": "chat",
    "revision": "v3",
    "against": "v1",
    "request": "r-1",
    "path": "/v1/chat/completions",
    "at": "12-15",
    "size": str(len(BODY)),
    "answer": "whole",
    "status": "200",
    "kind": "application/json",
    "first-ms": "1.5",
    "whole-ms": "2.5",
}


def headers(told: dict[str, str], **changes: str) -> dict[str, str]:
    return {f"x-tuneyard-{name.replace('_', '-')}": value for name, value in {**told, **changes}.items()}


@pytest.fixture
def gateway() -> Gateway:
    return Gateway(routes())


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[TestClient]:
    async with TestClient(TestServer(application(gateway.mirroring))) as client:
        yield client


async def post(client: TestClient, told: dict[str, str], body: bytes = BODY + ANSWER) -> int:
    async with client.post("/copy", data=io.BytesIO(body), headers=told) as response:
        return response.status


@pytest.mark.parametrize(("told", "similarity"), [({}, 1), ({"answer": ""}, None), ({"first-ms": ""}, 1)])
async def test_a_copy_and_the_users_answer_make_a_pair(
    gateway: Gateway, client: TestClient, told: dict[str, str], similarity: float | None
) -> None:
    gateway.answers = [said("hello")]
    assert await post(client, headers(COPY, **told)) == 202
    await eventually(lambda: gateway.totals().pairs == 1, "a pair")
    (pair,) = gateway.totals().recent
    first = None if "first-ms" in told else 1.5
    assert (pair.user.first_ms, pair.user.whole_ms, pair.similarity) == (first, 2.5, similarity)
    assert [q.body for q in gateway.asked] == [b'{"model": "v3-cccc", "messages": []}']


@pytest.mark.parametrize(
    "changes",
    [
        {"at": ""},
        {"at": "12"},
        {"at": "1-4"},
        {"at": "15-12"},
        {"at": "12-1500"},
        {"at": "a-b"},
        {"path": "/v1/load_lora_adapter"},
        {"path": ""},
        {"size": ""},
        {"size": "10"},
        {"size": "1000"},
        {"status": ""},
        {"whole-ms": "soon"},
    ],
)
async def test_what_is_no_copy_is_dropped(gateway: Gateway, client: TestClient, changes: dict[str, str]) -> None:
    assert await post(client, headers(COPY, **changes)) == 400
    assert gateway.asked == []
    assert gateway.totals().copies == {}


async def test_what_nobody_wants_is_refused_or_counted(gateway: Gateway, client: TestClient) -> None:
    assert await post(client, headers(COPY, model="unknown")) == 429
    assert await post(client, headers(COPY, revision="v1")) == 429
    assert await post(client, headers(COPY, skipped="too-long"), b"") == 202
    assert await post(client, headers(COPY, skipped="busy"), b"") == 202
    assert await post(client, headers(COPY, skipped="anything"), b"") == 400
    assert gateway.totals().copies == {"gone": 1, "too-long": 1, "busy": 1}


async def test_the_longest_that_the_script_tells_fit(gateway: Gateway, client: TestClient) -> None:
    gateway.answers = [said("hello")]
    longest = BODY + b" " * (BODY_LIMIT - len(BODY)) + b" " * ANSWER_LIMIT
    assert await post(client, headers(COPY, size=str(BODY_LIMIT)), longest) == 202
    await eventually(lambda: gateway.totals().pairs == 1, "a pair")
    assert gateway.totals().recent[0].user.outcome == "broken"
    assert await post(client, headers(COPY), 2 * longest) == 413


def test_ids_of_clients_can_be_told() -> None:
    assert told_id("caf\udce9-\x1b[31m" + "x" * 200) == "caf?-?[31m" + "x" * 118
