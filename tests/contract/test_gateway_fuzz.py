"""Mutated bodies through the real Envoy and the real scripts, against a JSON parser: none is taken for another one.

For each: Envoy lives and no script fails; where a pod is asked, a parser finds that pod's model in what was sent, and
what the pod gets parses like it, but for `model` and what the gateway is meant to add; what no parser can read is, if
it arrives at all, as unreadable as before; what is sound is answered.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.contract.envoy import Rig, model, revision
from tests.contract.fuzzing import MODELS, InvalidError, Pairs, Reading, SinkPod, bodies, send_all
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.planning import systemprompt

pytestmark = pytest.mark.envoy

SEED = int(os.environ.get("TUNEYARD_FUZZ_SEED", "6"))
TEXT = 'You are "Acme".'
TOLD = Pairs([("include_usage", True)])
MESSAGE = Pairs([("role", "system"), ("content", TEXT)])
PROMPTS = {"prompted": SystemPrompt(text=TEXT), "guarded": SystemPrompt(text=TEXT, apply="Always")}
AT_A_TIME = 10_000
CLIENTS = {role.decode() for role in systemprompt.CLIENTS}
OPERATORS = {role.decode() for role in systemprompt.OPERATORS}


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_no_body_is_taken_for_another(tmp_path: Path, count: int) -> None:
    counted: Counter[str] = Counter()
    made = bodies(SEED if count == 20_000 else SEED + 1)
    async with AsyncExitStack() as stack:
        pods = {name: await stack.enter_async_context(SinkPod()) for name in MODELS}
        rig = await stack.enter_async_context(Rig(tmp_path, count_usage=True))
        await rig.serve(*(served(name, pod) for name, pod in pods.items()))
        pid = rig.envoy.pid
        for first in range(0, count, AT_A_TIME):
            sent = list(islice(made, min(AT_A_TIME, count - first)))
            told = await send_all(rig.port, sent, first=first)
            for number, body in enumerate(sent, first):
                arrived = {name: pod.received[number] for name, pod in pods.items() if number in pod.received}
                counted[judge(body, told[number], arrived)] += 1
            for pod in pods.values():
                pod.received.clear()
        for script in ("extract", "rewrite", "answer"):
            assert await rig.envoy.stat(f"http.gateway.lua.{script}.errors") == 0
        assert rig.envoy.pid == pid
        assert await rig.envoy.stat("http.gateway.downstream_rq_active") == 0
    assert sum(counted.values()) == count
    # most are refused, but enough of each kind are not: otherwise this would show nothing
    for kind in ("sound, answered", "unreadable, refused", "unreadable, passed on", "readable, refused"):
        assert counted[kind] > count / 100, counted


def served(name: str, pod: SinkPod) -> Any:
    one = replace(revision("v1", 100, [pod.address], engine=f"engine-of-{name}"), prompt=PROMPTS.get(name))
    return model(name, one)


def judge(body: bytes, status: int, arrived: Mapping[str, bytes]) -> str:
    """What kind of case it was; AssertionError where it went wrong."""
    assert len(arrived) <= 1, body
    assert bool(arrived) == (status == 200), (status, body)
    sent = readable(body)
    if sent is None:
        for name, came in arrived.items():
            if (told := readable(came)) is None:
                return "unreadable, passed on"
            # what could not be read stood where the gateway puts something of its own
            assert told.model == f"engine-of-{name}", (body, came)
            assert told.pairs.all("stream_options") == [TOLD] or name == "guarded", (body, came)
            return "unreadable, mended"
        return "unreadable, refused"
    if not arrived:
        assert status in (400, 404), (status, body)
        assert not sound(body, sent), (status, body)
        return "readable, refused"
    ((name, came),) = arrived.items()
    assert sent.model == name, (name, body)
    assert Reading.of(came).pairs == expected(sent.pairs, name), (body, came)
    return "sound, answered" if sound(body, sent) else "odd, answered"


def readable(body: bytes) -> Reading | None:
    try:
        return Reading.of(body)
    except InvalidError:
        return None


def sound(body: bytes, sent: Reading) -> bool:
    """Whether nothing is wrong with it, so that it has to be answered."""
    keys = [key for key, _ in sent.pairs]
    streams, options = sent.pairs.all("stream"), sent.pairs.all("stream_options")
    return (
        sent.model in MODELS
        and sent.model not in PROMPTS  # whose refusals have their own table
        and len(keys) == len(set(keys))
        and b"\\" not in body.replace(b'"org\\/other"', b"")
        and all(value in (True, False, None) for value in streams)
        and not options
        and b"\0" not in body
        and not body.startswith(b"\xef\xbb\xbf")
        and body.count(b"[") + body.count(b"{") < 200
    )


def expected(sent: Pairs, name: str) -> Pairs:
    """What a pod is to get of it."""
    came = Pairs(sent)
    if name in PROMPTS:
        came = Pairs((k, with_prompt(v, name) if k == "messages" else v) for k, v in came)
    streams = True in sent.all("stream")
    options = sent.all("stream_options")
    result = Pairs()
    for key, value in came:
        if key == "model":
            result.append((key, f"engine-of-{name}"))
        elif (
            key == "stream_options"
            and streams
            and not (isinstance(value, Pairs) and value.all("include_usage") == [True])
        ):
            result.append((key, TOLD))
        else:
            result.append((key, value))
        if key == "stream" and streams and not options:
            result.append(("stream_options", TOLD))
    return result


def with_prompt(messages: Any, name: str) -> list[Any]:
    roles = [m.all("role") for m in messages]
    if name == "prompted":
        instructed = any(role and role[0] in OPERATORS for role in roles)
        return list(messages) if instructed else [MESSAGE, *messages]
    kept = [m for m, role in zip(messages, roles, strict=True) if role and role[0] in CLIENTS]
    return [MESSAGE, *kept]
