"""The demo's story: each step does what a person would do with kubectl, and measures what a user would notice.

Figures are seconds on this machine's clock, taken from the moment the change was sent to the first request that shows
it; counts are of requests that clients made through the gateway.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import APIStatusError, OpenAI

from demo.kubectl import ready
from demo.progress import say, working
from demo.system import MODELS_NAMESPACE, ROOT, System

QUICKSTART = ROOT / "examples" / "quickstart"
TENSOR_PARALLEL = ROOT / "examples" / "tensor-parallel"
MODEL = "acme-support"
QUESTION = "How do I reset my password?"
COUNTED_REQUESTS = 400
STREAMING_CLIENTS = 2


@dataclass
class Clients:
    """Users of the gateway: every answer and failure is counted, whichever step caused it."""

    url: str
    requests: int = 0
    failed: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def _client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="not-needed", max_retries=0, timeout=120)

    def ask(self, model: str, question: str, tokens: int, revision: str | None = None) -> tuple[str, str]:
        """One answer; returns (text, revision that answered). A failure is counted and raised."""
        headers = {"x-revision": revision} if revision else {}
        with self._lock:
            self.requests += 1
        try:
            raw = self._client().chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=tokens,
                temperature=0,
                extra_headers=headers,
            )
        except Exception as error:
            with self._lock:
                self.failed.append(f"{type(error).__name__}: {error}")
            raise
        return str(raw.parse().choices[0].message.content), str(raw.headers.get("x-revision"))

    def stream_until(self, done: threading.Event, model: str) -> None:
        """Stream answers one after another; a stream that fails or ends early is counted as failed."""
        client = self._client()
        while not done.is_set():
            with self._lock:
                self.requests += 1
            try:
                finish = None
                for chunk in client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": "Tell me about your help page."}],
                    max_tokens=32,
                    stream=True,
                ):
                    if chunk.choices:
                        finish = chunk.choices[0].finish_reason or finish
                problem = None if finish else "stream ended without a finish_reason"
            except Exception as error:  # noqa: BLE001 - whatever goes wrong is what a user would have seen
                problem = f"{type(error).__name__}: {error}"
            if problem:
                with self._lock:
                    self.failed.append(problem)

    def split(self, model: str, count: int, workers: int = 4) -> Counter[str]:
        """Which revision answered, over `count` one-token requests."""
        with ThreadPoolExecutor(max_workers=workers) as pool:
            return Counter(pool.map(lambda i: self.ask(model, f"Question {i}?", 1)[1], range(count)))


@dataclass
class Report:
    """What happened, for the table at the end and build/demo/report.json."""

    steps: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def step(self, name: str, result: str) -> None:
        """Tell and keep the result of one step."""
        say(f"    {result}")
        self.steps.append({"step": name, "result": result})


class Story:
    """The steps, in the order in which the demo tells them."""

    def __init__(self, system: System, clients: Clients, report: Report) -> None:
        self.system = system
        self.clients = clients
        self.report = report

    def _apply(self, path: Path) -> None:
        say(f"    $ kubectl apply -n {MODELS_NAMESPACE} -f {path.relative_to(ROOT)}")
        self.system.kubectl.apply(path, MODELS_NAMESPACE)

    def _ready(self, kind: str, name: str, timeout: float = 600) -> dict[str, Any]:
        return self.system.kubectl.wait_for(kind, name, ready, namespace=MODELS_NAMESPACE, timeout=timeout)

    def first_answers(self) -> None:
        """Base and two adapters on two pods, and the same question to each."""
        started = time.monotonic()
        with working("one base model on two pods, two adapters (vLLM on the CPU takes a minute or two)"):
            for name in ("base.yaml", "adapters.yaml", "deployment-90-10.yaml"):
                self._apply(QUICKSTART / name)
            self._ready("mdep", MODEL, 900)
        self.report.figures["first_ready_seconds"] = round(time.monotonic() - started, 1)
        say(f"    {QUESTION}")
        for revision in ("base", "v1", "v2"):
            answer, by = self.clients.ask(MODEL, QUESTION, 40, revision=revision)
            self.report.step("answers", f"{by:>5}: {' '.join(answer.split())}")

    def weights(self) -> None:
        """90/10 counted while others stream; then 50/50, timed until both gateways serve it."""
        with working(f"90/10, counted over {COUNTED_REQUESTS} requests while {STREAMING_CLIENTS} clients stream"):
            counted = self.clients.split(MODEL, COUNTED_REQUESTS)
        share = 100 * counted["v2"] / COUNTED_REQUESTS
        self.report.step("90/10", f"v1 {counted['v1']}, v2 {counted['v2']} of {COUNTED_REQUESTS}: v2 got {share:.1f} %")
        with working("50/50 by kubectl apply"):
            seconds = self._timed_change(QUICKSTART / "deployment-50-50.yaml", {"v1": 50, "v2": 50})
        self.report.figures["weight_change_seconds"] = seconds
        self.report.step("50/50", f"every gateway serves 50/50 {seconds:.2f} s after kubectl apply began")

    def _timed_change(self, path: Path, weights: dict[str, int]) -> float:
        """Seconds from kubectl apply until every gateway has confirmed these weights."""

        def applied(obj: dict[str, Any]) -> bool:
            rows = {t["revision"]: t for t in (obj.get("status") or {}).get("traffic", [])}
            return all(
                rows.get(name, {}).get("weight") == weight and rows[name].get("verified")
                for name, weight in weights.items()
            )

        started = time.monotonic()
        self._apply(path)
        self.system.kubectl.wait_for("mdep", MODEL, applied, namespace=MODELS_NAMESPACE, timeout=60, poll=0.02)
        return round(time.monotonic() - started, 3)

    def hot_load(self) -> None:
        """A third adapter into the running pods: from apply to its first token through the gateway."""
        with working("a third adapter, into the pods that run"):
            restarts = self._restarts()
            started = time.monotonic()
            self._apply(QUICKSTART / "deployment-v3.yaml")
            answer = self._until_answered("v3")
            seconds = round(time.monotonic() - started, 2)
        self.report.figures["hot_load_seconds"] = seconds
        self.report.step("v3", f"first answer {seconds:.2f} s after kubectl apply began: {' '.join(answer.split())}")
        self.report.step("v3", f"pods restarted for it: {self._restarts() - restarts}")

    def _until_answered(self, revision: str) -> str:
        """Ask until that revision answers; being told that it is not there yet is no failure of the system."""
        deadline = time.monotonic() + 60
        client = OpenAI(base_url=f"{self.clients.url}/v1", api_key="not-needed", max_retries=0)
        while True:
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model=MODEL,
                    messages=[{"role": "user", "content": QUESTION}],
                    max_tokens=40,
                    temperature=0,
                    extra_headers={"x-revision": revision},
                )
                return str(raw.parse().choices[0].message.content)
            except APIStatusError as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{revision} did not answer: {error}") from error
                time.sleep(0.02)

    def _restarts(self) -> int:
        pods = self.system.kubectl.items("pods", MODELS_NAMESPACE, "app.kubernetes.io/component=pool")
        statuses = [s for p in pods for s in p["status"].get("containerStatuses", [])]
        return sum(int(s["restartCount"]) for s in statuses)

    def rollback(self) -> None:
        """All traffic back to v1 while clients stream; timed until the last request that another revision answered."""
        with working("rollback to v1 while clients stream"):
            seconds = self._timed_change(QUICKSTART / "deployment-rollback.yaml", {"v1": 100})
            counted = self.clients.split(MODEL, 60)
        self.report.figures["rollback_seconds"] = seconds
        self.report.step("rollback", f"{seconds:.2f} s until every gateway sends all to v1; then {dict(counted)}")

    def tensor_parallel(self) -> None:
        """A second base over two pretended GPUs, with an adapter of its own; removed again afterwards."""
        with working("tensor parallelism: one replica over two (pretended) GPUs"):
            self._apply(TENSOR_PARALLEL)
            self._ready("mdep", "tiny", 900)
            self.clients.ask("tiny", "hello", 4)
            pods = self.system.kubectl.items("pods", MODELS_NAMESPACE, "tuneyard.dev/base-model=tiny-llama")
            engine = next(c for c in pods[0]["spec"]["containers"] if c["name"] == "engine")
            gpus = engine["resources"]["limits"]["nvidia.com/gpu"]
        self.report.step(
            "tensor parallel", f"answered by an engine over {gpus} GPUs (pretended: it computes on the CPU)"
        )
        # Engines over several workers spin on all cores, so a small machine is not left with one.
        self.system.kubectl("-n", MODELS_NAMESPACE, "delete", "mdep", "tiny")
        for kind, name in (("lora", "tiny-a"), ("lora", "tiny-b"), ("bmodel", "tiny-llama")):
            self.system.kubectl.delete_unused(kind, name, MODELS_NAMESPACE)

    def tell(self) -> None:
        """All steps; clients stream during those that change traffic."""
        self.first_answers()
        done = threading.Event()
        streams = [
            threading.Thread(target=self.clients.stream_until, args=(done, MODEL), daemon=True)
            for _ in range(STREAMING_CLIENTS)
        ]
        for thread in streams:
            thread.start()
        try:
            steps: list[Callable[[], None]] = [self.weights, self.hot_load, self.rollback]
            for step in steps:
                step()
        finally:
            done.set()
            for thread in streams:
                thread.join(timeout=120)
        self.tensor_parallel()
