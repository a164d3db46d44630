"""Spans of a real Envoy as OpenTelemetry's conventions for generative AI have them: whose tokens, and no prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.contract.collector import Collector, attributes
from tests.contract.engines import BASE
from tests.contract.envoy import Rig, engine_key, eventually, model, revision
from tests.fakes.engine import FakeEngine, Options
from tuneyard.planning.settings import TracingSettings

pytestmark = pytest.mark.envoy

SECRET = "nobody else may read this"
ASKED: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": SECRET}]},
    "text_completion": {"prompt": SECRET},
    "embeddings": {"input": SECRET},
}
PATHS = {"chat": "/v1/chat/completions", "text_completion": "/v1/completions", "embeddings": "/v1/embeddings"}


async def test_a_span_tells_who_answered_and_what_it_cost_and_no_prompt(tmp_path: Path) -> None:
    options = Options(api_key=engine_key("default", "base"), served_model_name=BASE, embedding_width=4)
    async with Collector() as collector, FakeEngine(options) as engine:
        address = f"127.0.0.1:{engine.options.port}"
        traces = TracingSettings(otlp_endpoint=collector.endpoint, sampling=100)
        async with Rig(tmp_path, traces=traces) as rig:
            tuned = replace(revision("v2", 100, [address], engine=BASE), adapter="polite", digest="sha256:" + "a" * 64)
            plain = replace(revision("v1", 100, [address], engine=BASE), digest="sha256:" + "b" * 64)
            await rig.serve(model("tuned", tuned), model("plain", plain))
            for name in ("tuned", "plain"):
                for operation, asked in ASKED.items():
                    for stream in (False, True) if operation != "embeddings" else (False,):
                        body = {"model": name, "max_tokens": 5, "stream": stream, **asked}
                        more = {"stream_options": {"include_usage": True}} if stream else {}
                        status, _, answer = await rig.post(body | more, path=PATHS[operation])
                        assert status == 200, answer
            assert (await rig.post({"model": "nobody"}))[0] == 404
            assert (await rig.post(b"{}"))[0] == 400
            assert (await rig.get("/v1/models"))[0] == 200
            await eventually(lambda: len(collector.spans) == 13, "every request's span")

    told = [attributes(span) for span in collector.spans]
    answered = [span for span in told if "gen_ai.response.model" in span]
    assert len(answered) == 10
    for span in answered:
        operation = span["gen_ai.operation.name"]
        assert span["http.url"].endswith(PATHS[operation])
        assert span["gen_ai.provider.name"] == "vllm"
        assert span["gen_ai.response.model"] == {"tuned": "polite", "plain": BASE}[span["gen_ai.request.model"]]
        assert f"{span['server.address']}:{span['server.port']}" == address
        assert int(span["gen_ai.usage.input_tokens"]) > 3
        assert span["gen_ai.usage.cache_read.input_tokens"] == "0"
        assert span["gen_ai.usage.output_tokens"] == ("0" if operation == "embeddings" else "5")
        assert "error.type" not in span
    assert {span["gen_ai.operation.name"] for span in answered} == PATHS.keys()

    refused = [span for span in told if span not in answered]
    assert sorted(span.get("error.type", "-") for span in refused) == ["-", "invalid_body", "model_not_found"]
    for span in refused:
        assert not any(name.startswith("gen_ai.usage.") for name in span), "an engine that was not asked counts nothing"
        assert "server.address" not in span
    (listed,) = (span for span in refused if span["http.url"].endswith("/v1/models"))
    assert "gen_ai.operation.name" not in listed
    assert SECRET not in str(collector.spans)
