"""Progress is said often enough to be seen, and no more often."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tuneyard.agent.pacing import SIGN_OF_LIFE_SECONDS, TICK_SECONDS, Pace
from tuneyard.agent.publishing import telling_of_base
from tuneyard.agent.settings import PodIdentity
from tuneyard.api import names
from tuneyard.api.documents import Transfer
from tuneyard.systems.kube.client import Api


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def coming(done: float, total: int = 1000, rate: int = 0) -> Transfer:
    return Transfer(done_bytes=int(done), total_bytes=total, bytes_per_second=rate)


@pytest.mark.parametrize(
    ("seconds", "most"),
    [(4, 2), (200, 101), (3600, 100 + 3600 / SIGN_OF_LIFE_SECONDS)],
    ids=["quick", "one percent a tick", "an hour"],
)
def test_a_fetch_costs_few_writes(seconds: int, most: float) -> None:
    clock = Clock()
    pace, said = Pace(clock), 0
    while clock.now < seconds:
        clock.now += TICK_SECONDS
        said += pace.due({"a": coming(1000 * clock.now / seconds)})
    assert seconds / SIGN_OF_LIFE_SECONDS - 1 <= said <= most


def test_many_together_are_said_no_more_often_than_one() -> None:
    clock = Clock()
    pace, said = Pace(clock), 0
    for step in range(1000):
        clock.now += 0.1
        said += pace.due({f"a{n}": coming(step * (n + 1) % 1000) for n in range(20)})
    assert said <= 100 / TICK_SECONDS


def test_the_beginning_is_said_at_once_and_a_standstill_now_and_then() -> None:
    clock = Clock()
    pace = Pace(clock)
    assert pace.due({"a": coming(1)})
    clock.now += SIGN_OF_LIFE_SECONDS - 0.1
    assert not pace.due({"a": coming(2)})
    clock.now += 0.1
    assert pace.due({"a": coming(2)})


def test_a_base_that_comes_writes_no_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("tuneyard.agent.publishing.time.monotonic", clock)
    written: list[dict[str, Any]] = []

    class Server:
        def request(self, *_: str, body: dict[str, Any], **__: object) -> None:
            written.append(json.loads(body["metadata"]["annotations"][names.ANNOTATION_ADAPTERS]))

    server: Api = Server()  # type: ignore[assignment]
    tell = telling_of_base(server, PodIdentity("p", "ns", "u", "10.0.0.1:8080"), "llama")
    for step in range(1800):
        clock.now += 2
        tell(coming(step * 1000 / 1800, rate=step))
    assert written[0]["baseTransfer"]["totalBytes"] == 1000
    assert 240 <= len(written) <= 340
