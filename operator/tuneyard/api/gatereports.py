"""What gates found: the report that a gate's pod leaves behind, and the results that are kept of it.

Rules:
- a report is a termination message: the pod has no right to anything in the API. So it has at most MESSAGE_BYTES, and
  what does not fit is cut from the samples, never from the numbers. How far it is stands on its requests (GateRun);
- a report holds numbers and judges nothing: the operator holds them against the limits of the spec;
- times are milliseconds. Histograms have the same edges everywhere, four to an octave, so that two can be laid over
  each other.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field

from tuneyard.api.base import ApiModel
from tuneyard.api.lineage import Moment
from tuneyard.api.schema import Text

MESSAGE_BYTES = 4000
"""Kubernetes cuts a termination message after 4096."""
MAX_RESULTS = 48
"""Kept of one deployment; each is some 5 KB at most."""
_RUN = re.compile(r"(?P<job>[-.a-z0-9]{1,253}) (?P<done>[0-9]{1,6})/(?P<total>[0-9]{1,6})")


class Histogram(ApiModel):
    """Counts of times. Bucket n ends at 2 ** (n / 4) ms, and begins where the one before ends."""

    first: int = 0
    """Number of the first bucket in `counts`."""
    counts: Annotated[list[int], Field(max_length=200)] = []


class Times(ApiModel):
    """One kind of times of one revision."""

    p50: float
    p95: float
    p99: float
    histogram: Histogram = Histogram()


class Side(ApiModel):
    """What was measured of one revision."""

    requests: int
    errors: int = 0
    tokens_per_second: float | None = None
    ttft: Times | None = None
    itl: Times | None = None
    e2e: Annotated[Times | None, Field(alias="e2e")] = None


class BenchmarkNumbers(ApiModel):
    """Both revisions, under the same load."""

    candidate: Side
    stable: Side


class EvaluationNumbers(ApiModel):
    """Mean scores, and how many prompts each is of, by the name of the check."""

    prompts: int
    prompts_digest: Annotated[str | None, Field(description="Of their text.")] = None
    scores: dict[str, float] = {}
    counts: dict[str, int] = {}


class Sample(ApiModel):
    """One prompt and its answer, cut."""

    prompt: str
    answer: str
    check: str | None = None
    score: float | None = None


class GateReport(ApiModel):
    """The termination message of a gate's pod."""

    version: Literal[1] = 1
    benchmark: BenchmarkNumbers | None = None
    evaluation: EvaluationNumbers | None = None
    samples: list[Sample] = []
    seconds: float = 0
    cannot_run: Annotated[str | None, Field(description="Why it could not measure.")] = None


class GateRun(ApiModel):
    """How far one run of a gate is: requests to each revision, or prompts.

    Its process has no way to the operator before it ends. But every gateway sees its requests and knows them by their
    token, so they say it by header, `JOB DONE/TOTAL`; gateways tell the operator with what is asked of them. The Job goes by its
    uid: after a retry another one has its name.
    """

    job: str
    done: int
    total: int

    @property
    def header(self) -> str:
        """The value of the header."""
        return f"{self.job} {self.done}/{self.total}"

    @classmethod
    def of_header(cls, value: str) -> Self | None:
        """What a header says; None where it says nothing that can be."""
        found = _RUN.fullmatch(value)
        if found is None:
            return None
        done, total = int(found["done"]), int(found["total"])
        return cls(job=found["job"], done=done, total=total) if done <= total else None


class GateCheck(ApiModel):
    """One number against its limit."""

    metric: str
    value: float
    unit: Literal["ms", "tokens/s", "%", ""] = ""
    limit: Annotated[str, Field(description="As in the spec.")]
    bound: Annotated[float, Field(description="What the limit comes to.")]
    stable: float | None = None
    upper: Annotated[bool, Field(description="Whether the value may not exceed it; else it has to reach it.")]
    passed: bool


class GateResult(ApiModel):
    """What came of one gate for one revision's contents."""

    revision: str
    content_hash: str
    gate: str
    key: str
    outcome: Literal["Passed", "Failed", "Skipped"]
    message: Text = ""
    at: Moment
    stable: Annotated[str | None, Field(description="The revision that it was compared with.")] = None
    checks: list[GateCheck] = []
    report: GateReport | None = None


class DriftRun(ApiModel):
    """What one run of the evaluation found of stable."""

    key: str
    """Hash of the contents and of the evaluation."""
    at: Moment
    """When it began."""
    revision: str
    content_hash: str
    gate: str
    prompts: int
    prompts_digest: str
    """With other prompts scores are others: what was found with these is a baseline of its own."""
    scores: dict[str, float] = {}
    samples: list[Sample] = []
    """The worst answers; of the newest run only."""


class GateReports(ApiModel):
    """The ConfigMap `<deployment>-reports`, key `reports.json`: the oldest first."""

    version: Literal[1] = 1
    deployment: str
    results: list[GateResult] = []
    drift: list[DriftRun] = []
    """What the evaluation of stable has found over days (planning/driftruns.py)."""


class GateTask(ApiModel):
    """What a gate's pod is told: `gate.json` in its ConfigMap."""

    version: Literal[1] = 1
    gateway: str
    """Base URL without /v1."""
    model: str
    job: str = ""
    """The Job's uid, by which the gate tells how far it is; without one it tells nothing."""
    candidate: str
    stable: str
    gate: dict[str, object]
    """The gate, as in the spec."""
