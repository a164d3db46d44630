"""The gateway process counts what Envoy has written, however often it dies; records reach a real S3 server once."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.paths import cache_root
from tests.contract.apiserver import ApiServer
from tests.contract.chart import CHART, named, rendered
from tests.contract.envoy import eventually
from tests.contract.gateway_process import GatewayProcess, Team, digest_of
from tests.contract.s3objects import quick_and_alone
from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server, bucket_server
from tests.fakes.upstream import Upstream
from tests.unit.planning.test_usage import record
from tuneyard.api import names
from tuneyard.cli.main import run
from tuneyard.gateway.keptstate import KeptState
from tuneyard.gateway.looks import MOST
from tuneyard.gateway.options import options
from tuneyard.gateway.requestfiles import CURRENT, UNCOUNTED_BYTES, VOLUME_BYTES
from tuneyard.gateway.usage import FLUSHING
from tuneyard.gateway.usageexport import LEAVING

pytestmark = [pytest.mark.s3, pytest.mark.envoy, pytest.mark.apiserver]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with bucket_server("usage") as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("TUNEYARD_CACHE", str(cache_root()))  # the programs stay where they are, whatever HOME is
    with quick_and_alone(monkeypatch, tmp_path):
        yield


def exporting(server: S3Server, folder: Path, prefix: str) -> dict[str, str]:
    """What the chart tells a gateway that writes its records there."""
    (folder / "AWS_ACCESS_KEY_ID").write_text(ROOT)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(ROOT_SECRET)
    return {
        "TUNEYARD_USAGE_URI": f"s3://usage/{prefix}",
        "TUNEYARD_USAGE_ENDPOINT": server.url,
        "TUNEYARD_USAGE_SECRET": "writer",
        "TUNEYARD_USAGE_CREDENTIALS": str(folder),
    }


def exported(server: S3Server, prefix: str) -> list[dict[str, Any]]:
    listed = server.client.list_objects_v2(Bucket="usage", Prefix=prefix).get("Contents", [])
    bodies = [server.client.get_object(Bucket="usage", Key=o["Key"])["Body"].read() for o in listed]
    return [json.loads(line) for body in bodies for line in body.splitlines()]


async def sums(gateway: GatewayProcess) -> Counter[str]:
    """The counters of its page: requests and tokens by kind, and whose numbers they are."""
    found: Counter[str] = Counter()
    for line in (await gateway.page()).splitlines():
        match = re.match(r'tuneyard_usage_(requests|tokens)_total\{.*source="(\w+)"(?:,kind="(\w+)")?\} (\d+)', line)
        if match:
            found[f"{match[3] or match[1]} {match[2]}"] += int(match[4])
    return found


async def settled(gateway: GatewayProcess, requests: int, within: float = 20.0) -> Counter[str]:
    """The counters once they have that many requests."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        found = await sums(gateway)
        if found["requests engine"] + found["requests estimate"] >= requests:
            return found
        assert asyncio.get_running_loop().time() < deadline, found
        await asyncio.sleep(0.05)


BODIES: tuple[dict[str, Any], ...] = (
    {"first": 0.01},
    {"stream": True, "chunks": 3, "delay": 0.01},
    {"stream": True, "chunks": 6, "delay": 0.003, "stream_options": {"include_usage": True}},
)
"""In turn: an answer of 11 and 3 tokens, streams of 7 and 3, 7 and 6."""


async def test_nothing_is_lost_or_counted_twice_when_the_process_is_killed(
    server: S3Server, apiserver: ApiServer, team: Team, tmp_path: Path
) -> None:
    """2,000 requests, the process killed again and again meanwhile: sums and records are what engines have answered."""
    team.make_adapter("v1")
    environment = exporting(server, tmp_path, "killed")
    async with Upstream("pod-a") as pod, GatewayProcess(apiserver, tmp_path, environment=environment) as gateway:
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100})
        await gateway.applies(f"{team.namespace}/support", {"v1": 100})
        left = iter(range(1998))
        shown: list[int] = []

        async def asking() -> None:
            for number in left:
                body = {"model": "support", **BODIES[number % 3]}
                status, _, _ = await gateway.rig.post(body, headers={"x-request-id": f"r{number}"})
                assert status == 200

        async def killing() -> None:
            while True:
                await gateway.ready()
                await settled(gateway, (shown[-1] if shown else 0) + 1)
                shown.append((await sums(gateway))["requests engine"])
                await asyncio.to_thread(gateway.kill)
                gateway.start()

        killer = asyncio.create_task(killing())
        await asyncio.gather(*(asking() for _ in range(8)))
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
        assert len(shown) > 1, "it was killed while requests came"
        if gateway.process is None:
            gateway.start()
        await gateway.ready()
        found = await settled(gateway, 1998)
        assert found == {
            "requests engine": 1998,
            "prompt engine": 666 * (11 + 7 + 7),
            "completion engine": 666 * (3 + 3 + 6),
        }
        assert shown == sorted(shown), "a counter never goes back"
        await asyncio.to_thread(gateway.kill, signal.SIGTERM)
        records = exported(server, "killed/")
        assert Counter(r["requestId"] for r in records) == Counter(f"r{n}" for n in range(1998))
        assert sum(r["completionTokens"] for r in records) == found["completion engine"]


async def test_a_record_says_who_asked_and_what_answered(
    server: S3Server, apiserver: ApiServer, team: Team, tmp_path: Path
) -> None:
    """The whole way: an answer, the end of the gateway's process, the object."""
    team.pin_base()
    team.make_adapter("v1")
    environment = exporting(server, tmp_path, "whole")
    async with Upstream("pod-a") as pod, GatewayProcess(apiserver, tmp_path, environment=environment) as gateway:
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100})
        await gateway.applies(f"{team.namespace}/support", {"v1": 100})
        await gateway.rig.post({"model": "support", "messages": "my secret"}, headers={"x-request-id": "r-1"})
        await asyncio.to_thread(gateway.kill, signal.SIGTERM)
        (record,) = exported(server, "whole/")
        page = json.dumps(KeptState(gateway.folder / "usage.json", 0).read())
    assert record.pop("time").endswith("Z")
    contents = record.pop("contents")
    assert re.fullmatch(r"\d{8}T\d{6}Z[0-9a-f]{6}-0-0", record.pop("id"))
    assert record == {
        "requestId": "r-1",
        "attempt": 1,
        "gateway": "gateway-0",
        "model": "support",
        "deployment": f"{team.namespace}/support",
        "revision": "v1",
        "pool": names.pool_name("tiny"),
        "adapter": "v1",
        "adapterDigest": digest_of("v1"),
        "base": "tiny",
        "baseDigest": digest_of("tiny"),
        "endpoint": "chat",
        "gate": False,
        "status": 200,
        "outcome": "ok",
        "promptTokens": 11,
        "cachedTokens": 0,
        "completionTokens": 3,
        "estimated": False,
    }
    assert contents in page
    assert "secret" not in page + gateway.log.read_text()


async def test_a_leaving_gateway_is_looked_at_once_more(apiserver: ApiServer, team: Team, tmp_path: Path) -> None:
    """Where nothing is exported, that is how its last tokens come to be known."""
    team.make_adapter("v1")
    async with Upstream("pod-a") as pod, GatewayProcess(apiserver, tmp_path) as gateway:
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100})
        await gateway.applies(f"{team.namespace}/support", {"v1": 100})
        await gateway.page()
        await asyncio.sleep(3)  # as Prometheus does
        await gateway.page()
        assert (await gateway.rig.post({"model": "support"}))[0] == 200
        process = gateway.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: "tokens are counted" in gateway.log.read_text(), "everything is counted")
        assert (await sums(gateway))["requests engine"] == 1
        assert await asyncio.to_thread(process.wait, 20) == 0


def test_the_program_reads_what_gateways_have_written(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["usage", "s3://usage/read", "--endpoint", server.url]
    for day in ("2026-11-19", "2026-11-20"):
        line = record(time=f"{day}T10:00:00Z", requestId=day).line()
        server.client.put_object(Bucket="usage", Key=f"read/dt={day}/gw-0-x-0-0.jsonl", Body=line)
    assert run(asked) == 1
    assert "there are no credentials for s3://usage/read/" in capsys.readouterr().err
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ROOT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ROOT_SECRET)
    assert run([*asked, "--by", "tenant", "--since", "2026-11-20", "-o", "json"]) == 0
    assert [(row["name"], row["promptTokens"]) for row in json.loads(capsys.readouterr().out)["rows"]] == [("acme", 11)]
    assert run(["usage", "s3://nowhere/read", "--endpoint", server.url]) == 1
    assert "NoSuchBucket" in capsys.readouterr().err


def gateway_pod(**values: Any) -> dict[str, Any]:
    spec: dict[str, Any] = named(rendered(**values), "Deployment", "tuneyard-gateway")["spec"]
    return spec["template"]


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e["value"] for e in container.get("env", ()) if "value" in e}


def test_the_chart_tells_envoy_and_the_process_the_same() -> None:
    """Whether tokens are counted is in Envoy's configuration, which another container writes."""
    for values, counted in (({}, True), ({"usage": {"enabled": False}}, False)):
        spec = gateway_pod(**values)["spec"]
        told = [environment_of(c) for c in (spec["initContainers"][0], *spec["containers"])]
        assert [options(t).usage for t in told] == [counted, counted]


def test_the_log_has_a_volume_of_its_own() -> None:
    """Both find it there, it holds what the program says, and Envoy's memory is told without it."""
    spec = gateway_pod()["spec"]
    (bootstrap, envoy), (process,) = spec["initContainers"], spec["containers"]
    told = [options(environment_of(c)).request_log for c in (bootstrap, process)]
    for container in (envoy, process):
        mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        assert [mounted[str(path.parent)] for path in told] == ["request-log", "request-log"]
    assert told[0].name == CURRENT
    (volume,) = [v["emptyDir"] for v in spec["volumes"] if v["name"] == "request-log"]
    assert volume == {"medium": "Memory", "sizeLimit": f"{VOLUME_BYTES >> 20}Mi"}
    memory = 1 << 30
    limit = {"TUNEYARD_ENVOY_MEMORY": str(memory)}
    assert options(environment_of(bootstrap) | limit).memory == memory - VOLUME_BYTES
    without = gateway_pod(usage={"enabled": False})["spec"]
    (volume,) = [v["emptyDir"] for v in without["volumes"] if v["name"] == "request-log"]
    assert volume == {"medium": "Memory", "sizeLimit": f"{UNCOUNTED_BYTES >> 20}Mi"}, "answers are told all the same"
    assert options(environment_of(without["initContainers"][0]) | limit).memory == memory - UNCOUNTED_BYTES


def test_a_pod_lives_until_everything_is_counted_and_written() -> None:
    told = options(environment_of(gateway_pod()["spec"]["containers"][0]))
    admin, counting, ends = 10, 2, 15
    takes = told.drain_delay + told.drain_seconds + admin + FLUSHING + counting + MOST + LEAVING + ends
    assert gateway_pod()["spec"]["terminationGracePeriodSeconds"] >= takes


def test_the_chart_says_where_records_go() -> None:
    export = {"bucket": "usage", "endpoint": "http://s3:9000", "secretName": "writer"}
    pod = gateway_pod(usage={"export": export}, feedback={"export": {"bucket": "feedback", "secretName": "other"}})
    (container,) = pod["spec"]["containers"]
    target = options(environment_of(container)).usage_export
    assert target is not None
    assert (target.place.uri, target.place.endpoint, target.secret) == ("s3://usage/usage", "http://s3:9000", "writer")
    mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    assert mounted[str(target.folder)] == "usage"
    secrets = {v["name"]: v["projected"]["sources"][0]["secret"]["name"] for v in pod["spec"]["volumes"][-2:]}
    assert secrets == {"feedback": "other", "usage": "writer"}
    for other in pod["spec"]["initContainers"]:
        assert "writer" not in json.dumps(other)
    assert pod["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"] == "bootstrap,envoy"


def test_the_example_is_what_a_gateway_understands() -> None:
    values = yaml.safe_load((CHART.parents[1] / "examples" / "usage" / "values.yaml").read_text())
    (container,) = gateway_pod(**values)["spec"]["containers"]
    target = options(environment_of(container)).usage_export
    assert target is not None
    assert (target.place.uri, target.secret) == ("s3://acme-usage/usage", "usage-writer")
