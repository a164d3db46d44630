"""What a refusal says of the revision that a gate asks."""

from __future__ import annotations

import pytest
from aiohttp import web

from tests.contract.ports import free_port
from tuneyard.gate.asking import Asker, session


@pytest.mark.parametrize(
    ("status", "marked", "served"),
    [
        (429, False, False),  # the gateway: the pool is full
        (429, True, True),  # the revision, for example somebody else's API
        (503, False, False),
        (503, True, False),
        (400, False, True),  # the gateway, which refuses what the revision's system prompt does not allow
        (500, True, True),
    ],
)
async def test_who_has_refused(status: int, marked: bool, served: bool) -> None:
    async def refuse(_: web.Request) -> web.Response:
        headers = {"x-revision": "v2"} if marked else {}
        return web.json_response({"error": {"message": "no"}}, status=status, headers=headers)

    app, port = web.Application(), free_port()
    app.router.add_post("/v1/completions", refuse)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with session(1) as client:
            answer = await Asker(client, f"http://127.0.0.1:{port}", "chat", "token").ask("v2", {"prompt": "hello"})
    finally:
        await runner.cleanup()
    assert (answer.served, answer.error) == (served, f"status {status}: no")
