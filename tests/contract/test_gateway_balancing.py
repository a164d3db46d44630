"""Users, sessions and prefixes through the real Envoy: who stays on which revision and pod, and who gives way."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.envoy import Rig, eventually, model, revision
from tests.fakes.upstream import Upstream
from tests.xxhash64 import xxh64
from tuneyard.api.routing import Affinity, PrefixAffinity
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.stickiness import PLACES, places
from tuneyard.systems.envoy.balancing import BOUND

pytestmark = pytest.mark.envoy

PREFIX = Affinity(prefix=PrefixAffinity())
SESSION = Affinity(header="X-Session-Id")
USERS = [f"user-{number}@example.org" for number in range(1000)]


@pytest.fixture
async def pods() -> AsyncIterator[list[Upstream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Upstream(f"pod-{number}", keep=100_000)) for number in range(5)]


def sticky(v1: int, v2: int, pods: Iterable[Upstream], **more: Any) -> ModelRoutes:
    addresses = [p.address for p in pods]
    one = model("support", revision("v1", v1, addresses), revision("v2", v2, addresses))
    return replace(one, stable="v1", sticky_by="X-User-Id", **more)


async def revisions_of(rig: Rig, users: Iterable[str]) -> dict[str, str]:
    """Which revision answers whom."""
    waiting = list(users)
    told: dict[str, str] = {}

    async def some() -> None:
        while waiting:
            user = waiting.pop()
            status, headers, _ = await rig.post(b'{"model":"support"}', headers={"x-user-id": user})
            assert status == 200
            told[user] = headers["x-revision"]

    await asyncio.gather(*(some() for _ in range(16)))
    return told


async def test_no_user_leaves_a_growing_candidate_and_all_go_back(tmp_path: Path, pods: list[Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        before: set[str] = set()
        for weight in (1, 5, 25, 50, 100, 25, 0):
            one = sticky(100 - weight, weight, pods[:2], affinity=SESSION)
            await rig.serve(one)
            told = await revisions_of(rig, USERS)
            owners = places("default/md-support", "v1", one.weights)
            assert told == {user: owners[xxh64(user.encode()) % PLACES] for user in USERS}
            now = {user for user, answered in told.items() if answered == "v2"}
            assert abs(len(now) - 10 * weight) <= 50
            assert before <= now or now <= before
            before = now
        assert not before


async def test_who_says_nobody_goes_by_chance(tmp_path: Path, pods: list[Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(sticky(50, 50, pods[:1], allow_revision_header=True))
        for headers in ({}, {"x-user-id": ""}, {"x-session-id": "one"}):
            told = Counter(
                [(await rig.post({"model": "support"}, headers=headers))[1]["x-revision"] for _ in range(200)]
            )
            assert abs(told["v1"] - 100) <= 42  # six standard deviations
        for chosen in ("v1", "v2"):
            named = {"x-user-id": "one", "x-revision": chosen}
            assert (await rig.post({"model": "support"}, headers=named))[1]["x-revision"] == chosen


async def test_users_of_an_unserved_share_are_refused_and_the_candidates_stay(
    tmp_path: Path, pods: list[Upstream]
) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(sticky(75, 25, pods[:1]))
        told = await revisions_of(rig, USERS[:200])
        await rig.serve(sticky(0, 25, pods[:1], unserved=75))
        for user, answered in told.items():
            status, headers, _ = await rig.post({"model": "support"}, headers={"x-user-id": user})
            assert (status, headers.get("x-revision")) == ((200, "v2") if answered == "v2" else (503, None))


def balanced(pods: Iterable[Upstream], affinity: Affinity | None) -> ModelRoutes:
    return replace(model("support", revision("v1", 100, [p.address for p in pods])), affinity=affinity)


def chat(prefix: int, turn: str = "", **more: Any) -> dict[str, Any]:
    system = {"role": "system", "content": f"You are number {prefix}. " + "Be brief. " * 120}
    return {"model": "support", "messages": [system, {"role": "user", "content": turn}], **more}


def homes(pods: Iterable[Upstream]) -> dict[str, set[str]]:
    """The pods that each prefix has been sent to, by the first words of its prompt."""
    found: dict[str, set[str]] = defaultdict(set)
    for pod in pods:
        for request in pod.received:
            body = request.json
            said = body["messages"][0]["content"] if "messages" in body else body["prompt"]
            found[said[:20]].add(pod.name)
    return found


async def asked(rig: Rig, pods: Iterable[Upstream], turns: int = 3) -> dict[str, str]:
    """Where each of 60 prefixes is at home."""
    for pod in pods:
        pod.received.clear()
    for turn in range(turns):
        for prefix in range(60):
            assert (await rig.post(chat(prefix, f"turn {turn}")))[0] == 200
    found = homes(pods)
    assert len(found) == 60
    assert all(len(where) == 1 for where in found.values()), "a prefix is split"
    return {prefix: next(iter(where)) for prefix, where in found.items()}


async def test_a_prefix_stays_on_its_pod_and_pods_that_come_and_go_move_their_share(
    tmp_path: Path, pods: list[Upstream]
) -> None:
    async with Rig(tmp_path, concurrency=2) as rig:
        await rig.serve(balanced(pods[:4], None))
        await rig.serve(balanced(pods[:4], PREFIX))
        four = await asked(rig, pods)
        assert set(four.values()) == {p.name for p in pods[:4]}
        await rig.serve(balanced(pods, PREFIX))
        five = await asked(rig, pods)
        moved = {prefix for prefix in four if four[prefix] != five[prefix]}
        assert 1 <= len(moved) <= 24  # 12 are to be expected
        assert sum(five[prefix] != "pod-4" for prefix in moved) <= 3
        await rig.serve(balanced(pods[1:4], PREFIX))
        three = await asked(rig, pods)
        assert sum(three[prefix] != home for prefix, home in four.items() if home != "pod-0") <= 3


async def test_what_counts_is_how_the_prompt_begins(tmp_path: Path, pods: list[Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(balanced(pods, PREFIX))
        for number in range(12):
            text = f"Prompt {number:02} of a kind " + "x" * 1100
            for more in ("", " and more"):
                body = {"model": "support", "prompt": text + more, "seed": number}
                assert (await rig.post(body, path="/v1/completions"))[0] == 200
        found = homes(pods)
        assert all(len(where) == 1 for where in found.values())
        assert len({next(iter(where)) for where in found.values()}) > 1
        # what cannot be a prompt, or is none, goes anywhere
        for odd in (b'{"model":"support","messages":"no list"}', b'{"model":"support" "messages":[]}'):
            assert (await rig.post(odd))[0] == 200
        for _ in range(60):
            assert (await rig.post({"model": "support", "input": "x"}, path="/v1/embeddings"))[0] == 200
        assert all(any(r.path == "/v1/embeddings" for r in p.received) for p in pods)


async def under_way(pods: list[Upstream], count: int) -> None:
    await eventually(lambda: sum(p.active for p in pods) == count, f"{count} requests are under way")


async def test_a_hot_prefix_spills_over(tmp_path: Path, pods: list[Upstream]) -> None:
    four, count = pods[:4], 40
    async with Rig(tmp_path) as rig:
        await rig.serve(balanced(four, PREFIX))
        hot = []
        for number in range(count):
            hot.append(asyncio.create_task(rig.post(chat(1, str(number), first=3))))
            # bounded load knows of requests that have a connection
            await under_way(four, number + 1)
        assert {status for status, *_ in await asyncio.gather(*hot)} == {200}
        told = sorted(len(p.received) for p in four)
        assert sum(told) == count
        assert told[-1] <= count * BOUND / 100 / 4 + 1
        assert told[1] > 0


async def test_a_session_stays_on_its_pod_until_that_leaves(tmp_path: Path, pods: list[Upstream]) -> None:
    three = pods[:3]
    async with Rig(tmp_path) as rig:
        await rig.serve(balanced(three, SESSION))

        async def answers(session: str) -> set[str]:
            found = set()
            for number in range(4):
                status, _, body = await rig.post(chat(number), headers={"x-session-id": session})
                assert status == 200
                found.add(json.loads(body)["choices"][0]["message"]["content"])
            return found

        at: Mapping[str, set[str]] = {s: await answers(s) for s in ("a", "b", "c", "d", "e", "f", "g", "h")}
        assert all(len(found) == 1 for found in at.values())
        assert len(set.union(*at.values())) > 1
        left = three[0]
        left.mode = "draining"
        for session, found in at.items():
            again = await answers(session)
            if found == {f"hello from {left.name}"}:
                assert f"hello from {left.name}" not in again
            else:
                assert again == found
        left.mode = "answer"
        for pod in three:
            pod.received.clear()
        for _ in range(60):
            assert (await rig.post(chat(1)))[0] == 200
        assert all(len(p.received) > 3 for p in three)


async def test_revisions_on_the_same_pods_keep_a_session_on_one_of_them(tmp_path: Path, pods: list[Upstream]) -> None:
    async with Rig(tmp_path) as rig:
        await rig.serve(sticky(50, 50, pods, affinity=SESSION, allow_revision_header=True))
        homes_of = set()
        for session in "abcdefgh":
            told = set()
            for chosen in ("v1", "v2"):
                headers = {"x-session-id": session, "x-revision": chosen}
                status, answered, body = await rig.post(chat(1), headers=headers)
                assert (status, answered["x-revision"]) == (200, chosen)
                told.add(json.loads(body)["choices"][0]["message"]["content"])
            assert len(told) == 1
            homes_of |= told
        assert len(homes_of) > 1
