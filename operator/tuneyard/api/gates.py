"""What a candidate has to pass before it gets its first request: `spec.rollout.gates`, and where each gate stands.

A gate is passed once per contents of the revision and per contents of the gate: another adapter, another limit or
another name of the prompts' ConfigMap is another gate. The prompts inside that ConfigMap are not looked at.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tuneyard.api.analysis import Percent
from tuneyard.api.base import ApiModel
from tuneyard.api.lineage import Moment
from tuneyard.api.schema import Duration, Name, ObjectName, Text, cel, exactly_one

MAX_GATES = 8
DEFAULT_PROMPTS_KEY = "prompts.jsonl"
DEFAULT_TIMEOUT = "30m"
DEFAULT_ERRORS = "1%"
JUDGE_KEY, JUDGE_URL = "tuneyard-judge-key", "tuneyard-judge-url"
"""Keys of the Secret of a judge: the API key, and optionally how the address begins to which that may be sent. Whoever
makes a Secret with the first one allows its use by gates; no other key of any Secret is ever mounted."""

LatencyLimit = Annotated[
    str,
    Field(
        max_length=16,
        pattern=r"^([0-9]{1,3}(\.[0-9]{1,3})?x|[1-9][0-9]*(ms|s|m))$",
        description="Times stable's, for example 1.10x, or a time, for example 300ms.",
    ),
]
RateLimit = Annotated[
    str,
    Field(
        max_length=16,
        pattern=r"^[0-9]{1,6}(\.[0-9]{1,3})?x?$",
        description="Times stable's, for example 0.9x, or a number, for example 50.",
    ),
]
Score = Annotated[float, Field(ge=0, le=1)]

LATENCIES = tuple(f"{what}P{percent}" for what in ("ttft", "itl", "e2e") for percent in (50, 95, 99))
SCORES = ("exactMatch", "regex", "jsonSchema", "similarity", "judge")


def _some(owner: str, fields: tuple[str, ...], example: str) -> ConfigDict:
    rule = " || ".join(f"has(self.{field})" for field in fields)
    words = f"{owner} must name at least one limit, for example {example}"
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": [cel(rule, words)]})


class BenchmarkMax(ApiModel):
    """What may not be exceeded. Times are percentiles over the candidate's answers."""

    model_config = _some("benchmark.max", (*LATENCIES, "errorRate"), "{ttftP95: 1.10x}")

    # "e2e" has to be spelt out: the generator of aliases would write e2E
    ttft_p50: LatencyLimit | None = None
    ttft_p95: LatencyLimit | None = None
    ttft_p99: LatencyLimit | None = None
    itl_p50: LatencyLimit | None = None
    itl_p95: LatencyLimit | None = None
    itl_p99: LatencyLimit | None = None
    e2e_p50: Annotated[LatencyLimit | None, Field(alias="e2eP50")] = None
    e2e_p95: Annotated[LatencyLimit | None, Field(alias="e2eP95")] = None
    e2e_p99: Annotated[LatencyLimit | None, Field(alias="e2eP99")] = None
    error_rate: Annotated[
        Percent | None, Field(description="Share of the candidate's requests that may fail. Default 1%.")
    ] = None


class BenchmarkMin(ApiModel):
    """What has to be reached."""

    model_config = _some("benchmark.min", ("tokensPerSecond",), "{tokensPerSecond: 0.9x}")

    tokens_per_second: Annotated[
        RateLimit | None,
        Field(
            description="Tokens that an answer brings a second, on average, from its request on; times stable's, for "
            "example 0.9x, or a number, for example 50."
        ),
    ] = None


class Benchmark(ApiModel):
    """The candidate and stable are asked alternately, with the same prompts, and their times compared."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "has(self.max) || has(self.min)",
                    "benchmark needs a limit in max or min, for example max: {ttftP95: 1.10x}",
                )
            ]
        }
    )

    against: Annotated[Literal["stable"] | None, Field(description="What it is compared with. Default stable.")] = None
    requests: Annotated[
        int | None, Field(ge=20, le=10_000, description="Requests to each of the two. Default 200.")
    ] = None
    concurrency: Annotated[
        int | None, Field(ge=1, le=256, description="Requests under way at once, of both together. Default 8.")
    ] = None
    prompt_tokens: Annotated[
        int | None,
        Field(ge=1, le=100_000, description="About how long prompts are; they are made of common words. Default 128."),
    ] = None
    max_tokens: Annotated[int | None, Field(ge=2, le=16_384, description="Of each answer. Default 64.")] = None
    maximum: Annotated[BenchmarkMax | None, Field(alias="max", description="What the candidate may not exceed.")] = None
    minimum: Annotated[BenchmarkMin | None, Field(alias="min", description="What the candidate has to reach.")] = None


class PromptsFrom(ApiModel):
    """Where prompts and their checks stand."""

    config_map: Annotated[ObjectName, Field(description="A ConfigMap of the same namespace.")]
    key: Annotated[
        str | None,
        Field(
            max_length=253,
            pattern=r"^[-._a-zA-Z0-9]+$",
            description="Its key, with a JSON object a line. Default prompts.jsonl.",
        ),
    ] = None


class Judge(ApiModel):
    """A model that grades answers, behind any endpoint that speaks OpenAI's chat completions."""

    url: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=r"^https?://[^ ]+$",
            description="Address up to and with /v1, for example https://llm.example.com/v1.",
        ),
    ]
    model: Annotated[str, Field(min_length=1, max_length=253)]
    secret: Annotated[
        ObjectName | None,
        Field(
            description="A Secret of the same namespace with the API key under tuneyard-judge-key. Where it also has "
            "tuneyard-judge-url, url has to begin with that."
        ),
    ] = None


class EvaluationMin(ApiModel):
    """Mean scores, 0 to 1, that have to be reached, each over the prompts with that check."""

    model_config = _some("evaluation.min", SCORES, "{exactMatch: 0.8}")

    exact_match: Annotated[Score | None, Field(description="Share of answers that are the expected text.")] = None
    regex: Annotated[Score | None, Field(description="Share of answers in which the expression is found.")] = None
    json_schema: Annotated[Score | None, Field(description="Share of answers that are JSON and fit the schema.")] = None
    similarity: Annotated[
        Score | None,
        Field(description="Likeness to the reference text: ROUGE-L, by words, the case aside."),
    ] = None
    judge: Annotated[Score | None, Field(description="Grades of the judge.")] = None


class Evaluation(ApiModel):
    """The candidate answers prompts, and each answer is checked."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "!has(self.min.judge) || has(self.judge)",
                    "evaluation.min.judge needs evaluation.judge: name the endpoint that grades, {url: ..., model: ...}",
                )
            ]
        }
    )

    prompts: PromptsFrom
    minimum: Annotated[EvaluationMin, Field(alias="min", description="What the candidate has to reach.")]
    max_tokens: Annotated[int | None, Field(ge=1, le=16_384, description="Of each answer. Default 256.")] = None
    judge: Judge | None = None


class Gate(ApiModel):
    """One gate; exactly one of benchmark and evaluation."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [exactly_one("an entry of rollout.gates", "benchmark", "evaluation")]
        }
    )

    name: Name
    timeout: Annotated[
        Duration | None,
        Field(description="How long one run may take, with the start of its pod. Default 30m."),
    ] = None
    benchmark: Annotated[Benchmark | None, Field(description="How fast it answers, beside stable.")] = None
    evaluation: Annotated[Evaluation | None, Field(description="What it answers.")] = None


GateState = Literal["Waiting", "Running", "CannotRun", "Passed", "Failed", "Skipped"]


class GateProgress(ApiModel):
    """How far a run is."""

    done: Annotated[int, Field(description="Requests to each revision, or prompts, by the kind of the gate.")]
    total: int
    at: Annotated[Moment, Field(description="When that was written; more often than every 10 s it is not.")]


class GateStatus(ApiModel):
    """Where one gate stands for the candidate's contents."""

    name: str
    key: Annotated[str, Field(max_length=63, description="Hash of the candidate's contents and of the gate.")]
    state: Annotated[
        GateState, Field(description="CannotRun: it holds, and is tried again; it says nothing of the candidate.")
    ]
    message: Text = ""
    attempt: Annotated[int | None, Field(description="Which run this is, or will be.")] = None
    started_at: Moment | None = None
    progress: Annotated[
        GateProgress | None, Field(description="Only while it runs, once a gateway has seen a request of it.")
    ] = None
    ended_at: Annotated[Moment | None, Field(description="Since when it is passed, failed or skipped.")] = None
    retry_at: Moment | None = None
