"""What a real Envoy makes of `traceparent`, with and without a collector of spans."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contract.collector import Collector, attributes
from tests.contract.envoy import Front, Rig, eventually, model, revision, validation_errors
from tests.contract.ports import free_port
from tests.fakes.upstream import Upstream
from tuneyard.gateway.envoyfile import write_bootstrap
from tuneyard.planning.settings import TracingSettings

pytestmark = pytest.mark.envoy

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
STATE = "vendor=opaque,other=1"


@pytest.fixture
async def pod() -> AsyncIterator[Upstream]:
    async with Upstream("pod-a") as pod:
        yield pod


async def asked(rig: Rig, pod: Upstream, **headers: str) -> dict[str, str]:
    """The headers that the engine gets of a request with these."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, body = await rig.post({"model": "support"}, headers=sent)
    assert status == 200, body
    return pod.received[-1].headers


async def test_without_a_collector_the_engine_gets_what_the_client_sent(tmp_path: Path, pod: Upstream) -> None:
    async with Rig(tmp_path) as rig, Front(tmp_path, pod.port) as front:
        await rig.serve(model("support", revision("v1", 100, [front.address])))
        written = (SAMPLED, UNSAMPLED, f"{SAMPLED}-of-a-later-version", "rubbish")
        for sent in written:
            headers = await asked(rig, pod, traceparent=sent, tracestate=STATE, baggage="a=b")
            assert (headers["traceparent"], headers["tracestate"], headers["baggage"]) == (sent, STATE, "a=b")
        assert "traceparent" not in await asked(rig, pod)
        logged = [line["traceparent"] for line in await rig.envoy.logged(len(written) + 1)]
        # no longer than a traceparent is, whatever a client writes there
        assert logged == [*(sent[:55] for sent in written), None]


async def test_an_id_of_a_client_stays_what_it_is(tmp_path: Path, pod: Upstream) -> None:
    # the digit where Envoy would write whether it traces
    ids = [f"01890a5d-ac96-{version}74d-8d3e-d5d2f5b1b1a1" for version in "1479ab"]
    async with Rig(tmp_path) as rig, Front(tmp_path, pod.port) as front:
        await rig.serve(model("support", revision("v1", 100, [front.address])))
        for mine in ids:
            _, headers, _ = await rig.post({"model": "support"}, headers={"x-request-id": mine})
            assert (headers["x-request-id"], pod.received[-1].headers["x-request-id"]) == (mine, mine)
        assert [line["request_id"] for line in await rig.envoy.logged(len(ids))] == ids


class Traced:
    """A gateway with a collector."""

    def __init__(self, rig: Rig, pod: Upstream, collector: Collector) -> None:
        self.rig, self.pod, self.collector = rig, pod, collector

    async def asked(self, **headers: str) -> tuple[str, str, str]:
        """Trace id, span id and flags that the engine gets."""
        version, trace, span, flags = (await asked(self.rig, self.pod, **headers))["traceparent"].split("-")
        assert version == "00"
        return trace, span, flags

    async def told(self, count: int) -> list[Any]:
        """The spans, once there are that many."""
        await eventually(lambda: len(self.collector.spans) >= count, f"{count} spans")
        return self.collector.spans


@pytest.fixture
async def traced(tmp_path: Path, pod: Upstream, request: pytest.FixtureRequest) -> AsyncIterator[Traced]:
    async with Collector() as collector:
        traces = TracingSettings(otlp_endpoint=collector.endpoint, sampling=request.param)
        async with Rig(tmp_path, traces=traces) as rig:
            await rig.serve(model("support", revision("v1", 100, [pod.address])))
            yield Traced(rig, pod, collector)


@pytest.mark.parametrize("traced", [100], indirect=True)
async def test_a_span_lies_between_the_client_s_and_the_engine_s(traced: Traced) -> None:
    trace, span, flags = await traced.asked(traceparent=SAMPLED, tracestate=STATE, authorization="Bearer secret-key")
    assert (trace, flags) == (TRACE, "01")
    assert span != PARENT
    assert traced.pod.received[-1].headers["tracestate"] == STATE
    (told,) = await traced.told(1)
    assert (told.trace_id.hex(), told.parent_span_id.hex(), told.span_id.hex()) == (TRACE, PARENT, span)
    said = attributes(told)
    assert {k: said[k] for k in ("tuneyard.deployment", "tuneyard.revision", "gen_ai.request.model")} == {
        "tuneyard.deployment": "default/md-support",
        "tuneyard.revision": "v1",
        "gen_ai.request.model": "support",
    }
    assert traced.collector.services == {"tuneyard-gateway"}
    assert "secret-key" not in str(told), "a span carries no credential"
    (line,) = await traced.rig.envoy.logged(1)
    assert line["trace_id"] == TRACE


@pytest.mark.parametrize("traced", [100], indirect=True)
async def test_a_client_that_does_not_sample_is_not_overruled(traced: Traced) -> None:
    trace, _, flags = await traced.asked(traceparent=UNSAMPLED, x_request_id="not-a-uuid")
    assert (trace, flags) == (TRACE, "00")
    assert traced.pod.received[-1].headers["x-request-id"] == "not-a-uuid"
    trace, span, flags = await traced.asked()
    assert flags == "01"
    told = await traced.told(1)
    assert [s.span_id.hex() for s in told] == [span], "the request that is not sampled has no span"
    assert [line["trace_id"] for line in await traced.rig.envoy.logged(2)] == [TRACE, trace]


@pytest.mark.parametrize("traced", [0], indirect=True)
async def test_only_who_asks_for_it_is_sampled_where_the_share_is_nothing(traced: Traced) -> None:
    fixed = "6fa5b3fd-a2fc-9d8a-8d3e-d5d2f5b1b1a1"  # a sampled one, as Envoy would mark it
    for forcing in ({}, {"x_client_trace_id": "x"}, {"x_request_id": fixed}, {"x_envoy_force_trace": "1"}):
        assert (await traced.asked(**forcing))[2] == "00"
    assert traced.pod.received[-2].headers["x-request-id"] == fixed, "ids stay as clients wrote them"
    _, span, flags = await traced.asked(traceparent=SAMPLED)
    assert flags == "01"
    assert [s.span_id.hex() for s in await traced.told(1)] == [span]


async def test_a_collector_that_is_away_holds_no_request_up(tmp_path: Path, pod: Upstream) -> None:
    away = TracingSettings(otlp_endpoint=f"http://127.0.0.1:{free_port()}", sampling=100)
    async with Rig(tmp_path, traces=away) as rig:
        await rig.serve(model("support", revision("v1", 100, [pod.address])))
        async with asyncio.timeout(20):
            for _ in range(200):
                await asked(rig, pod)


def test_the_collector_of_the_settings_is_in_the_configuration_that_envoy_starts_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POD_NAME", "gateway-0")
    monkeypatch.setenv("TUNEYARD_RUN_DIRECTORY", str(tmp_path))
    told: dict[str, Any] = {}
    for name, tracing in (("with", {"otlpEndpoint": "http://collector.tracing:4317"}), ("without", {})):
        config, written = tmp_path / f"{name}.yaml", tmp_path / f"{name}.json"
        config.write_text(yaml.safe_dump({"tracing": tracing}))
        assert write_bootstrap(config, written) == 0
        told[name] = json.loads(written.read_text())
        assert validation_errors(told[name]) == ""
    (cluster,) = [c for c in told["with"]["static_resources"]["clusters"] if c["name"] == "tracing"]
    (host,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert host["endpoint"]["address"]["socket_address"] == {"address": "collector.tracing", "port_value": 4317}
    assert "opentelemetry" not in json.dumps(told["without"]), "off by default"
