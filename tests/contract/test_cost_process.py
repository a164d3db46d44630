"""What a hosted token costs, the whole way: a price in a ModelDeployment, Envoy, the bucket, `tuneyard cost`."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.paths import cache_root
from tests.contract.apiserver import ApiServer
from tests.contract.certificates import Authority
from tests.contract.gateway_process import GatewayProcess, Team
from tests.contract.s3objects import quick_and_alone
from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server
from tests.contract.test_gateway_external import OURS, hosted_revision, make_deployment, make_secret, server_side
from tests.contract.test_usage_process import exported, exporting
from tests.fakes.hosted import Hosted
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.cli.main import run
from tuneyard.systems.kube.client import MERGE

pytestmark = [pytest.mark.s3, pytest.mark.envoy, pytest.mark.apiserver]

CHEAP = {"inputPerMillion": 100_000, "outputPerMillion": 200_000}
DEAR = {"inputPerMillion": 100_000, "cachedInputPerMillion": 50_000, "outputPerMillion": 400_000}
"""An answer of 11 and 3 tokens costs 1.70, and then 2.30."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    (tmp_path / "s3").mkdir()
    monkeypatch.setenv("TUNEYARD_CACHE", str(cache_root()))  # the programs stay where they are, whatever HOME is
    with quick_and_alone(monkeypatch, tmp_path), S3Server(tmp_path / "s3") as server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ROOT)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ROOT_SECRET)
        server.bucket("usage")
        yield server


def change(team: Team, pricing: dict[str, Any], own: dict[str, Any], hosted: dict[str, Any]) -> None:
    """Another price, and the traffic goes over: whoever serves the one has the other."""
    revision = {**hosted, "external": {**hosted["external"], "pricing": pricing}}
    spec = {"revisions": [revision, own], "traffic": [{"revision": "own", "weight": 100}]}
    path = f"/apis/tuneyard.dev/v1alpha1/namespaces/{team.namespace}/modeldeployments/chat"
    team.api.request("PATCH", path, body={"spec": spec}, content_type=MERGE)


async def test_a_price_reaches_the_bill_and_no_later_one_changes_it(
    server: S3Server,
    apiserver: ApiServer,
    team: Team,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    authority = Authority(tmp_path, "world")
    environment = exporting(server, tmp_path, "cost") | {"TUNEYARD_EXTERNAL_CA": str(authority.path)}
    settings = {"watchNamespaces": [team.namespace]}
    gateway = GatewayProcess(apiserver, tmp_path, settings=settings, environment=environment)
    deployment = f"{team.namespace}/chat"
    async with Hosted("api", tls=server_side(authority)) as api, Upstream("pod-a") as pod, gateway:
        team.make_pod(pod)
        make_secret(team.api, team.namespace, "hosted-api", OURS)
        hosted, own = hosted_revision(api, pricing=CHEAP), {"name": "own", "baseModel": team.base}
        make_deployment(team, [hosted, own], {"hosted": 100}, routing={"allowRevisionHeader": True})
        await gateway.applies(deployment, {"hosted": 100, "own": 0})
        assert (await gateway.rig.post({"model": "chat"}))[0] == 200
        change(team, DEAR, own, hosted)
        await gateway.applies(deployment, {"hosted": 0, "own": 100})
        assert (await gateway.rig.post({"model": "chat"}, headers={"x-revision": "hosted"}))[0] == 200
        assert (await gateway.rig.post({"model": "chat"}))[0] == 200
        await asyncio.to_thread(gateway.kill, signal.SIGTERM)
        records = sorted(exported(server, "cost/"), key=lambda record: str(record["time"]))
        host = f"localhost:{api.port}"
    pool = names.pool_name(team.base)
    assert [(r["revision"], r.get("external"), r.get("pool"), r.get("price")) for r in records] == [
        ("hosted", host, None, CHEAP),
        ("hosted", host, None, DEAR),
        ("own", None, pool, None),
    ]
    assert len({r["contents"] for r in records if r["revision"] == "hosted"}) == 1, "it is what it was"
    pools = [{"pool": f"{team.namespace}/{pool}", "node": "l4", "hours": 10}]
    prices = {"period": {"since": "2000-01-01", "until": "2100-01-01"}, "nodes": {"l4": 0.8}, "pools": pools}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
    asked = ["cost", "s3://usage/cost/", "--endpoint", server.url, "--prices", str(tmp_path / "prices.yaml")]
    assert run([*asked, "--by", "revision", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {row["name"]: (row["cost"], row["hosted"]) for row in told["rows"]} == {
        f"{deployment} own": (8.0, 0.0),
        f"{deployment} hosted": (pytest.approx(4.0), pytest.approx(4.0)),
    }
    assert (told["total"]["cost"], told["total"]["tokens"]) == (pytest.approx(12.0), 42)
    assert (told["unpriced"], told["unpricedHosted"]) == ([], [])
