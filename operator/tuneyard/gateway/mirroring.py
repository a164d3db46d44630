"""Shadow traffic at one gateway: copies of requests go to the mirrored revision, both answers are compared and dropped.

Rules:
- Envoy's script hands over a copy with the answer that the user got, once that is through; it does not wait;
- at most `maxConcurrent` copies of a deployment and IN_ALL of all are under way; one more is left out and counted as
  `busy`. Nothing queues: a queue would make late copies, and memory;
- a copy that gets no whole answer in time says nothing of the mirrored revision where the user's own answer took more
  than half of that time: it is `too-slow`, and no pair;
- copies end when the mirror goes off: their pods are leaving, or somebody said stop;
- texts are read in a thread, so that routes are pushed meanwhile, and live no longer than the comparison;
- who has no mirror any more has no series any more.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tuneyard.api import names
from tuneyard.api.mirror import MirrorAnswer, MirrorPair, MirrorReport, MirrorTotals
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.gateway.mirrormetrics import MirrorMetrics
from tuneyard.gateway.shadow import DEADLINE, Question
from tuneyard.planning.mirrored import Answer, Came, Comparison, Outcome, compare, read_answer
from tuneyard.planning.routes import ModelRoutes
from tuneyard.planning.systemprompt import RefusedError, with_system_prompt
from tuneyard.planning.timestamps import rfc3339

IN_ALL = 64
RECENT = 20
"""Pairs that are told of one mirror."""
_LONG_MS = DEADLINE / 2 * 1000
"""A request whose own answer took longer may well take its copy longer than a copy may take."""

Labels = tuple[str, str, str]
"""Namespace, deployment, mirrored revision."""


@dataclass(frozen=True)
class Copy:
    """A request as its client has sent it, and what was answered."""

    model: str
    revision: str
    """Whom it is for."""
    against: str
    """Who answers the user."""
    request_id: str
    path: str
    first: int
    last: int
    """Where the model's name stands in the body: 1-based, both ends included."""
    body: bytes
    user: Came

    def __repr__(self) -> str:
        return f"Copy(of {self.request_id} for {self.model})"


@dataclass(eq=False)
class _Mirror:
    """What is known of one model's mirror."""

    labels: Labels
    copies: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    recent: deque[MirrorPair] = field(default_factory=lambda: deque(maxlen=RECENT))
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    turn: int = 0
    """Whose turn among the pods it is."""


class Mirroring:
    """The mirrors of one gateway."""

    def __init__(
        self,
        name: str,
        routes: Callable[[str], ModelRoutes | None],
        key: Callable[[str, str], str],
        ask: Callable[[Question], Awaitable[Came | Outcome | None]],
        metrics: MirrorMetrics,
    ) -> None:
        """`name`: the gateway's; `routes`: those of a model; `key`: the engine key of (namespace, pool)."""
        self._name = name
        self._routes = routes
        self._key = key
        self._ask = ask
        self._metrics = metrics
        self._secret = secrets.token_bytes(32)
        self._mirrors: dict[str, _Mirror] = {}
        """By model."""

    # -- what Envoy tells ----------------------------------------------------------------------------------------

    def changed(self, model: str) -> None:
        """The model's routes may be others."""
        routes, known = self._routes(model), self._mirrors.get(model)
        labels = _labels(routes)
        if known is not None and (routes is None or routes.mirror is None or not routes.mirror.active):
            self._withdraw(known)
        if known is not None and known.labels != labels:
            self._withdraw(known)
            self._metrics.forget(known.labels)
            del self._mirrors[model]
        if labels is not None and model not in self._mirrors:
            self._mirrors[model] = _Mirror(labels)

    def skipped(self, model: str, why: str) -> None:
        """A request was not copied."""
        mirror = self._mirrors.get(model)
        if mirror is not None:
            self._count(mirror, why)

    def copy(self, copy: Copy) -> bool:
        """Send a copy on its way; returns whether it is on it."""
        routes, mirror = self._routes(copy.model), self._mirrors.get(copy.model)
        if routes is None or mirror is None or routes.mirror is None:
            return False
        question = self._question(copy, routes, mirror)
        if question is None:
            self._count(mirror, "gone")
            return False
        if len(mirror.tasks) >= routes.mirror.max_concurrent or self._under_way >= IN_ALL:
            self._count(mirror, "busy")
            return False
        prompt = next(r.prompt for r in routes.revisions if r.name == copy.revision)
        task = asyncio.create_task(self._shadow(copy, question, prompt, mirror))
        mirror.tasks.add(task)
        self._tell_under_way(mirror)
        task.add_done_callback(lambda done: self._ended(mirror, done))
        return True

    # -- to pods -------------------------------------------------------------------------------------------------

    @property
    def _under_way(self) -> int:
        return sum(len(m.tasks) for m in self._mirrors.values())

    def _question(self, copy: Copy, routes: ModelRoutes, mirror: _Mirror) -> Question | None:
        """What to ask whom, but for a system prompt; None where nobody may be asked any more."""
        revision = next((r for r in routes.revisions if r.name == copy.revision), None)
        if routes.mirror is None or not routes.mirror.active or routes.mirror.revision != copy.revision:
            return None
        if revision is None or revision.engine_name is None or not revision.endpoints:
            return None
        mirror.turn += 1
        endpoint = revision.endpoints[mirror.turn % len(revision.endpoints)]
        body = copy.body[: copy.first - 1] + revision.engine_name.encode() + copy.body[copy.last :]
        return Question(
            secrets.token_hex(8),
            endpoint.address,
            copy.path,
            self._key(routes.namespace, revision.pool),
            body,
            names.pod_server_name(routes.namespace, revision.pool) if endpoint.tls else "",
        )

    async def _shadow(self, copy: Copy, question: Question, prompt: SystemPrompt | None, mirror: _Mirror) -> None:
        if prompt is not None:
            try:
                body = await asyncio.to_thread(with_system_prompt, question.body, question.path, prompt)
            except RefusedError:
                self._count(mirror, "refused")
                return
            question = replace(question, body=body)
        came = await self._ask(question)
        if came is None:
            self._count(mirror, "withdrawn")
            return
        if came == "timeout" and (copy.user.whole_ms or 0) > _LONG_MS:
            self._count(mirror, "too-slow")
            return
        user, mirrored, found = await asyncio.to_thread(self._compared, copy.user, came)
        self._count(mirror, mirrored.outcome)
        mirror.pairs += 1
        mirror.recent.append(_told(copy, user, mirrored, found))
        self._measure(mirror.labels, {"user": user, "mirrored": mirrored}, found)

    def _compared(self, came: Came, copys: Came | Outcome) -> tuple[Answer, Answer, Comparison]:
        """Both answers and what they have in common; in a thread."""
        user = read_answer(came, self._secret)
        mirrored = read_answer(copys, self._secret) if isinstance(copys, Came) else Answer(copys)
        return user, mirrored, compare(user, mirrored)

    def _ended(self, mirror: _Mirror, task: asyncio.Task[None]) -> None:
        mirror.tasks.discard(task)
        if mirror in self._mirrors.values():
            self._tell_under_way(mirror)
        if not task.cancelled():
            task.result()

    def _withdraw(self, mirror: _Mirror) -> None:
        """End the copies that are under way."""
        for task in list(mirror.tasks):
            task.cancel()
            self._count(mirror, "withdrawn")
        mirror.tasks.clear()

    async def stop(self) -> None:
        """End all copies."""
        tasks = [task for mirror in self._mirrors.values() for task in mirror.tasks]
        for mirror in self._mirrors.values():
            self._withdraw(mirror)
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what is told -----------------------------------------------------------------------------------------------

    def _measure(self, labels: Labels, answers: dict[str, Answer], found: Comparison) -> None:
        self._metrics.pairs.labels(*labels).inc()
        for who, answer in answers.items():
            # both at 0 from the first pair on, so that their rates can be divided
            self._metrics.errors.labels(*labels, who).inc(answer.failed)
            self._metrics.refusals.labels(*labels, who).inc(answer.refuses)
            if answer.outcome == "answered":
                for histogram, value in (
                    (self._metrics.first, answer.first_ms),
                    (self._metrics.whole, answer.whole_ms),
                ):
                    if value is not None:
                        histogram.labels(*labels, who).observe(value / 1000)
        if found.similarity is not None and found.length_ratio is not None:
            self._metrics.similarity.labels(*labels).observe(found.similarity)
            self._metrics.length.labels(*labels).observe(found.length_ratio)

    def _count(self, mirror: _Mirror, outcome: str) -> None:
        mirror.copies[outcome] += 1
        self._metrics.copies.labels(*mirror.labels, outcome).inc()

    def _tell_under_way(self, mirror: _Mirror) -> None:
        self._metrics.under_way.labels(*mirror.labels).set(len(mirror.tasks))

    def report(self) -> MirrorReport:
        """What has been seen of every mirror."""
        told = {}
        for model, mirror in self._mirrors.items():
            routes = self._routes(model)
            percent = routes.mirror.percent if routes and routes.mirror and routes.mirror.active else 0
            namespace, deployment, revision = mirror.labels
            told[f"{namespace}/{deployment}"] = MirrorTotals(
                revision=revision,
                percent=percent,
                copies=dict(mirror.copies),
                pairs=mirror.pairs,
                recent=list(mirror.recent),
            )
        return MirrorReport(gateway=self._name, mirrors=told)

    async def report_after(self, _version: int, _within: float) -> MirrorReport:
        """The same at once: it has no versions."""
        return self.report()


def _labels(routes: ModelRoutes | None) -> Labels | None:
    if routes is None or routes.mirror is None:
        return None
    return routes.namespace, routes.deployment, routes.mirror.revision


def _answer(answer: Answer) -> MirrorAnswer:
    return MirrorAnswer(
        outcome=answer.outcome,
        status=answer.status,
        characters=answer.characters if answer.text is not None else None,
        refuses=answer.refuses,
        first_ms=_rounded(answer.first_ms, 1),
        whole_ms=_rounded(answer.whole_ms, 1),
        digest=answer.digest,
    )


def _told(copy: Copy, user: Answer, mirrored: Answer, found: Comparison) -> MirrorPair:
    return MirrorPair(
        at=rfc3339(datetime.now(UTC)),
        request_id=copy.request_id,
        against=copy.against,
        user=_answer(user),
        mirrored=_answer(mirrored),
        similarity=_rounded(found.similarity, 3),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
