"""What the gateway process counts of answers, from a real Envoy's word of what became of each request."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.gateway_process import GatewayProcess, Team, becomes
from tests.fakes.upstream import Upstream
from tests.traffic import Load, Traffic
from tuneyard.api.documents import EvidenceReport

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

SLO = {"errorRate": "1%", "ttft": "250ms", "itl": "60ms", "e2e": "1s"}
STREAM = {"stream": True, "chunks": 5, "delay": 0.01}
Tallies = dict[str, tuple[int, int, int, int]]


def deploy(team: Team, name: str, traffic: dict[str, int] | None = None, **spec: Any) -> None:
    """A deployment whose answers are judged, of adapters named like its revisions."""
    for adapter in traffic or [name]:
        team.make_adapter(adapter)
    rollout = {"analysis": {"slo": spec.pop("slo", SLO)}}
    team.make_deployment(name, traffic or {name: 100}, rollout=rollout, **spec)


def tallies(report: EvidenceReport, team: Team, name: str, revision: str | None = None) -> Tallies:
    """By objective, all prompts' lengths together."""
    found = report.deployments.get(f"{team.namespace}/{name}")
    counts = found.counts.get(revision or name, {}) if found else {}
    return {o: tuple(map(sum, zip(*by_length.values(), strict=True))) for o, by_length in counts.items()}  # type: ignore[misc]


async def leave(gateway: GatewayProcess, after: float, **body: Any) -> None:
    """A client that does not wait for the end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(after):
            await gateway.rig.post(body)


async def test_what_became_of_a_request_decides_what_it_counts_as(gateway: GatewayProcess, team: Team) -> None:
    """Each row of the table in gateway/evidence.py; a deployment per row."""
    pods = {name: Upstream(f"pod-{name}") for name in ("well", "errors", "closes", "breaks", "gone", "silent")}
    pods["errors"].mode, pods["closes"].mode, pods["breaks"].mode = "error", "close", "headers-then-close"
    pods["silent"].mode = "hang"
    rows = {
        "whole": "well", "streamed": "well", "slow": "well", "failing": "well", "left": "well", "chosen": "well",
        "errors": "errors", "closes": "closes", "breaks": "breaks", "gone": "gone",
        "silent": "silent",
    }  # fmt: skip
    try:
        for pod in pods.values():
            await pod.__aenter__()
        for name in rows:
            deploy(team, name, routing={"allowRevisionHeader": name == "chosen"})
        deploy(team, "unserved")
        for name, pod in pods.items():
            team.make_pod(pod, *(row for row, on in rows.items() if on == name))
        await asyncio.gather(*(gateway.judges(f"{team.namespace}/{name}", {name: 100}) for name in rows))
        await pods["gone"].die()

        for _ in range(3):
            assert (await gateway.rig.post({"model": "whole"}))[0] == 200
            assert (await gateway.rig.post({"model": "streamed", **STREAM}))[0] == 200
            assert (await gateway.rig.post({"model": "errors", **STREAM}))[0] == 500
            assert (await gateway.rig.post({"model": "closes"}))[0] == 503
            assert (await gateway.rig.post({"model": "gone"}))[0] == 503
            assert (await gateway.rig.post({"model": "unserved"}))[0] == 503
            assert (await gateway.rig.post({"model": "failing", "fails": True, **STREAM}))[0] == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await gateway.rig.post({"model": "breaks", **STREAM})
            assert (await gateway.rig.post({"model": "chosen"}, headers={"x-revision": "chosen"}))[0] == 200
            assert (await gateway.rig.post({"model": "nobody's"}))[0] == 404
        assert (await gateway.rig.post({"model": "chosen"}))[0] == 200
        assert (await gateway.rig.post({"model": "slow", "first": 1.1}))[0] == 200
        assert (await gateway.rig.post({"model": "slow", "stream": True, "first": 0.4, "delay": 0.1}))[0] == 200
        await asyncio.gather(
            leave(gateway, 0.15, model="left", first=5),
            leave(gateway, 0.15, model="left", stream=True, first=5),
            leave(gateway, 0.4, model="left", stream=True, first=5),
            leave(gateway, 0.4, model="left", stream=True, chunks=1000, delay=0.02),
            leave(gateway, 1.2, model="left", first=5),
            leave(gateway, 0.4, model="silent", stream=True),
            leave(gateway, 0.4, model="silent"),
        )
        pods["well"].models = set()
        assert (await gateway.rig.post({"model": "whole"}))[0] == 404

        good, bad, late = (3, 0, 0, 0), (3, 3, 2, 2), (1, 1, 0, 0)
        expected: dict[str, Tallies] = {
            "whole": {"errorRate": good, "e2e": good},
            "streamed": {"errorRate": good, "ttft": good, "itl": good, "e2e": good},
            "slow": {"errorRate": (2, 0, 0, 0), "ttft": late, "itl": late, "e2e": (2, 1, 1, 0)},
            "failing": {"errorRate": bad, "ttft": good, "itl": good},
            "left": {"ttft": (2, 1, 1, 0), "itl": (1, 0, 0, 0), "e2e": late},
            "chosen": {"errorRate": (1, 0, 0, 0), "e2e": (1, 0, 0, 0)},
            "errors": {"errorRate": bad},
            "closes": {"errorRate": bad},
            "breaks": {"errorRate": bad, "ttft": good},
            "gone": {"errorRate": bad},
            "silent": {"ttft": late},
            "unserved": {},
        }

        def seen(report: EvidenceReport) -> dict[str, Tallies]:
            return {name: tallies(report, team, name) for name in expected}

        # of those that left the order is that of their ends, and two of them may end together
        await becomes(lambda: _untimed(gateway, seen), _without_runs(expected), "all rows")
        report = await gateway.evidence()
        assert {n: t for n, t in seen(report).items() if n not in ("left", "slow")} == {
            n: t for n, t in expected.items() if n not in ("left", "slow")
        }
        assert report.judging
        assert await gateway.status_without("Bearer guessed", "/v1/evidence") == 401
    finally:
        for pod in pods.values():
            await pod.die()


async def _untimed(gateway: GatewayProcess, seen: Any) -> dict[str, dict[str, tuple[int, int]]]:
    return _without_runs(seen(await gateway.evidence()))


def _without_runs(rows: dict[str, Tallies]) -> dict[str, dict[str, tuple[int, int]]]:
    return {name: {o: (t[0], t[1]) for o, t in row.items()} for name, row in rows.items()}


async def _timed(gateway: GatewayProcess, **body: Any) -> tuple[float, float]:
    """As the client sees it: time to the first token, and between two, in seconds."""
    begin, tokens = time.perf_counter(), []
    async with gateway.rig.session.post("/v1/chat/completions", json={"stream": True, **body}) as answer:
        async for chunk, _ in answer.content.iter_chunks():
            if b'"content"' in chunk:
                tokens.append(time.perf_counter())
    return tokens[0] - begin, (tokens[-1] - tokens[0]) / (len(tokens) - 1)


async def _means(gateway: GatewayProcess, revision: str) -> dict[str, tuple[float, float]]:
    """Mean and number of what the gateway's histograms hold, by name."""
    page = (await gateway.page()).split("# TYPE envoy", 1)[0]
    samples = {
        s.name: s.value
        for family in text_string_to_metric_families(page)
        for s in family.samples
        if s.labels.get("revision") == revision
    }
    counts = {n.removesuffix("_count"): v for n, v in samples.items() if n.endswith("_count")}
    return {name: (samples[f"{name}_sum"] / count, count) for name, count in counts.items()}


async def test_tokens_are_timed_as_the_client_sees_them_whatever_else_the_stream_brings(
    gateway: GatewayProcess, team: Team
) -> None:
    """Headers at once, first token after 300 ms, then one every 30 ms, and comments before and between them."""
    async with Upstream("pod-a") as pod:
        deploy(team, "support", slo={"ttft": "280ms", "itl": "25ms"})
        team.make_pod(pod, "support")
        await gateway.judges(f"{team.namespace}/support", {"support": 100})
        body = {"model": "support", "first": 0.3, "delay": 0.03, "chunks": 21}
        seen = [await _timed(gateway, **body, comments=number % 2 == 0) for number in range(6)]
        await gateway.evidences(lambda r: tallies(r, team, "support").get("itl", (0,))[0] == 6, "6 streams")
        assert tallies(await gateway.evidence(), team, "support") == {"ttft": (6, 6, 5, 5), "itl": (6, 6, 5, 5)}
        found = await _means(gateway, "support")
        ttft, count = found["tuneyard_time_to_first_token_seconds"]
        assert count == 6
        assert abs(ttft - statistics.mean(first for first, _ in seen)) < 0.010, (ttft, seen)
        itl, _ = found["tuneyard_inter_token_latency_seconds"]
        assert abs(itl - statistics.mean(between for _, between in seen)) < 0.003, (itl, seen)


async def test_two_revisions_are_counted_exactly_and_a_new_process_begins_anew(
    gateway: GatewayProcess, team: Team
) -> None:
    """No request notices that the process is away; what ends meanwhile is counted by nobody."""
    async with Upstream("pod-a") as good, Upstream("pod-b") as bad:
        deploy(team, "support", {"v1": 50, "v2": 50})
        team.make_pod(good, "v1")
        team.make_pod(bad, "v2")
        bad.mode = "error"
        await gateway.judges(f"{team.namespace}/support", {"v1": 50, "v2": 50})

        async def sent(count: int) -> dict[str, int]:
            before = good.asked.total(), bad.asked.total()
            answers = await asyncio.gather(*(gateway.rig.post({"model": "support"}) for _ in range(count)))
            served = {"v1": good.asked.total() - before[0], "v2": bad.asked.total() - before[1]}
            assert sum(status == 200 for status, _, _ in answers) == served["v1"]
            assert sum(status == 500 for status, _, _ in answers) == served["v2"]
            return served

        def errors(report: EvidenceReport) -> dict[str, tuple[int, int]]:
            found = {r: tallies(report, team, "support", r).get("errorRate", (0, 0)) for r in ("v1", "v2")}
            return {r: (t[0], t[1]) for r, t in found.items()}

        first = await sent(200)
        whole = {"v1": (first["v1"], 0), "v2": (first["v2"], first["v2"])}
        await gateway.evidences(lambda r: errors(r) == whole, f"{whole}")
        before = await gateway.evidence()

        gateway.kill()
        load = Load(["support"], rate=50, streaming=0.5, max_requests=100)
        async with Traffic(gateway.url, load) as traffic:
            await traffic.wait_for(50)
            gateway.start()
            await gateway.ready()
        assert {r.status for r in traffic.records} == {200, 500}
        assert max(r.duration for r in traffic.records) < 2
        begun = await gateway.evidence()
        assert begun.process != before.process
        assert begun.age_seconds < before.age_seconds + 30
        assert begun.judging

        lost = errors(begun)
        second = await sent(100)
        await gateway.evidences(
            lambda r: all(t[0] - lost[n][0] >= second[n] for n, t in errors(r).items()), f"{second} more than {lost}"
        )
        assert 'tuneyard_requests_total{namespace="' in await gateway.page()
        team.keep_only("support", "v1")
        await becomes(lambda: _has_series(gateway), False, "its series are gone")
        assert (await gateway.evidence()).deployments[f"{team.namespace}/support"].counts.keys() == {"v1"}


async def _has_series(gateway: GatewayProcess) -> bool:
    """Those of its answers; what it has used stays."""
    lines = (await gateway.page()).split("# TYPE envoy", 1)[0].splitlines()
    return any('revision="v2"' in line and not line.startswith("tuneyard_usage") for line in lines)


async def test_what_began_before_a_change_of_weights_is_counted_for_no_revision(
    gateway: GatewayProcess, team: Team
) -> None:
    async with Upstream("pod-a") as pod:
        deploy(team, "support", {"v1": 100, "v2": 0})
        team.make_pod(pod, "v1", "v2")
        await gateway.judges(f"{team.namespace}/support", {"v1": 100, "v2": 0})
        assert (await gateway.rig.post({"model": "support"}))[0] == 200
        await gateway.evidences(lambda r: bool(tallies(r, team, "support", "v1")), "it is counted")
        old = asyncio.create_task(gateway.rig.post({"model": "support", "first": 1.5}))
        await becomes(lambda: _asked(pod), 2, "it is under way")
        team.set_traffic("support", v1=0, v2=100)
        await gateway.judges(f"{team.namespace}/support", {"v1": 0, "v2": 100})
        assert not old.done()
        assert (await old)[0] == 200
        assert (await gateway.rig.post({"model": "support"}))[0] == 200
        await gateway.evidences(lambda r: bool(tallies(r, team, "support", "v2")), "the next one is counted")
        report = await gateway.evidence()
        assert tallies(report, team, "support", "v1")["errorRate"] == (1, 0, 0, 0)
        assert tallies(report, team, "support", "v2")["errorRate"] == (1, 0, 0, 0)


async def _asked(pod: Upstream) -> int:
    return pod.asked.total()


async def test_nobody_is_blamed_for_having_waited_for_an_adapter(gateway: GatewayProcess, team: Team) -> None:
    async with Upstream("pod-a") as pod:
        deploy(team, "support")
        team.make_pod(pod)
        team.sleep("support", idleSince="2026-01-01T00:00:00Z")
        await gateway.judges(f"{team.namespace}/support", {"support": 100})
        asked = asyncio.create_task(gateway.rig.post({"model": "support", **STREAM}))
        await becomes(gateway.held, 1, "it waits")
        team.report(pod, "support")
        assert (await asked)[0] == 200
        await gateway.evidences(lambda r: bool(tallies(r, team, "support")), "it is counted")
        assert tallies(await gateway.evidence(), team, "support") == {"errorRate": (1, 0, 0, 0)}
