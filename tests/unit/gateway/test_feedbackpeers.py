"""Feedback for answers of other gateways: how much of it goes on at a time, and what is said where one is away."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.contract.envoy import eventually
from tests.contract.ports import free_port
from tuneyard.gateway import feedback
from tuneyard.gateway.feedback import MOST_ASKING, MOST_CONNECTIONS_EACH, Feedback, Given, Peers, Taken, join


class Others:
    """Gateways on one port of several loopback addresses; what each says, and who has asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port = free_port()
        self.says: dict[str, int] = {}
        self.posts = self.under_way = self.most = self.looked_up = 0
        self.go = asyncio.Event()
        self.go.set()
        self._servers: list[TestServer] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._resolve)
        self.peers = Peers(f"gateways.test:{self.port}", "token")

    async def add(self, address: str, status: int | None) -> None:
        """One more; with no status its address leads to nobody."""
        self.says[address] = status or 0
        if status is None:
            return

        async def post(_: web.Request) -> web.Response:
            self.posts += 1
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await self.go.wait()
            self.under_way -= 1
            return web.Response(status=self.says[address])

        app = web.Application()
        app.router.add_post("/v1/feedback", post)
        server = TestServer(app, host=address, port=self.port)
        self._servers.append(server)
        await server.start_server()

    async def _resolve(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.looked_up += 1
        if not self.says:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.says]

    async def close(self) -> None:
        await self.peers.close()
        for server in self._servers:
            await server.close()


@pytest.fixture
async def others(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Others]:
    others = Others(monkeypatch)
    yield others
    await others.close()


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ([404, 404], Taken.UNKNOWN),
        ([404, 202], Taken.ACCEPTED),
        ([409, 404], Taken.REPEATED),
        ([None, 202], Taken.ACCEPTED),
        ([None, 409], Taken.REPEATED),
        ([None, 404], Taken.UNAVAILABLE),
        ([503, 404], Taken.UNAVAILABLE),
        ([401, 404], Taken.UNAVAILABLE),
        ([], Taken.UNAVAILABLE),
    ],
)
async def test_only_what_all_others_do_not_know_is_unknown(
    others: Others, said: list[int | None], taken: Taken
) -> None:
    for number, status in enumerate(said, 1):
        await others.add(f"127.0.0.{number}", status)
    assert await others.peers.ask(Given("a", 1)) is taken


async def test_where_there_are_no_others_nobody_knows_it() -> None:
    assert await Peers("", "token").ask(Given("a", 1)) is Taken.UNKNOWN


async def test_addresses_are_kept_for_some_seconds(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    await others.add("127.0.0.1", 404)
    await asyncio.gather(*(others.peers.ask(Given("a", 1)) for _ in range(5)))
    assert await others.peers.ask(Given("b", 1)) is Taken.UNKNOWN
    assert (others.looked_up, others.posts) == (1, 6)
    now = asyncio.get_running_loop().time() + feedback.ADDRESS_SECONDS
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    await others.peers.ask(Given("c", 1))
    assert others.looked_up == 2


async def test_one_gateway_gets_no_more_than_its_share_of_connections(others: Others) -> None:
    await others.add("127.0.0.1", 404)
    others.go.clear()
    asking = [asyncio.create_task(others.peers.ask(Given("a", 1))) for _ in range(3 * MOST_CONNECTIONS_EACH)]
    await eventually(lambda: others.under_way == MOST_CONNECTIONS_EACH, "all connections are in use")
    others.go.set()
    assert set(await asyncio.gather(*asking)) == {Taken.UNKNOWN}
    assert (others.posts, others.most) == (3 * MOST_CONNECTIONS_EACH, MOST_CONNECTIONS_EACH)


async def test_more_than_so_much_at_a_time_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "PATIENCE", 0.0)
    asked, go = 0, asyncio.Event()

    async def ask(_: Given) -> Taken:
        nonlocal asked
        asked += 1
        await go.wait()
        return Taken.UNKNOWN

    gateway = Feedback(lambda: 0.0, lambda _, __: None, ask)
    app = web.Application()
    join(app, "/feedback", gateway.take_anywhere)
    async with TestServer(app) as server, ClientSession() as client:
        asking = [asyncio.create_task(gateway.take_anywhere(Given(f"r{n}", 1))) for n in range(MOST_ASKING)]
        await eventually(lambda: asked == MOST_ASKING, "all are being asked for")
        async with client.post(server.make_url("/feedback"), json={"request_id": "a", "score": 1}) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            error = json.loads(await answer.text())["error"]
            assert (error["type"], error["code"]) == ("server_error", "unavailable")
        assert asked == MOST_ASKING
        # one that is given up makes room too
        asking[0].cancel()
        await asyncio.wait(asking[:1])
        go.set()
        async with client.post(server.make_url("/feedback"), json={"request_id": "a", "score": 1}) as answer:
            assert answer.status == 404
    await asyncio.gather(*asking[1:])
