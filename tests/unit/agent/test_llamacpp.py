"""The client of llama.cpp's server: whose number is whose, what the front is told, and what is never believed."""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.contract.ports import free_port
from tests.fakes.llamaserver import LlamaServer, fake_gguf
from tuneyard.systems.engines import llamacpp
from tuneyard.systems.engines.base import EngineError, EngineGoneError
from tuneyard.systems.engines.frontnames import FrontNames
from tuneyard.systems.engines.llamacpp import LlamaCpp


class Container:
    """The server that begins with what the orders say, as the container's loop has it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.orders, self.names = folder / "orders", folder / "names"
        (folder / "model.gguf").write_bytes(fake_gguf())
        self._runner: web.AppRunner | None = None

    def adapter(self, name: str) -> str:
        path = self.folder / name / "adapter.gguf"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"GGUF")
        return str(path.parent)

    async def begin(self) -> None:
        """A server with what is ordered now, in the place of the one before."""
        await self.end()
        given = self.orders.read_text().splitlines()[1:]
        adapters = [value for flag, value in itertools.pairwise(given) if flag == "--lora-scaled"]
        told = argparse.Namespace(
            alias="base", model=str(self.folder / "model.gguf"), lora_scaled=adapters, token_delay=0.0
        )
        self._runner = web.AppRunner(LlamaServer(told).application(), access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def end(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def client(self) -> LlamaCpp:
        names = FrontNames(self.names)
        return LlamaCpp(f"http://127.0.0.1:{self.port}", "base", self.folder / "model.gguf", self.orders, names)

    async def has_begun(self, client: LlamaCpp, *names: str) -> None:
        """Have it begin with these."""
        before = self.orders.read_text() if self.orders.exists() else ""
        beginning = asyncio.create_task(client.begin({name: self.adapter(name) for name in names}))
        while not self.orders.exists() or self.orders.read_text() == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await self.begin()
        await beginning


@pytest.fixture
async def container(tmp_path: Path) -> AsyncIterator[Container]:
    found = Container(tmp_path)
    yield found
    await found.end()


async def test_names_numbers_and_what_the_front_reads(container: Container) -> None:
    async with container.client() as client:
        assert client.begun() is None
        await container.has_begun(client, "b-2", "a-1")
        assert client.begun() == frozenset({"a-1", "b-2"})
        assert await client.models() == {"base", "a-1", "b-2"}
        assert container.names.read_text().splitlines() == [
            'a-1\tbase\t[{"id": 0, "scale": 1.0}]',
            'b-2\tbase\t[{"id": 1, "scale": 1.0}]',
            "base\tbase\t[]",
        ]
        answers = [await client.ask(name) for name in ("base", "a-1", "b-2")]
        assert [answer.model for answer in answers] == ["base", "a-1", "b-2"]
        assert [answer.text.strip() for answer in answers] == ["base", "a-1", "b-2"]
        assert all(answer.logprobs for answer in answers)
        with pytest.raises(EngineError, match="nobody is not served here"):
            await client.ask("nobody")


async def test_what_is_unloaded_has_no_name_until_it_is_wanted_again(container: Container) -> None:
    async with container.client() as client:
        await container.has_begun(client, "a-1", "b-2")
        await client.models()
        await client.unload("a-1")
        assert await client.models() == {"base", "b-2"}
        assert "a-1" not in container.names.read_text()
        assert await client.busy_adapters() == {"a-1", "b-2"}, "it would begin with it again"
        async with container.client() as another:
            assert await another.models() == {"base", "b-2"}, "an agent that begins anew knows it too"
        await client.load("a-1", "")
        assert await client.models() == {"base", "a-1", "b-2"}
        with pytest.raises(EngineError, match="none of them"):
            await client.load("c-3", "/adapters/c-3")


async def test_numbers_of_a_server_that_is_about_to_end_are_not_believed(container: Container) -> None:
    async with container.client() as client:
        await container.has_begun(client, "b-2")
        await client.models()
        given = container.orders.read_text().splitlines()[1:]
        more = ["--lora-scaled", f"{container.adapter('a-1')}/adapter.gguf:0"]
        container.names.write_text("")  # as an agent that ended in the middle of it leaves both
        container.orders.write_text("\n".join(["another", *given[:2], *more, *given[2:]]) + "\n")
        with pytest.raises(EngineGoneError):
            await client.models()
        await container.begin()
        assert await client.models() == {"base", "a-1", "b-2"}
        assert (await client.ask("b-2")).text.strip() == "b-2"


@pytest.mark.lasting
async def test_one_that_does_not_come_up_is_told_to_begin_as_before(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "ABSENT", 0.3)
    async with container.client() as client:
        await container.has_begun(client, "a-1")
        beginning = asyncio.create_task(client.begin({n: container.adapter(n) for n in ("a-1", "c-3")}))
        while client.begun() != frozenset({"a-1", "c-3"}):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert container.names.read_text() == "", "nobody is answered meanwhile"
        await container.end()
        with pytest.raises(EngineError, match="does not come up with a-1, c-3"):
            await beginning
        assert client.begun() == frozenset({"a-1"})
        await container.begin()
        assert await client.models() == {"base", "a-1"}


async def test_nothing_listens(container: Container) -> None:
    async with container.client() as client:
        with pytest.raises(EngineGoneError):
            await client.healthy()
