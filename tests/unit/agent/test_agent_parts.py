"""The agent's parts by themselves: settings, what is published, what is kept, what the metrics page says."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.unit.agent.states import planned
from tests.unit.agent.waiting import until
from tuneyard.agent import publishing
from tuneyard.agent.knowledge import Knowledge
from tuneyard.agent.plans import read_plan
from tuneyard.agent.publishing import Publisher
from tuneyard.agent.settings import SettingsError, settings_from
from tuneyard.agent.snapshot import Snapshot
from tuneyard.api.documents import PlannedAdapter, PodReport, PoolPlan, stored_plan
from tuneyard.api.sources import S3Source, Source
from tuneyard.planning.agentstate import DrainAsked, Event, PlanChanged, Published, State
from tuneyard.systems.engines.base import Answer, EngineRefusedError
from tuneyard.systems.engines.vllm import Vllm, busy_in
from tuneyard.systems.kube.client import ApiError

ENVIRONMENT = {
    "POD_NAME": "pod-0",
    "POD_NAMESPACE": "team",
    "POD_UID": "u",
    "POD_IP": "10.0.0.1",
    "TUNEYARD_POOL": "pool",
    "TUNEYARD_BASE_MODEL": "base",
    "TUNEYARD_BASE_PATH": "/artifacts/models/base",
    "TUNEYARD_MAX_RANK": "16",
    "TUNEYARD_MAX_CPU_LORAS": "64",
    "TUNEYARD_DRAIN_TIMEOUT": "600",
    "TUNEYARD_ENGINE_KEY": "s3cret-of-the-engine",
}


def test_settings_come_from_the_environment_and_hide_the_key() -> None:
    settings = settings_from(ENVIRONMENT)
    assert (settings.address, settings.max_rank, settings.drain_timeout) == ("10.0.0.1:8080", 16, 600.0)
    assert settings.engine_key == ENVIRONMENT["TUNEYARD_ENGINE_KEY"]
    assert settings.engine_key not in repr(settings)
    assert settings_from({**ENVIRONMENT, "POD_IP": "fd00::1"}).address == "[fd00::1]:8080"


def test_the_pod_template_says_whether_the_front_has_a_certificate() -> None:
    assert not settings_from(ENVIRONMENT).tls
    assert settings_from(ENVIRONMENT | {"TUNEYARD_FRONT_TLS": "true"}).tls


def test_the_pod_template_says_whether_other_pods_read_the_adapters_too() -> None:
    assert not settings_from(ENVIRONMENT).shared_adapters
    assert settings_from(ENVIRONMENT | {"TUNEYARD_SHARED_ADAPTERS": "true"}).shared_adapters


def test_where_the_base_comes_from_is_read() -> None:
    source = Source(s3=S3Source(uri="s3://models/base/"))
    assert settings_from(ENVIRONMENT).base_source is None
    given = {**ENVIRONMENT, "TUNEYARD_BASE_SOURCE": json.dumps(source.to_dict())}
    assert settings_from(given).base_source == source
    with pytest.raises(SettingsError, match="TUNEYARD_BASE_SOURCE"):
        settings_from({**ENVIRONMENT, "TUNEYARD_BASE_SOURCE": "{"})


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_a_missing_setting_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings_from({**ENVIRONMENT, name: ""})


@pytest.mark.parametrize("name", ["TUNEYARD_MAX_RANK", "TUNEYARD_MAX_CPU_LORAS", "TUNEYARD_DRAIN_TIMEOUT"])
def test_a_number_that_is_none_is_named(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        settings_from({**ENVIRONMENT, name: "many"})


def test_a_plan_that_cannot_be_read_is_none() -> None:
    plan = PoolPlan(pool="p", base_model="b")
    assert read_plan({"data": {"plan.json": json.dumps(plan.to_dict())}}, "pod") == plan
    for data in (None, {}, {"plan.json": "{"}, {"plan.json": "[]"}, {"plan.json": '{"version": 2}'}):
        assert read_plan({"data": data}, "pod") is None
    for packed in ("", "AAAA", base64.b64encode(gzip.compress(b"{}")[:-4]).decode()):
        assert read_plan({"binaryData": {"plan.json.gz": packed}}, "pod") is None


def test_a_pod_gets_its_share_of_a_plan_that_is_spread() -> None:
    def entry(name: str, pods: list[str] | None) -> PlannedAdapter:
        return planned(name).model_copy(update={"pods": pods})

    entries = [entry("a", ["p1", "p2"]), entry("b", ["p2"]), entry("c", None)]
    plan = PoolPlan(pool="p", base_model="b", copies=1, pods=["p1", "p2"], adapters=entries)
    for number in (1, 2_000):
        more = [entry(f"of-others-{n}", ["p2"]) for n in range(number)]
        stored = stored_plan(plan.model_copy(update={"adapters": [*entries, *more]}))
        assert list(stored) == ["data" if number == 1 else "binaryData"]
        shares = {pod: read_plan(stored, pod) for pod in ("p1", "p3")}
        assert {p: s and [a.name for a in s.adapters] for p, s in shares.items()} == {"p1": ["a", "c"], "p3": ["c"]}
        assert {p: s and s.pods for p, s in shares.items()} == {"p1": ["p1"], "p3": []}


def state() -> State:
    return State("10.0.0.1:8080", "base", 4)


def report(engine: str) -> PodReport:
    return PodReport.from_dict({"address": "a", "engine": engine, "baseModel": "base"})


class Api:
    """Writes that wait to be let through, and fail as often as they should."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.failures = 0
        self.open = asyncio.Event()
        self.open.set()

    async def write(self, given: PodReport) -> None:
        await self.open.wait()
        if self.failures:
            self.failures -= 1
            raise ApiError(503, "ServiceUnavailable", "away")
        self.written.append(given.engine)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "_LONGEST_DELAY", 0.01)


@pytest.mark.usefixtures("quick")
async def test_only_changes_are_written_and_the_latest_wins() -> None:
    api = Api()
    told: list[Event] = []

    class Listening(Knowledge):
        def tell(self, event: Event) -> None:
            told.append(event)
            super().tell(event)

    knowledge = Listening(state())
    publisher = Publisher(knowledge, api.write, lambda: 7.0)
    task = asyncio.create_task(publisher.run())
    publisher.offer(None)
    publisher.offer(report("Starting"))
    await until(lambda: api.written == ["Starting"])
    assert told == [Published(report("Starting"), 7.0)]
    publisher.offer(report("Starting"))

    api.failures = 3
    publisher.offer(report("Ready"))
    await until(lambda: api.written == ["Starting", "Ready"])
    api.open.clear()
    publisher.offer(report("Draining"))
    await asyncio.sleep(0)
    publisher.offer(report("Starting"))
    publisher.offer(report("Ready"))
    publisher.offer(report("Draining"))
    api.open.set()
    await until(lambda: api.written[-1] == "Draining")
    assert api.written in (["Starting", "Ready", "Draining"], ["Starting", "Ready", "Draining", "Draining"])
    task.cancel()


def test_retries_are_spread_and_bounded() -> None:
    for failures in range(1, 50):
        delay = publishing._delay(failures)
        assert 0.1 <= delay <= 5.0
    assert len({publishing._delay(9) for _ in range(20)}) > 1


async def test_knowledge_wakes_who_waits() -> None:
    knowledge = Knowledge(state())
    waiting = asyncio.create_task(knowledge.until(lambda s: s.draining))
    await asyncio.sleep(0)
    assert not waiting.done()
    knowledge.tell(PlanChanged(PoolPlan(pool="p", base_model="base")))
    await asyncio.sleep(0)
    assert not waiting.done()
    knowledge.tell(DrainAsked())
    await asyncio.wait_for(waiting, 5)
    assert knowledge.changed.is_set()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1}', '{"version": 1, "prepared": 3}', "null"])
def test_a_damaged_snapshot_is_a_fresh_beginning(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.json").write_text(text)
    disk = frozenset({"a-1"})
    assert Snapshot(tmp_path / "agent.json").restore(state(), disk) == replace(state(), on_disk=disk)


def test_a_snapshot_is_private_and_written_only_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    snapshot = Snapshot(path)
    snapshot.save(state())
    assert path.stat().st_mode & 0o777 == 0o600
    first = path.stat().st_mtime_ns
    snapshot.save(replace(state(), withdrawn={"x": 1.0}))
    assert path.stat().st_mtime_ns == first
    snapshot.save(replace(state(), draining=True))
    assert Snapshot(path).restore(state(), frozenset()).draining


INFO = 'vllm:lora_requests_info{{max_lora="2",running_lora_adapters="{}",waiting_lora_adapters="{}"}} {}\n'


def test_the_latest_observation_of_the_metrics_counts() -> None:
    page = INFO.format("a,b", "", 1.0) + INFO.format("", "c", "1.79e9") + INFO.format("", "", 2.0)
    assert busy_in(page) == frozenset({"c"})
    assert busy_in(page + INFO.format("", "", "1.8e9")) == frozenset()
    assert busy_in("other 1\n") is None
    waiting = 'vllm:num_requests_waiting{engine="0",model_name="m"} 1.0\n'
    assert busy_in(page + waiting) is None
    assert busy_in(page + waiting.replace("1.0", "0.0")) == frozenset({"c"})


def test_answers_are_compared_by_text_and_by_certainty() -> None:
    answer = Answer("m", "x", ({"x": -0.5, "y": -1.0},))
    assert answer.equals(Answer("other", "x", ({"x": -0.505, "y": -1.0},)))
    assert not answer.equals(Answer("m", "x", ({"x": -0.6, "y": -1.0},)))
    assert not answer.equals(Answer("m", "x", ({"x": -0.5, "z": -1.0},)))
    assert not answer.equals(Answer("m", "y", answer.logprobs))
    assert not answer.equals(Answer("m", "x"))


def test_an_answer_is_broken_only_against_one_that_was_not() -> None:
    sound, silent = Answer("m", "", ({"": -0.5},)), Answer("m", "")
    assert silent.is_broken(sound)
    assert Answer("m", "!").is_broken(sound), "text alone is no proof"
    assert not sound.is_broken(sound)
    assert silent.is_broken(Answer("m", "word")), "an engine without log-probabilities"
    assert not Answer("m", "w").is_broken(Answer("m", "word"))
    assert not silent.is_broken(silent), "nothing is known"


async def test_an_engine_that_is_overloaded_for_a_moment_is_not_taken_for_one_that_computes_nan() -> None:
    statuses = [400, 200, 200]
    asked: list[bool] = []

    async def completions(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append("logprobs" in body)
        tops = {"top_logprobs": [{"x": -0.5}]} if "logprobs" in body else None
        answer = {"model": body["model"], "choices": [{"text": "x", "logprobs": tops}]}
        return web.json_response(answer, status=statuses.pop(0))

    app = web.Application()
    app.add_routes([web.post("/v1/completions", completions)])
    async with TestServer(app) as server, Vllm(str(server.make_url("/")), "k") as client:
        assert (await client.ask("m")).logprobs == ({"x": -0.5},)
        assert asked == [True, False, True]
        statuses[:] = [400, 200, 400]
        assert (await client.ask("m")) == Answer("m", "x")
        statuses[:] = [503]
        with pytest.raises(EngineRefusedError):
            await client.ask("m")
        assert statuses == []
