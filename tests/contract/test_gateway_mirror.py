"""Shadow traffic through a real Envoy and the gateway process: what a mirrored pod gets, and that no user notices."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from tests.contract.envoy import Rig, model, revision
from tests.contract.gateway_process import MASTER, GatewayProcess, Team, becomes, engine_name_of, eventually
from tests.fakes.upstream import Mode, Upstream
from tuneyard.api import names
from tuneyard.api.documents import DemandReport
from tuneyard.api.mirror import MirrorTotals
from tuneyard.gateway.mirroring import RECENT
from tuneyard.planning.mirror import MirrorRoute
from tuneyard.systems.envoy.mirroring import HELD_LIMIT

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

SECRET_WORDS = "the word that nobody writes down"
LONG = (
    b'{"messages":[{"content":"caf\\u00e9 \\"model\\": \\"x\\" '
    + b"y" * 100_000
    + b'"}], "model" :\t"%s" , "seed":1.0e5}'
)


@pytest.fixture
async def pods() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with Upstream("pod-a") as a, Upstream("pod-b") as b:
        yield a, b


async def mirrored(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream], percent: int = 100, **more: Any
) -> str:
    """v1 answers from the first pod, v3 gets copies on the second one; returns the deployment's key."""
    for adapter, pod in zip(("v1", "v3"), pods, strict=True):
        team.make_adapter(adapter)
        team.make_pod(pod, adapter)
    spec = {"mirror": {"revision": "v3", "percent": percent, **more}, "routing": {"allowRevisionHeader": True}}
    team.make_deployment("support", {"v1": 100}, revisions=["v1", "v3"], **spec)
    key = f"{team.namespace}/support"
    await gateway.applies(key, {"v1": 100, "v3": 0})
    await becomes(lambda: active(gateway, key), percent, "the mirror is on")
    return key


async def active(gateway: GatewayProcess, key: str) -> int:
    """The share that is copied, -1 while the process and its Envoy do not agree on it."""
    mirror = (await gateway.mirror()).mirrors.get(key)
    percent = mirror.percent if mirror else 0
    routes = await gateway.rig.envoy.admin("/config_dump?resource=dynamic_route_configs")
    applied = {int(found) for found in re.findall(r'"percent": "(\d+)"', routes)} or {0}
    return percent if applied == {percent} else -1


async def seen(gateway: GatewayProcess, key: str, copies: int) -> MirrorTotals:
    """What was seen of the mirror, once that many requests were copied, or left out, and all have ended."""

    async def counted() -> int:
        return sum((await gateway.mirror()).mirrors[key].copies.values())

    await becomes(counted, copies, f"{copies} copies")
    return (await gateway.mirror()).mirrors[key]


async def paired(gateway: GatewayProcess, key: str, pairs: int) -> MirrorTotals:
    async def counted() -> int:
        return (await gateway.mirror()).mirrors[key].pairs

    await becomes(counted, pairs, f"{pairs} pairs")
    return (await gateway.mirror()).mirrors[key]


async def looked_at(gateway: GatewayProcess, key: str) -> bool:
    deployments = (await gateway.demand()).deployments
    return key in deployments and deployments[key].idle_seconds > 0


def requests(report: DemandReport, key: str) -> dict[str, int]:
    return {name: told.requests for name, told in report.deployments[key].revisions.items()}


async def ask(gateway: GatewayProcess, count: int, **more: Any) -> None:
    """So many requests, all of which the first pod answers with v1."""
    body = {"model": "support", "messages": [{"role": "user", "content": SECRET_WORDS}], **more}
    for status, headers, answer in await asyncio.gather(*(gateway.rig.post(body) for _ in range(count))):
        assert (status, headers["x-revision"]) == (200, "v1")
        if not more:
            assert json.loads(answer)["choices"][0]["message"]["content"] == "hello from pod-a"


async def test_a_copy_is_the_request_under_the_mirrored_revisions_name_and_key(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods)
    a, b = pods
    sent = {"authorization": "Bearer of a client", "cookie": "theirs", "x-request-id": "request-7", "x-user": "u"}
    status, headers, body = await gateway.rig.post(LONG % b"support", headers=sent)
    assert (status, headers["x-revision"], headers["x-request-id"]) == (200, "v1", "request-7")
    assert json.loads(body)["choices"][0]["message"]["content"] == "hello from pod-a"
    totals = await paired(gateway, key, 1)
    (users,), (copy,) = a.received, b.received
    assert users.body == LONG % engine_name_of("v1").encode()
    assert copy.body == LONG % engine_name_of("v3").encode()
    assert copy.path == users.path == "/v1/chat/completions"
    assert copy.headers["authorization"] == f"Bearer {names.engine_key(MASTER, team.namespace, 'tiny')}"
    assert not {"cookie", "x-user", "x-model"} & copy.headers.keys()
    # engines take two requests of one id for the same
    assert copy.headers["x-request-id"] not in ("request-7", users.headers["x-request-id"])
    assert not [h for h in users.headers if "mirror" in h or h.startswith("x-tuneyard")]

    (pair,) = totals.recent
    assert (totals.copies, pair.request_id, pair.against) == ({"answered": 1}, "request-7", "v1")
    assert (pair.user.outcome, pair.mirrored.outcome) == ("answered", "answered")
    assert pair.user.characters == pair.mirrored.characters == len("hello from pod-a")
    assert pair.user.digest != pair.mirrored.digest
    assert pair.similarity is not None
    assert 0.8 < pair.similarity < 1


async def test_the_share_is_right_and_who_chose_a_revision_is_not_copied(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods, percent=25, maxConcurrent=64)
    # what is sent before Envoy's second report after a cluster came is not counted
    await becomes(lambda: looked_at(gateway, key), True, "two reports")
    for _ in range(20):
        await ask(gateway, 40)
    copies = await gateway.rig.envoy.stat("cluster.mirror.upstream_rq_total")
    await paired(gateway, key, copies)
    assert len(pods[1].received) == copies
    assert abs(copies - 200) < 4.5 * sqrt(800 * 0.25 * 0.75)
    totals = (await gateway.mirror()).mirrors[key]
    assert (totals.copies, totals.pairs, len(totals.recent)) == ({"answered": copies}, copies, RECENT)
    for chosen in ("v1", "v3"):
        for _ in range(30):
            status, headers, _ = await gateway.rig.post({"model": "support"}, headers={"x-revision": chosen})
            assert (status, headers["x-revision"]) == (200, chosen)
    assert (await gateway.mirror()).mirrors[key].copies == {"answered": copies}
    assert len(pods[1].received) == copies + 30

    # nothing of it is a user's request: neither in the access log nor in what is asked of the revision
    logged = await gateway.rig.envoy.logged(860)
    assert Counter(line["revision"] for line in logged) == {"v1": 830, "v3": 30}
    report = await gateway.demands(lambda r: requests(r, key).get("v3") == 30, "the chosen ones are counted")
    assert requests(report, key) == {"v1": 830, "v3": 30}
    page = await gateway.page()
    assert await gateway.rig.envoy.stat("http.gateway.lua.mirror.errors") == 0
    assert f'tuneyard_mirror_pairs_total{{deployment="support",namespace="{team.namespace}",revision="v3"}}' in page
    assert "envoy_lua_errors{" not in page
    for told in (page, gateway.log.read_text(), (await gateway.mirror()).model_dump_json()):
        assert SECRET_WORDS not in told
        assert "hello from" not in told


async def test_streams_are_mirrored_and_long_bodies_are_left_out(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods)
    await ask(gateway, 4, stream=True, chunks=8, delay=0.01, first=0.1)
    totals = await paired(gateway, key, 4)
    for pair in totals.recent:
        assert pair.similarity == 1
        assert pair.user.digest == pair.mirrored.digest
        for answer in (pair.user, pair.mirrored):
            assert answer.first_ms is not None
            assert answer.whole_ms is not None
            assert 100 <= answer.first_ms < answer.whole_ms - 60
    await ask(gateway, 2, size=2_000_000)
    totals = await paired(gateway, key, 6)
    assert [p.similarity for p in totals.recent[-2:]] == [None, None]
    await ask(gateway, 3, padding="x" * 300_000)
    totals = await seen(gateway, key, 9)
    assert totals.copies == {"answered": 6, "too-long": 3}
    assert len(pods[1].received) == 6


async def test_requests_that_wait_for_their_answers_are_kept_up_to_a_limit_and_given_back_with_their_streams(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods)
    padding = "x" * 250_000
    fit = HELD_LIMIT // (len(padding) + 4096)
    body = {"model": "support", "stream": True, "padding": padding}
    waiting = [asyncio.create_task(gateway.rig.post({**body, "first": 600})) for _ in range(fit + 10)]
    await eventually(lambda: pods[0].active == fit + 10, "all wait")
    totals = await seen(gateway, key, 10)
    assert totals.copies == {"busy": 10}
    # nothing is given back while they wait: the script counts anew once a second
    clock, left_out = asyncio.get_running_loop().time, 10
    until = clock() + 2.5
    while clock() < until:
        await ask(gateway, 1, padding=padding)
        left_out += 1
        totals = await seen(gateway, key, left_out)
        assert totals.copies == {"busy": left_out}
    # they leave, and none of their answers ever came
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)

    async def copied() -> bool:
        await ask(gateway, 1, padding=padding)
        return bool(pods[1].received)

    await becomes(copied, True, "there is room again")
    before = (await gateway.mirror()).mirrors[key].copies["busy"]
    # and with their answers, at once
    for _ in range(2 * fit):
        await ask(gateway, 1, padding=padding)
    assert (await gateway.mirror()).mirrors[key].copies["busy"] == before
    assert await gateway.rig.envoy.stat("http.gateway.lua.mirror.errors") == 0


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [("error", "error"), ("close", "unreachable"), ("headers-then-close", "broken"), ("draining", "withdrawn")],
)
async def test_users_do_not_notice_a_candidate_that_fails(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream], mode: Mode, outcome: str
) -> None:
    key = await mirrored(gateway, team, pods)
    pods[1].mode = mode
    await ask(gateway, 10)
    totals = await seen(gateway, key, 10)
    assert totals.copies == {outcome: 10}
    assert len(pods[0].received) == len(pods[1].received) == 10, "something was asked twice"
    if outcome == "withdrawn":
        assert totals.pairs == 0
    else:
        totals = await paired(gateway, key, 10)
        assert {p.mirrored.outcome for p in totals.recent} == {outcome}
        labels = f'{{answer="mirrored",deployment="support",namespace="{team.namespace}",revision="v3"}}'
        assert f"tuneyard_mirror_errors_total{labels} 10.0" in await gateway.page()


async def test_a_candidate_that_hangs_holds_no_more_than_its_limit_and_lets_go_when_its_pod_leaves(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods, maxConcurrent=2)
    pods[1].mode = "hang"
    await ask(gateway, 30)
    totals = await seen(gateway, key, 28)
    assert totals.copies == {"busy": 28}
    await eventually(lambda: pods[1].active == len(pods[1].received) == 2, "two hang")
    assert f'tuneyard_mirror_under_way{{deployment="support",namespace="{team.namespace}",revision="v3"}} 2.0' in (
        await gateway.page()
    )
    # off the moment that no pod serves the revision
    team.report(pods[1], "v3", engine="Draining")
    await becomes(lambda: active(gateway, key), 0, "the mirror is off")
    totals = await seen(gateway, key, 30)
    assert totals.copies == {"busy": 28, "withdrawn": 2}
    await ask(gateway, 5)
    # and on again with its pod
    pods[1].mode = "answer"
    team.report(pods[1], "v3")
    await becomes(lambda: active(gateway, key), 100, "the mirror is on")
    await gateway.applies(key, {"v1": 100, "v3": 0})
    await ask(gateway, 1)
    totals = await paired(gateway, key, 1)
    assert totals.copies == {"busy": 28, "withdrawn": 2, "answered": 1}
    assert len(pods[1].received) == 3


async def test_a_process_that_is_away_or_hangs_is_not_noticed_either(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods)
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(10):
            for _ in range(5):
                await ask(gateway, 40)
    finally:
        gateway.process.send_signal(signal.SIGCONT)
    gateway.kill()
    await ask(gateway, 40)
    gateway.start()
    await gateway.applies(key, {"v1": 100, "v3": 0})
    await becomes(lambda: active(gateway, key), 100, "the mirror is on")
    before = len(pods[1].received)
    await ask(gateway, 3)
    await paired(gateway, key, 3)
    assert len(pods[1].received) == before + 3


async def test_a_script_that_fails_harms_no_request(tmp_path: Path, pods: tuple[Upstream, Upstream]) -> None:
    """Envoy goes on as if it were not there; what makes requests safe stands in other scripts."""
    script = """
        function envoy_on_request(handle) error('broken') end
        function envoy_on_response(handle) handle:headers():nothing_of_that_name() end
    """
    routes = model("support", revision("v1", 100, [pods[0].address]), revision("v3", 0, [pods[1].address]))
    async with Rig(tmp_path, scripts={"mirror": script}) as rig:
        await rig.serve(replace(routes, mirror=MirrorRoute("v3", 100, 16, active=True)))
        for _ in range(10):
            status, headers, _ = await rig.post({"model": "support"})
            assert (status, headers["x-revision"]) == (200, "v1")
        assert await rig.envoy.stat("http.gateway.lua.mirror.errors") == 20
    assert not pods[1].received


async def test_of_a_client_that_leaves_there_is_no_copy_and_of_a_mirror_that_goes_no_series(
    gateway: GatewayProcess, team: Team, pods: tuple[Upstream, Upstream]
) -> None:
    key = await mirrored(gateway, team, pods)
    body = json.dumps({"model": "support", "stream": True, "chunks": 50, "delay": 0.02}).encode()
    async with gateway.rig.session.post("/v1/chat/completions", data=io.BytesIO(body)) as response:
        await response.content.readany()
    await ask(gateway, 1)
    totals = await paired(gateway, key, 1)
    assert totals.copies == {"answered": 1}
    assert "tuneyard_mirror_pairs_total{" in await gateway.page()
    team.api.request(
        "PATCH",
        f"/apis/{names.API_VERSION}/namespaces/{team.namespace}/modeldeployments/support",
        body={"spec": {"mirror": None}},
        content_type="application/merge-patch+json",
    )
    await becomes(lambda: active(gateway, key), 0, "the mirror is gone")
    await gateway.applies(key, {"v1": 100, "v3": 0})
    await ask(gateway, 5)
    assert len(pods[1].received) == 1
    page = await gateway.page()
    assert "tuneyard_mirror_pairs_total{" not in page
    assert "tuneyard_mirror_first_token_seconds_bucket{" not in page
