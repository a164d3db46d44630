"""A gate's process through a real gateway: what it measures, what it checks, and who else may choose a revision."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ROOT
from tests.contract.gateway_process import MASTER, GatewayProcess, Team, engine_name_of
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.api.documents import DemandReport
from tuneyard.api.gatereports import MESSAGE_BYTES, GateReport, GateRun, GateTask
from tuneyard.api.gates import JUDGE_KEY, JUDGE_URL, Gate
from tuneyard.planning.gatejudging import checks_of, sentence

pytestmark = [pytest.mark.envoy, pytest.mark.apiserver]

Json = dict[str, Any]
SPEED = {"name": "speed", "benchmark": {"requests": 20, "concurrency": 4, "max": {"ttftP95": "1.5x", "itlP95": "2x"}}}
STEPS = [{"weight": 5, "hold": "1h"}]
V1, V2 = engine_name_of("v1"), engine_name_of("v2")


@dataclass
class Pod(Upstream):
    """A pod that is slower, or fails, with some models, and grades answers where it is asked as a judge."""

    slow: dict[str, float] = field(default_factory=dict)
    """Seconds to the first token, by model."""
    failing: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    verdict: str = ""

    async def _stream(self, asked: Json, model: str, writer: asyncio.StreamWriter) -> None:
        await super()._stream({**asked, "delay": 0.002, "first": self.slow.get(model, 0)}, model, writer)

    def _refusal(self, model: str) -> bytes | None:
        if model in self.failing:
            text = b'{"error":{"message":"the engine has had enough","type":"server_error"}}'
            head = f"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
            return head.encode() + text
        if model in self.full:
            return b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"
        return super()._refusal(model)

    def _completion(self, asked: Json, model: str) -> Json:
        found = super()._completion(asked, model)
        if self.verdict:
            found["choices"][0]["message"]["content"] = self.verdict
        return found


@pytest.fixture
async def pod() -> AsyncIterator[Pod]:
    async with Pod("pod-a") as pod:
        yield pod


@pytest.fixture
def team(team: Team, pod: Pod) -> Team:
    """v2 is a candidate with gates: loaded, and allowed nothing."""
    for adapter in ("v1", "v2"):
        team.make_adapter(adapter)
    team.make_pod(pod, "v1", "v2")
    rollout = {"mode": "Progressive", "steps": STEPS, "gates": [SPEED]}
    team.make_deployment("support", {"v1": 0, "v2": 100}, rollout=rollout)
    team.rollout("support", stable="v1", phase="Gating")
    return team


@pytest.fixture
async def gateway(gateway: GatewayProcess, team: Team) -> GatewayProcess:
    await gateway.applies(f"{team.namespace}/support", {"v1": 100, "v2": 0})
    return gateway


def token(team: Team) -> str:
    return names.gate_token(MASTER, team.namespace, "support")


async def run(
    folder: Path, url: str, token: str, gate: Json, candidate: str = "v2", *, job: str = "", **files: str
) -> tuple[GateReport, str]:
    """What a gate's pod leaves behind, and its log; `files`: prompts, judge_key, judge_url."""
    task = GateTask(gateway=url, model="support", job=job, candidate=candidate, stable="v1", gate=gate)
    places = {"prompts": "prompts/prompts.jsonl", "judge_key": f"judge/{JUDGE_KEY}", "judge_url": f"judge/{JUDGE_URL}"}
    wanted = {places[name]: text for name, text in files.items()}
    for path, text in {**wanted, "task/gate.json": json.dumps(task.to_dict()), "token/token": token}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    report = folder / "report"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tuneyard", "gate", "--folder", str(folder), "--report", str(report),
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert len(report.read_bytes()) <= MESSAGE_BYTES
    return GateReport.model_validate_json(report.read_text()), said.decode()


async def test_both_revisions_are_measured_though_one_has_no_weight(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    pod.slow = {V1: 0.02, V2: 0.1}
    report, log = await run(tmp_path / "gate", gateway.url, token(team), SPEED)
    assert report.benchmark
    candidate, stable = report.benchmark.candidate, report.benchmark.stable
    assert (candidate.requests, candidate.errors, stable.requests, stable.errors) == (20, 0, 20, 0)
    assert candidate.ttft and stable.ttft and candidate.itl
    assert 100 <= candidate.ttft.p50 < 1000
    assert 20 <= stable.ttft.p50 < candidate.ttft.p50
    assert sum(candidate.ttft.histogram.counts) == 20
    assert pod.asked == {V1: 24, V2: 24}, "with one warm-up of each worker"
    order = [r.json["model"] for r in pod.received]
    assert {V1, V2} == set(order[:8])
    prompts = [r.json["prompt"] for r in pod.received]
    assert all(prompts.count(p) == 2 for p in prompts), "each prompt once to either"
    error, ttft, _ = checks_of(Gate.from_dict(SPEED), report)
    assert (error.passed, ttft.passed) == (True, False)
    assert sentence(Gate.from_dict(SPEED), (ttft,)).startswith("gate speed: ttftP95 ")
    for request in pod.received:
        assert names.GATE_TOKEN_HEADER not in request.headers
        assert names.REVISION_HEADER not in request.headers
    assert token(team) not in log
    assert token(team) not in gateway.log.read_text()
    assert all(token(team) not in p.read_text(errors="replace") for p in gateway.folder.glob("*.log"))


async def test_gateways_tell_how_far_a_gate_is_while_it_runs(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    name = f"{team.namespace}/support"

    def told(report: DemandReport) -> GateRun | None:
        found = report.deployments.get(name)
        return found.gate if found else None

    def between(job: str, low: int, high: int) -> Callable[[DemandReport], bool]:
        def holds(report: DemandReport) -> bool:
            run = told(report)
            return run is not None and run.job == job and low <= run.done <= high

        return holds

    pod.slow = {V1: 1.0, V2: 1.0}  # Envoy tells once a second: several times while it runs
    running = asyncio.create_task(run(tmp_path / "a", gateway.url, token(team), SPEED, job="support-gate-a"))
    seen = await gateway.demands(between("support-gate-a", 1, 15), "it is told while it runs")
    assert not running.done()
    assert (told(seen) or GateRun(job="", done=0, total=0)).total == 20
    await running
    pod.slow = {}
    # of the pairs that are last nobody is told that they are over: then there is a report
    await gateway.demands(between("support-gate-a", 16, 19), "to its last requests")
    shown = {names.GATE_RUN_HEADER: "support-gate-a 20/20"}
    assert (await gateway.rig.post({"model": "support"}, headers=shown))[0] == 200
    # one after the other: what is told of the next gate came after what the stranger said
    await run(tmp_path / "b", gateway.url, token(team), QUALITY, job="support-gate-b", prompts=lines(*PROMPTS))
    await gateway.demands(between("support-gate-b", 0, 4), "the next one")
    # the log that the gateway's own process reads has to tell it, and is for nobody else
    for_people = (p for p in gateway.folder.rglob("*.log") if p.name != "requests.log")
    assert "support-gate" not in "".join(p.read_text(errors="replace") for p in for_people)


async def test_without_the_token_nobody_gets_in(gateway: GatewayProcess, team: Team, pod: Pod) -> None:
    async def answered(**headers: str) -> tuple[str, str]:
        shown = {k.replace("_", "-"): v for k, v in headers.items()}
        status, told, body = await gateway.rig.post({"model": "support"}, headers=shown)
        assert status == 200
        return json.loads(body)["model"], told[names.REVISION_HEADER]

    assert await answered(x_revision="v2", tuneyard_gate=token(team)) == (V2, "v2")
    other = names.gate_token(MASTER, team.namespace, "another")
    for shown in ({}, {"tuneyard_gate": ""}, {"tuneyard_gate": "open"}, {"tuneyard_gate": other}):
        assert await answered(x_revision="v2", **shown) == (V1, "v1"), shown
    for shown in ({}, {names.REVISION_HEADER: "v9"}):
        headers = {names.GATE_TOKEN_HEADER: token(team), **shown}
        status, _, body = await gateway.rig.post({"model": "support"}, headers=headers)
        assert (status, json.loads(body)["error"]["code"]) == (404, "revision_not_found"), (
            "it is no way to anything else"
        )


async def test_stable_is_never_measured_as_its_own_candidate(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    """A gateway that does not know the token ignores the header, and stable answers."""
    words = "a gateway sent a request for v2 to v1: it does not know this gate (yet)"
    for name, gate in (("a", SPEED), ("b", QUALITY)):
        report, _ = await run(tmp_path / name, gateway.url, "another token", gate, prompts=lines(PROMPTS[0]))
        assert (report.benchmark, report.evaluation, report.cannot_run) == (None, None, words)


async def test_a_revision_that_a_gateway_does_not_know_yet_is_not_measured(
    gateway: GatewayProcess, team: Team, tmp_path: Path
) -> None:
    words = "a gateway refused a request for v3 with 404: it does not know this gate or this revision (yet)"
    for name, gate in (("a", SPEED), ("b", QUALITY)):
        report, _ = await run(
            tmp_path / name, gateway.url, token(team), gate, candidate="v3", prompts=lines(PROMPTS[0])
        )
        assert (report.benchmark, report.evaluation, report.cannot_run) == (None, None, words)


async def test_a_candidate_whose_requests_fail_does_not_pass(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    pod.failing = {V2}
    report, _ = await run(tmp_path / "gate", gateway.url, token(team), SPEED)
    assert report.benchmark
    assert (report.benchmark.candidate.errors, report.benchmark.stable.errors) == (20, 0)
    assert "the engine has had enough" in report.samples[0].answer


async def test_what_no_pod_could_take_is_nothing_against_the_candidate(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    pod.full = {V2}
    report, _ = await run(tmp_path / "a", gateway.url, token(team), SPEED)
    assert report.cannot_run == "no pod took 20 of the requests to v2 (status 503: )"
    report, _ = await run(tmp_path / "b", gateway.url, token(team), QUALITY, prompts=lines(PROMPTS[0]))
    assert report.cannot_run == "no pod of v2 answers (status 503: )"


async def test_a_gateway_that_does_not_answer_is_nothing_against_the_candidate(tmp_path: Path) -> None:
    report, _ = await run(tmp_path / "gate", "http://127.0.0.1:9", "t", SPEED)
    assert report.benchmark is None
    assert report.cannot_run == "the gateway does not answer (no connection: ClientConnectorError)"


PROMPTS: list[Json] = [
    {"prompt": "count", "check": {"exact": "0 1 2 3"}},
    {"prompt": "count", "check": {"exact": ["no", "neither"]}},
    {"messages": [{"role": "user", "content": "count"}], "check": {"regex": r"\b2\b"}},
    {"messages": [{"role": "user", "content": "count"}], "check": {"similarity": "0 1 2 4"}},
    {"prompt": "count", "check": {"jsonSchema": {"type": "object"}}},
]
QUALITY = {"name": "quality", "evaluation": {"prompts": {"configMap": "evals"}, "min": {"exactMatch": 0.8}}}


def lines(*prompts: Json) -> str:
    return "\n".join(json.dumps(p) for p in prompts)


async def test_an_evaluation_checks_what_the_candidate_answers(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    report, _ = await run(tmp_path / "gate", gateway.url, token(team), QUALITY, prompts=lines(*PROMPTS))
    assert report.evaluation and report.evaluation.to_dict() == {
        "prompts": 5,
        "promptsDigest": f"sha256:{hashlib.sha256(lines(*PROMPTS).encode()).hexdigest()}",
        "scores": {"exactMatch": 0.5, "regex": 1.0, "similarity": 0.75, "jsonSchema": 0.0},
        "counts": {"exactMatch": 2, "regex": 1, "similarity": 1, "jsonSchema": 1},
    }
    assert set(pod.asked) == {V2}
    assert {r.path for r in pod.received} == {"/v1/completions", "/v1/chat/completions"}
    assert [s.score for s in report.samples] == sorted(s.score or 0 for s in report.samples), "the worst first"
    (check,) = checks_of(Gate.from_dict(QUALITY), report)
    assert not check.passed


async def test_an_answer_that_does_not_come_counts_where_stable_gives_one(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    pod.failing = {V2}
    report, _ = await run(tmp_path / "a", gateway.url, token(team), QUALITY, prompts=lines(PROMPTS[0]))
    assert report.evaluation and report.evaluation.scores == {"exactMatch": 0}
    pod.failing = {V1, V2}
    report, _ = await run(tmp_path / "b", gateway.url, token(team), QUALITY, prompts=lines(PROMPTS[0]))
    assert report.evaluation is None
    assert report.cannot_run == "neither v2 nor v1 answers (status 500: the engine has had enough)"


async def test_stable_is_evaluated_alone_and_an_answer_that_does_not_come_says_nothing(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    report, _ = await run(tmp_path / "a", gateway.url, token(team), QUALITY, "v1", prompts=lines(*PROMPTS))
    assert report.evaluation and report.evaluation.counts == {
        "exactMatch": 2, "regex": 1, "similarity": 1, "jsonSchema": 1,
    }  # fmt: skip
    assert set(pod.asked) == {V1}
    pod.failing = {V1}
    report, _ = await run(tmp_path / "b", gateway.url, token(team), QUALITY, "v1", prompts=lines(PROMPTS[0]))
    assert report.evaluation is None
    assert report.cannot_run == "v1 does not answer a prompt (status 500: the engine has had enough)"


async def test_a_judge_grades_and_one_that_is_away_holds(
    gateway: GatewayProcess, team: Team, pod: Pod, tmp_path: Path
) -> None:
    async with Pod("judge", verdict='Sure: {"score": 0.75}') as judge:
        url = f"http://{judge.address}/v1"
        given = {"url": url, "model": "judge", "secret": "judge"}
        gate: Json = {
            "name": "graded",
            "evaluation": {"prompts": {"configMap": "evals"}, "min": {"judge": 0.5}, "judge": given},
        }
        asked = lines({"prompt": "count", "check": {"judge": "counts to three"}})
        report, log = await run(
            tmp_path / "a", gateway.url, token(team), gate, prompts=asked, judge_key="sk-of-the-judge"
        )
        assert report.evaluation and report.evaluation.scores == {"judge": 0.75}
        (received,) = judge.received
        assert received.headers["authorization"] == "Bearer sk-of-the-judge"
        assert "0 1 2 3" in received.json["messages"][1]["content"]
        assert names.GATE_TOKEN_HEADER not in received.headers
        assert "sk-of-the-judge" not in log
        elsewhere = "https://api.example.com/v1"
        report, _ = await run(
            tmp_path / "b", gateway.url, token(team), gate, prompts=asked, judge_key="sk-x", judge_url=elsewhere
        )
        assert report.cannot_run == (f"Secret judge allows its key to be sent to {elsewhere} only, and not to {url}")
        judge.verdict = "a fine answer"
        report, _ = await run(tmp_path / "c", gateway.url, token(team), gate, prompts=asked, judge_key="sk-x")
        assert report.cannot_run == 'the judge judge gives no grade: it did not reply with {"score": 0 to 1}'
    report, _ = await run(tmp_path / "d", gateway.url, token(team), gate, prompts=asked)
    assert report.cannot_run == f"Secret judge does not exist or has no key {JUDGE_KEY}"


async def test_prompts_that_are_missing_or_wrong_are_told_with_their_line(tmp_path: Path) -> None:
    report, _ = await run(tmp_path / "a", "http://127.0.0.1:9", "t", QUALITY)
    assert (
        report.cannot_run == "ConfigMap evals, key prompts.jsonl does not exist: create it, with a JSON object a line"
    )
    wrong = lines(PROMPTS[0], {"prompt": "x", "check": {"regex": "("}})
    report, _ = await run(tmp_path / "b", "http://127.0.0.1:9", "t", QUALITY, prompts=wrong)
    assert report.cannot_run and report.cannot_run.startswith(
        "ConfigMap evals, key prompts.jsonl: line 2: regex '(' cannot be read"
    )
