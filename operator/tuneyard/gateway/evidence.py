"""What this gateway has seen of answers: how many of each revision were judged by each objective, and how many bad.

What is counted as what (of the named objectives those that are not in the spec are not looked at):

| what became of the request | errorRate | ttft, itl | e2e | clientErrors | clientsLeft |
|---|---|---|---|---|---|
| status below 400, whole | good | as they were | as it was | good | good |
| status 500 and above from a pod | bad | | | | |
| no pod could be reached, or closed before it answered, on every try | bad | | | | |
| broken off after the headers, an error told in the stream, silent for the idle timeout | bad | as they were | | | |
| status 400 to 499 from a pod, or by what the revision's system prompt refuses | | | | bad | good |
| the client left | | as they were | bad if it was over already | good | bad |
| the gateway's own refusals: unknown model, limits, memory, a share that nobody serves, held in vain | | | | | |
| the client chose the revision by header | | | | | |
| any, of a request that began before the weights or the contents in force | | | | | |
| any, also rated later, of other contents than the revision has now | | | | | |

- ttft and itl are those of streams, judged as soon as they are known, however the stream ends. One whose client left
  without a token, after more than `ttft`, is known to be too slow as well; one whose client left earlier tells nothing;
- answers that waited until an adapter was loaded are judged by errorRate and clientErrors only: how often that happens
  follows from how much a revision is asked, and a candidate at 1 % is asked least;
- errors are neither refusals nor patience lost, and stay out of clientErrors and clientsLeft: beside a stable revision
  that is down, a candidate that has its usual share of them would look worse;
- `unjudged` counts all of the table's first six rows, as bad those that no named objective judged: an answer that is
  judged by feedback only is not one of them, since it may be rated;
- requests that name their revision are no random sample, and none of them is judged;
- the length of the prompt is a quarter of the request's bytes, for good and bad answers alike;
- answers follow each other as they ended: with several workers of Envoy, to a tenth of a second.

Rules:
- feedback is judged when it is given, by its score (feedback.py);
- errors end sooner than good answers. Just after a change of weights a revision that gets more requests than before has
  ended errors only, while one that had them all along has both. So what began before the last change (and SETTLING
  seconds after it) is not counted, for no revision: then both are equally young, and nothing is lopsided. Feedback says
  what an answer was worth and not how soon it ended, and counts all the same;
- counters are of the deployment's uid and objectives: where either is another one, they begin anew;
- a revision's name may come to stand for other contents (routes.contents). Its counters go on then, since nothing is
  ever taken back; the report says of which contents they are, and who reads it knows where those began;
- what is not routed any more is forgotten, and its late answers are not counted;
- nothing is ever subtracted, and a report is of one moment;
- there is a new version with the first answer after a second without one: once a second at most.
All methods belong to the event loop's thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tuneyard.api.analysis import Slo, milliseconds
from tuneyard.api.documents import DeploymentEvidence, EvidenceReport
from tuneyard.gateway.versions import Version
from tuneyard.planning.evidence import Objective, prompt_bucket
from tuneyard.planning.routes import ModelRoutes
from tuneyard.systems.envoy.answers import Answer, Outcome

INTERVAL = 1.0
"""Seconds between two versions, at least."""

SETTLING = 0.3
"""Seconds until all of Envoy's workers serve by other weights."""

Judgement = tuple[Objective, bool]
"""By what an answer was judged, and whether it was bad."""


@dataclass(frozen=True)
class Limits:
    """What a good answer is, in milliseconds; None: not looked at."""

    errors: bool
    ttft: int | None
    itl: int | None
    e2e: int | None
    feedback: bool = False

    @classmethod
    def of(cls, slo: Slo) -> Limits:
        """The limits that objectives name."""

        def limit(text: str | None) -> int | None:
            return None if text is None else milliseconds(text)

        return cls(slo.error_rate is not None, limit(slo.ttft), limit(slo.itl), limit(slo.e2e), bool(slo.feedback))


def judge(answer: Answer, limits: Limits) -> list[Judgement]:
    """What the table above says of an answer, by the objectives that are named."""
    if answer.chosen or answer.outcome in (Outcome.REFUSED, Outcome.CLIENT_ERROR):
        return []
    left = answer.outcome is Outcome.CLIENT_LEFT
    found: list[Judgement] = []
    if limits.errors and not left:
        found.append((Objective.ERROR_RATE, answer.outcome is Outcome.ERROR))
    if answer.held:
        return found
    if limits.ttft is not None and answer.streamed:
        if answer.ttft is not None:
            found.append((Objective.TTFT, answer.ttft > limits.ttft))
        elif left and answer.took > limits.ttft:
            found.append((Objective.TTFT, True))
    if limits.itl is not None and answer.streamed and answer.itl is not None:
        found.append((Objective.ITL, answer.itl > limits.itl))
    if limits.e2e is not None:
        over = answer.took > limits.e2e
        if answer.outcome is Outcome.OK or (left and over):
            found.append((Objective.E2E, over))
    return found


def judge_unnamed(answer: Answer, limits: Limits, named: Sequence[Judgement]) -> list[Judgement]:
    """The same by what nobody names; `named`: what `judge` said of the answer."""
    outcome = answer.outcome
    if answer.chosen or outcome is Outcome.REFUSED:
        return []
    found = [(Objective.UNJUDGED, not named and not (limits.feedback and outcome is Outcome.OK))]
    if outcome is Outcome.ERROR:
        return found
    found.append((Objective.CLIENT_ERRORS, outcome is Outcome.CLIENT_ERROR))
    if not answer.held:
        found.append((Objective.CLIENTS_LEFT, outcome is Outcome.CLIENT_LEFT))
    return found


@dataclass
class _Counted:
    """One revision of a deployment."""

    contents: str
    """Which answers are its own."""
    counts: dict[Objective, dict[int, list[int]]] = field(default_factory=dict)
    bad: set[Objective] = field(default_factory=set)
    """The objectives by which its newest answer was bad."""

    def become(self, contents: str) -> _Counted:
        """The same with these contents: whatever their answers are, they go on with no run of bad ones."""
        if contents != self.contents:
            self.contents = contents
            self.bad.clear()
        return self

    def take(self, objective: Objective, bad: bool, prompts: int) -> None:
        """One judgement."""
        tally = self.counts.setdefault(objective, {}).setdefault(prompts, [0, 0, 0, 0])
        after_bad = objective in self.bad
        tally[0] += 1
        tally[1] += bad
        tally[2] += after_bad
        tally[3] += bad and after_bad
        if bad:
            self.bad.add(objective)
        else:
            self.bad.discard(objective)


@dataclass
class _Judged:
    """One deployment that names objectives."""

    uid: str
    slo: Slo
    limits: Limits
    weights: Mapping[str, tuple[int, str]]
    """Of the revisions that have any, with what they are."""
    since: float = 0.0
    """When the requests that are counted began, at the earliest, in unix seconds."""
    revisions: dict[str, _Counted] = field(default_factory=dict)


class Evidence:
    """Keeps count for one gateway process."""

    def __init__(
        self,
        name: str,
        process: str,
        clock: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
        judging: Callable[[], bool],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`process`: another name after each start; `later` calls a function after so many seconds of `clock`.

        `judging`: whether Envoy tells what becomes of requests; `wall`: the clock by which it says when they began.
        """
        self._name, self._process = name, process
        self._clock, self._later, self._judging = clock, later, judging
        self._wall = wall
        self._started = clock()
        self._models: dict[str, str] = {}
        """The deployment (`namespace/name`) of each model that is judged."""
        self._judged: dict[str, _Judged] = {}
        self._version = Version()
        self._new = False
        """There is something that no version has."""
        self._resting = False
        """The last version is younger than INTERVAL."""

    # -- what happens ----------------------------------------------------------------------------------------------

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """A model is routed like this from now on, None: not any more."""
        before, name = self._models.pop(model, None), None
        if routes is not None and routes.slo is not None:
            name = self._models[model] = f"{routes.namespace}/{routes.deployment}"
            self._put(name, routes, routes.slo)
        if before is not None and before != name and before not in self._models.values():
            del self._judged[before]
            self._tell()

    def _put(self, name: str, routes: ModelRoutes, slo: Slo) -> None:
        contents = routes.contents
        weights = {r.name: (r.weight, contents[r.name]) for r in routes.revisions if r.weight}
        known = self._judged.get(name)
        if known is None or (known.uid, known.slo) != (routes.uid, slo):
            known = self._judged[name] = _Judged(routes.uid, slo, Limits.of(slo), weights)
        if known.weights != weights:
            known.weights, known.since = weights, self._wall() + SETTLING
        if {r: counted.contents for r, counted in known.revisions.items()} != contents:
            before = known.revisions
            known.revisions = {r: before[r].become(c) if r in before else _Counted(c) for r, c in contents.items()}
            self._tell()

    def _counted(self, answer: Answer) -> tuple[_Judged, _Counted] | None:
        """What the answer is counted for; None: for nothing, since nobody serves what gave it any more."""
        judged = self._judged.get(answer.deployment)
        counted = judged.revisions.get(answer.revision) if judged is not None else None
        if judged is None or counted is None or counted.contents != answer.contents:
            return None
        return judged, counted

    def answered(self, answers: Iterable[Answer]) -> None:
        """Requests have ended, in this order."""
        new = False
        for answer in answers:
            found = self._counted(answer)
            if found is None or answer.began < found[0].since:
                continue
            judged, counted = found
            prompts = prompt_bucket(answer.prompt_tokens)
            named = judge(answer, judged.limits)
            for objective, bad in (*named, *judge_unnamed(answer, judged.limits, named)):
                counted.take(objective, bad, prompts)
                new = True
        if new:
            self._tell()

    def rated(self, answer: Answer, bad: bool) -> None:
        """A user said what an answer was worth."""
        found = self._counted(answer)
        if found is None or found[0].slo.feedback is None or answer.chosen:
            return
        found[1].take(Objective.FEEDBACK, bad, prompt_bucket(answer.prompt_tokens))
        self._tell()

    # -- what is told ----------------------------------------------------------------------------------------------

    def report(self) -> EvidenceReport:
        """What has been counted so far."""
        # all of it is as it should be: to check that again for thousands takes a while
        deployments = {
            name: DeploymentEvidence.model_construct(
                uid=judged.uid,
                slo=judged.slo,
                contents={revision: counted.contents for revision, counted in judged.revisions.items()},
                counts={
                    revision: {
                        objective.value: {prompts: (t[0], t[1], t[2], t[3]) for prompts, t in tallies.items()}
                        for objective, tallies in counted.counts.items()
                    }
                    for revision, counted in judged.revisions.items()
                    if counted.counts
                },
            )
            for name, judged in self._judged.items()
        }
        return EvidenceReport.model_construct(
            gateway=self._name,
            process=self._process,
            age_seconds=round(self._clock() - self._started, 3),
            version=self._version.number,
            judging=self._judging(),
            deployments=deployments,
        )

    async def report_after(self, version: int, within: float) -> EvidenceReport:
        """The report as soon as its version is another than `version`, or after `within` seconds."""
        await self._version.other_than(version, within)
        return self.report()

    def _tell(self) -> None:
        """Make it a new version, now or as soon as the last one is old enough."""
        self._new = True
        if not self._resting:
            self._new = False
            self._resting = True
            self._version.grow()
            self._later(INTERVAL, self._rested)

    def _rested(self) -> None:
        self._resting = False
        if self._new:
            self._tell()
