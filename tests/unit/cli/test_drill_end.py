"""A rehearsal's object goes however the rehearsal ends; what stays is said, and is no success."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tuneyard.api.drill import Fault
from tuneyard.cli import drill, drillend
from tuneyard.cli.drillend import ended_like_ctrl_c, removed
from tuneyard.cli.errors import UserError
from tuneyard.systems.kube.client import Api, ApiError

GONE = ApiError(404, "NotFound", "not found")
AWAY = ApiError(0, "Unreachable", "connection refused")
FORBIDDEN = ApiError(403, "Forbidden", "user ci cannot delete modeldeployments")
OURS = {"metadata": {"uid": "u1"}, "spec": {"rollout": {"retryToken": "t1"}}}


class Server:
    """Answers in this order, the last one again and again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def request(self, method: str, _path: str, **_more: Any) -> Any:
        self.asked.append(method)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drillend, "PAUSE_SECONDS", 0.0)


def rehearse(server: Server, ends: BaseException | None = None) -> None:
    with removed(cast(Api, server), "models", "chat-drill", "t1"):
        if ends is not None:
            raise ends


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        ([OURS, {}], ["GET", "DELETE"]),
        ([AWAY, AWAY, OURS, AWAY, OURS, {}], ["GET", "GET", "GET", "DELETE", "GET", "DELETE"]),
        ([OURS, GONE], ["GET", "DELETE"]),
        ([GONE], ["GET"]),
        ([{**OURS, "spec": {"rollout": {"retryToken": "another"}}}], ["GET"]),
        ([{**OURS, "spec": {}}], ["GET"]),
    ],
    ids=["deleted", "tried-again", "gone-meanwhile", "never-made", "another-rehearsal's", "somebody's"],
)
def test_what_it_has_made_goes_and_nothing_else(answers: list[Any], asked: list[str]) -> None:
    server = Server(*answers)
    rehearse(server)
    assert server.asked == asked


@pytest.mark.parametrize(
    ("answers", "attempts", "why"),
    [([AWAY], drillend.ATTEMPTS, "connection refused"), ([OURS, FORBIDDEN], 2, "user ci cannot delete")],
)
def test_what_stays_is_no_success_and_it_is_said_how_to_remove_it(answers: list[Any], attempts: int, why: str) -> None:
    server = Server(*answers)
    with pytest.raises(UserError, match=f"{why}.*kubectl delete modeldeployment chat-drill -n models") as raised:
        rehearse(server)
    assert raised.value.exit_code != 0
    assert len(server.asked) == attempts


def test_what_ended_it_is_not_hidden_by_what_stays(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        rehearse(Server(AWAY), KeyboardInterrupt())
    assert "kubectl delete modeldeployment chat-drill -n models" in capsys.readouterr().err


def test_who_ends_it_twice_is_told_what_may_stay(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        rehearse(Server(KeyboardInterrupt()))
    assert "(interrupted) and may still be there" in capsys.readouterr().err


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["in a terminal", "in the background"])
def sigint(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a shell sets for Ctrl-C: jobs in the background ignore it."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """One that ends what hears it, also where whoever runs the tests ignores it."""
    chosen: signal.Signals = request.param
    before = signal.signal(chosen, signal.SIG_DFL)
    yield chosen
    signal.signal(chosen, before)


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], indirect=True)
def test_a_cancelled_job_ends_as_by_ctrl_c(number: signal.Signals) -> None:
    server, cleaned = Server(OURS, {}), []

    async def waits() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    with (
        pytest.raises(KeyboardInterrupt),
        ended_like_ctrl_c(),
        removed(cast(Api, server), "models", "chat-drill", "t1"),
    ):
        asyncio.run(waits())
    assert cleaned == [True], "what runs in it is ended in order"
    assert server.asked == ["GET", "DELETE"]
    assert signal.getsignal(number) is before


def test_outside_of_asyncio_too_and_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_like_ctrl_c():
            # to this thread: another one may take what is sent to the process, and Python hears of that a moment later
            signal.raise_signal(signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


async def test_who_ends_it_waits_for_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told to end has seconds, and an engine that hangs has none to spare."""
    asked, go = asyncio.Event(), asyncio.Event()

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go.wait()
        writer.close()

    async def ready(*_: object) -> None:
        pass

    monkeypatch.setattr(drill, "_until_ready", ready)
    monkeypatch.setattr(drill, "_hears", ready)
    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rehearsal = SimpleNamespace(
        name="x", key=None, weight=5, fault=Fault(revision="drill", errors=100), rate=5.0, model="m", answers=[],
        url=f"http://127.0.0.1:{port}",
    )  # fmt: skip
    running = asyncio.create_task(drill._rehearse(cast(Any, rehearsal)))
    await asyncio.wait_for(asked.wait(), 20)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=20)
    assert running in done and running.cancelled(), "the answer has not come yet"
    go.set()
    server.close()
