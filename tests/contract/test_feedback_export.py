"""Feedback on its way into a real S3 server, by what the chart tells the gateway's pod."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from closedloop.collecting import feedback_lines
from closedloop.files import StepError
from cluster.paths import cache_root
from tests.contract.apiserver import ApiServer
from tests.contract.chart import named, rendered
from tests.contract.envoy import eventually
from tests.contract.gateway_process import GatewayProcess, Team, digest_of
from tests.contract.s3objects import quick_and_alone
from tests.contract.s3server import ROOT, ROOT_SECRET, S3Server, bucket_server
from tests.fakes.upstream import Upstream
from tuneyard.api.feedback import FeedbackRecord
from tuneyard.gateway import bucketwriting
from tuneyard.gateway.buckettarget import BucketTarget
from tuneyard.gateway.feedbackexport import FeedbackExport, FeedbackMetrics
from tuneyard.gateway.options import options

pytestmark = [pytest.mark.s3, pytest.mark.envoy, pytest.mark.apiserver]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with bucket_server("feedback") as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(bucketwriting, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(bucketwriting, "LONGEST_DELAY", 0.05)
    monkeypatch.setenv("TUNEYARD_CACHE", str(cache_root()))  # the programs stay where they are, whatever HOME is
    with quick_and_alone(monkeypatch, tmp_path):
        yield


def record(number: int, text: str | None = None) -> FeedbackRecord:
    return FeedbackRecord(
        time="2026-11-20T10:00:00Z",
        request_id=f"r{number}",
        model="m",
        deployment="ns/m",
        revision="v1",
        score=-1,
        text=text,
    )


def gateway_pod(**export: Any) -> dict[str, Any]:
    spec: dict[str, Any] = named(rendered(feedback={"export": export}), "Deployment", "tuneyard-gateway")["spec"]
    return spec["template"]


def target(folder: Path, **export: Any) -> BucketTarget:
    """What the gateway process makes of the pod that the chart makes; the Secret's files lie in `folder`."""
    (container,) = gateway_pod(**export)["spec"]["containers"]
    told = {e["name"]: e["value"] for e in container["env"] if "value" in e}
    if "TUNEYARD_FEEDBACK_CREDENTIALS" in told:
        mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        assert mounted[told["TUNEYARD_FEEDBACK_CREDENTIALS"]] == "feedback"
        told["TUNEYARD_FEEDBACK_CREDENTIALS"] = str(folder)
    found = options(told).feedback
    assert found is not None
    return found


def objects(server: S3Server, prefix: str) -> dict[str, list[str]]:
    """Key -> the request ids in that object."""
    listed = server.client.list_objects_v2(Bucket="feedback", Prefix=prefix).get("Contents", [])
    read = {o["Key"]: server.client.get_object(Bucket="feedback", Key=o["Key"])["Body"].read() for o in listed}
    return {key: [json.loads(line)["requestId"] for line in body.splitlines()] for key, body in read.items()}


def secret(folder: Path, key: str = ROOT, value: str = ROOT_SECRET) -> Path:
    (folder / "AWS_ACCESS_KEY_ID").write_text(key)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(value)
    return folder


async def test_records_arrive_and_a_restart_writes_beside(server: S3Server, tmp_path: Path) -> None:
    to = target(secret(tmp_path), bucket="feedback", prefix="a", endpoint=server.url, secretName="writer")
    for begin in (0, 3):
        export = FeedbackExport("gw-0", to.open, FeedbackMetrics(CollectorRegistry()))
        for number in range(begin, begin + 3):
            export.add(record(number, "nö\n"))
        await export.close()
    found = objects(server, "a/dt=2026-11-20/gw-0-")
    assert sorted(found.values()) == [["r0", "r1", "r2"], ["r3", "r4", "r5"]]


async def test_the_closed_loop_reads_what_was_written(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = target(secret(tmp_path), bucket="feedback", prefix="d", endpoint=server.url, secretName="writer")
    export = FeedbackExport("gw-0", to.open, FeedbackMetrics(CollectorRegistry()))
    given = record(0, "correction: nö\u2028\n")
    export.add(given)
    await export.close()
    with pytest.raises(StepError, match="s3://feedback/d cannot be read: NoCredentialsError"):
        feedback_lines("s3://feedback/d", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ROOT)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ROOT_SECRET)
    assert feedback_lines("s3://feedback/d", server.url) == [given.to_dict()]
    assert feedback_lines("s3://feedback/d", server.url, since="2026-11-21") == []


async def test_a_server_that_is_away_gets_them_when_it_is_back(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    to = target(secret(tmp_path), bucket="feedback", prefix="b", endpoint=server.url, secretName="writer")
    export = FeedbackExport("gw-0", to.open, FeedbackMetrics(registry))
    server.stop()
    try:
        export.start()
        for number in range(1000):
            export.add(record(number))
        await eventually(lambda: "cannot be written" in caplog.text, "it says so")
    finally:
        server.start()
    await eventually(
        lambda: registry.get_sample_value("tuneyard_gateway_feedback_exported_total") == 1000, "they are written"
    )
    await export.close()
    assert [len(ids) for ids in objects(server, "b/").values()] == [1000]


async def test_a_corrected_secret_needs_no_restart(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = secret(tmp_path, value="wrong-and-private")
    to = target(folder, bucket="feedback", prefix="c", endpoint=server.url, region="us-east-1", secretName="writer")
    export = FeedbackExport("gw-0", to.open, FeedbackMetrics(CollectorRegistry()))
    export.start()
    for number in range(1000):
        export.add(record(number))
    await eventually(lambda: "may not write s3://feedback/c/dt=" in caplog.text, "the refusal is told")
    assert "of Secret writer" in caplog.text
    assert "wrong-and-private" not in caplog.text
    secret(folder)
    await eventually(lambda: export.waiting == 0, "written with the new one")
    await export.close()
    assert [len(ids) for ids in objects(server, "c/").values()] == [1000]


@pytest.mark.parametrize(
    ("export", "said"),
    [
        ({"bucket": "nowhere", "secretName": "writer"}, "the bucket nowhere does not exist"),
        ({"bucket": "feedback", "anonymous": True}, "anonymous may not write s3://feedback/feedback/dt="),
        ({"bucket": "feedback"}, "there are no credentials for s3://feedback/feedback/dt="),
    ],
)
async def test_what_is_said_where_nothing_can_be_written(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, export: dict[str, Any], said: str
) -> None:
    to = target(secret(tmp_path), endpoint=server.url, **export)
    exporting = FeedbackExport("gw-0", to.open, FeedbackMetrics(CollectorRegistry()))
    exporting.start()
    for number in range(1000):
        exporting.add(record(number))
    await eventually(lambda: said in caplog.text, said)
    await exporting.close(within=0)


def test_without_a_bucket_nothing_of_it_is_in_the_pod() -> None:
    assert "feedback" not in json.dumps(gateway_pod()).lower()


@pytest.mark.parametrize("export", [{"secretName": "writer"}, {"caConfigMap": "authority"}, {"anonymous": True}])
def test_credentials_reach_the_gateway_process_and_nobody_else(export: dict[str, Any]) -> None:
    pod = gateway_pod(bucket="feedback", **export)
    for container in pod["spec"]["initContainers"]:
        assert "feedback" not in json.dumps(container).lower(), container["name"]
    names = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert ("feedback" in names) == ("anonymous" not in export)
    # what a cloud's webhook adds for the service account's identity, it adds to the gateway process alone
    assert pod["metadata"]["annotations"]["eks.amazonaws.com/skip-containers"] == "bootstrap,envoy"


async def test_what_users_say_to_a_gateway_arrives_when_it_ends(
    server: S3Server, apiserver: ApiServer, team: Team, tmp_path: Path
) -> None:
    """The whole way: an answer, its rating, the end of the gateway's process, the object."""
    team.make_adapter("v1")
    environment = {
        "TUNEYARD_FEEDBACK_URI": "s3://feedback/whole",
        "TUNEYARD_FEEDBACK_ENDPOINT": server.url,
        "TUNEYARD_FEEDBACK_SECRET": "writer",
        "TUNEYARD_FEEDBACK_CREDENTIALS": str(secret(tmp_path)),
    }
    async with Upstream("pod-a") as pod, GatewayProcess(apiserver, tmp_path, environment=environment) as gateway:
        team.make_pod(pod, "v1")
        team.make_deployment("support", {"v1": 100})
        await gateway.applies(f"{team.namespace}/support", {"v1": 100})
        _, answered, _ = await gateway.rig.post({"model": "support"})
        said = {"request_id": answered["x-request-id"], "score": -1, "text": "correction: 7 pm"}
        status, _, _ = await gateway.rig.post(said, path="/v1/feedback")
        assert status == 202
        await asyncio.to_thread(gateway.kill, signal.SIGTERM)
    (body,) = [
        server.client.get_object(Bucket="feedback", Key=o["Key"])["Body"].read()
        for o in server.client.list_objects_v2(Bucket="feedback", Prefix="whole/").get("Contents", [])
    ]
    told = json.loads(body)
    assert told.pop("time").endswith("Z")
    assert told == {
        "requestId": said["request_id"],
        "model": "support",
        "deployment": f"{team.namespace}/support",
        "revision": "v1",
        "adapter": "v1",
        "adapterDigest": digest_of("v1"),
        "score": -1.0,
        "text": "correction: 7 pm",
    }
    assert "7 pm" not in gateway.log.read_text()
