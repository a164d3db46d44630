"""Which copies a gateway sends, how many at once, and what it keeps of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from tests.contract.envoy import eventually
from tuneyard.api.mirror import MirrorTotals
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.gateway import mirroring
from tuneyard.gateway.mirroring import Copy, Mirroring
from tuneyard.gateway.mirrormetrics import MirrorMetrics
from tuneyard.gateway.shadow import DEADLINE, Question
from tuneyard.planning.endpoints import Endpoint
from tuneyard.planning.mirror import MirrorRoute
from tuneyard.planning.mirrored import Came, Outcome
from tuneyard.planning.routes import ModelRoutes, RevisionRoute
from tuneyard.planning.systemprompt import CHATS

BODY = b'{"model": "chat", "messages": []}'
PODS = (Endpoint("10.0.0.1:8080", "a"), Endpoint("10.0.0.2:8080", "b"))


def said(text: str) -> Came:
    return Came(200, "application/json", json.dumps({"choices": [{"message": {"content": text}}]}).encode(), 1.0, 2.0)


def routes(model: str = "chat", *, limit: int = 16, active: bool = True, to: str = "v3") -> ModelRoutes:
    return ModelRoutes(
        model=model,
        namespace="team",
        deployment=model,
        uid=f"uid-{model}",
        generation=1,
        created=0,
        revisions=(
            RevisionRoute("v1", "base", "v1-aaaa", 100, PODS[:1]),
            RevisionRoute("v3", "base", "v3-cccc", 0, PODS),
            RevisionRoute("v4", "base", "v4-dddd", 0, PODS),
        ),
        mirror=MirrorRoute(to, 100, limit, active),
    )


class Gateway:
    """A gateway's mirrors; `answers` is what the next copies get, and who is not answered hangs."""

    def __init__(self, *models: ModelRoutes) -> None:
        self.routes = {m.model: m for m in models}
        self.asked: list[Question] = []
        self.answers: list[Came | Outcome | None] = []
        self.registry = CollectorRegistry()
        self.mirroring = Mirroring(
            "gateway-0",
            self.routes.get,
            lambda namespace, pool: f"key of {namespace}/{pool}",
            self.ask,
            MirrorMetrics(self.registry),
        )
        for model in self.routes:
            self.mirroring.changed(model)

    async def ask(self, question: Question) -> Came | Outcome | None:
        self.asked.append(question)
        if not self.answers:
            await asyncio.Event().wait()
        return self.answers.pop(0)

    def put(self, model: ModelRoutes | None, name: str = "chat") -> None:
        if model is None:
            del self.routes[name]
        else:
            self.routes[name] = model
        self.mirroring.changed(name)

    def copy(
        self, number: int, model: str = "chat", revision: str = "v3", user: Came | None = None, path: str = CHATS
    ) -> bool:
        copy = Copy(model, revision, "v1", f"r-{number}", path, 12, 15, BODY, user or said("the user's"))
        return self.mirroring.copy(copy)

    def totals(self, model: str = "chat") -> MirrorTotals:
        return self.mirroring.report().mirrors[f"team/{model}"]

    async def pairs(self, count: int) -> None:
        await eventually(lambda: self.totals().pairs >= count, f"{count} pairs")

    def page(self) -> str:
        return generate_latest(self.registry).decode()


async def test_pods_take_turns_and_get_what_is_theirs() -> None:
    gateway = Gateway(routes())
    gateway.answers = [said("b"), said("b"), said("b")]
    for number in range(3):
        assert gateway.copy(number, user=said("b"))
    await gateway.pairs(3)
    assert [q.address for q in gateway.asked] == ["10.0.0.2:8080", "10.0.0.1:8080", "10.0.0.2:8080"]
    assert {(q.key, q.body) for q in gateway.asked} == {
        ("key of team/base", b'{"model": "v3-cccc", "messages": []}'),
    }
    assert len({q.id for q in gateway.asked}) == 3
    assert "key" not in repr(gateway.asked[0])
    assert [p.similarity for p in gateway.totals().recent] == [1, 1, 1]


async def test_a_copy_begins_with_the_mirrored_revisions_system_prompt() -> None:
    plain = routes()
    v1, v3, v4 = plain.revisions
    gateway = Gateway(replace(plain, revisions=(v1, replace(v3, prompt=SystemPrompt(text="Be brief.")), v4)))
    gateway.answers = [said("x")]
    assert gateway.copy(1)
    await gateway.pairs(1)
    message = b'{"role":"system","content":"Be brief."}'
    assert [q.body for q in gateway.asked] == [b'{"model": "v3-cccc", "messages": [%s]}' % message]
    strict = replace(v3, prompt=SystemPrompt(text="Be brief.", apply="Always"))
    gateway.put(replace(plain, revisions=(v1, strict, v4)))
    assert gateway.copy(2, path="/v1/completions")
    await eventually(lambda: gateway.totals().copies == {"answered": 1, "refused": 1}, "the copy is refused")
    assert len(gateway.asked) == 1


@pytest.mark.parametrize("answer", [said("x"), "timeout", "unreachable", "broken"])
async def test_both_answers_are_counted(answer: Came | Outcome) -> None:
    gateway = Gateway(routes())
    gateway.answers = [answer]
    gateway.copy(1)
    await gateway.pairs(1)
    (pair,) = gateway.totals().recent
    assert pair.mirrored.outcome == ("answered" if isinstance(answer, Came) else answer)
    failed = 0.0 if isinstance(answer, Came) else 1.0
    labels = 'deployment="chat",namespace="team",revision="v3"}'
    assert f'tuneyard_mirror_errors_total{{answer="mirrored",{labels} {failed}' in gateway.page()
    assert f'tuneyard_mirror_errors_total{{answer="user",{labels} 0.0' in gateway.page()


@pytest.mark.parametrize(
    ("seconds", "answer", "copies", "pairs"),
    [
        (DEADLINE * 0.6, "timeout", {"too-slow": 1}, 0),
        (DEADLINE * 0.4, "timeout", {"timeout": 1}, 1),
        (None, "timeout", {"timeout": 1}, 1),
        (DEADLINE * 0.6, "broken", {"broken": 1}, 1),
        (DEADLINE * 0.6, said("x"), {"answered": 1}, 1),
    ],
)
async def test_who_takes_no_longer_than_the_users_own_answer_is_not_to_blame(
    seconds: float | None, answer: Came | Outcome, copies: dict[str, int], pairs: int
) -> None:
    gateway = Gateway(routes())
    gateway.answers = [answer]
    gateway.copy(1, user=replace(said("x"), whole_ms=None if seconds is None else seconds * 1000))
    await eventually(lambda: bool(gateway.totals().copies), "it has ended")
    assert (gateway.totals().copies, gateway.totals().pairs) == (copies, pairs)
    assert ("tuneyard_mirror_errors_total{" in gateway.page()) == bool(pairs)


async def test_no_more_are_under_way_than_may_be() -> None:
    gateway = Gateway(routes(limit=2), routes("other", limit=64))
    assert [gateway.copy(n) for n in range(5)] == [True, True, False, False, False]
    sent = [gateway.copy(100 + n, "other") for n in range(70)]
    assert sent.count(True) == mirroring.IN_ALL - 2
    assert gateway.totals().copies == {"busy": 3}
    await gateway.mirroring.stop()
    assert gateway.totals().copies == {"busy": 3, "withdrawn": 2}
    assert [gateway.copy(n) for n in range(5, 8)] == [True, True, False]
    await gateway.mirroring.stop()


async def test_what_goes_off_takes_its_copies_along_and_its_series_when_it_is_gone() -> None:
    gateway = Gateway(routes())
    gateway.copy(1)
    await asyncio.sleep(0)
    gateway.put(routes(active=False))
    assert not gateway.copy(2)
    assert gateway.totals().copies == {"withdrawn": 1, "gone": 1}
    assert gateway.totals().percent == 0
    gateway.put(routes())
    gateway.answers = [said("x")]
    assert gateway.copy(3)
    await gateway.pairs(1)
    # a copy for whom the mirror was before
    gateway.put(routes(to="v4"))
    assert not gateway.copy(4, revision="v3")
    assert gateway.totals() == MirrorTotals(revision="v4", percent=100, copies={"gone": 1})
    assert 'revision="v3"' not in gateway.page()
    gateway.put(None)
    assert gateway.mirroring.report().mirrors == {}
    assert "team" not in gateway.page()
    gateway.mirroring.skipped("chat", "too-long")
    assert not gateway.copy(5)


async def test_a_pod_that_leaves_is_nobodys_error() -> None:
    gateway = Gateway(routes())
    gateway.answers = [None]
    gateway.copy(1)
    await eventually(lambda: bool(gateway.totals().copies), "it has ended")
    assert (gateway.totals().copies, gateway.totals().pairs) == ({"withdrawn": 1}, 0)
