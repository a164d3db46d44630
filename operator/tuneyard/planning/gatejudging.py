"""A gate's numbers against its limits.

Rules:
- a limit is kept or not; what was not measured is neither, and then the gate could not run;
- requests that fail count against the candidate only where stable fares better: when stable fails too, it is the
  engines or the gateway that are unwell.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuneyard.api.analysis import milliseconds, share
from tuneyard.api.gatereports import BenchmarkNumbers, EvaluationNumbers, GateCheck, GateReport, Side, Times
from tuneyard.api.gates import DEFAULT_ERRORS, LATENCIES, Benchmark, Evaluation, Gate


class UnmeasuredError(Exception):
    """What is missing for a judgement, in words for people."""


def checks_of(gate: Gate, report: GateReport) -> tuple[GateCheck, ...]:
    """Every limit of the gate with its number; raises UnmeasuredError where the report does not say enough."""
    if report.cannot_run is not None:
        raise UnmeasuredError(report.cannot_run)
    if gate.benchmark is not None and report.benchmark is not None:
        return tuple(_benchmark(gate.benchmark, report.benchmark))
    if gate.evaluation is not None and report.evaluation is not None:
        return tuple(_evaluation(gate.evaluation, report.evaluation))
    raise UnmeasuredError("its report holds no numbers")


def sentence(gate: Gate, checks: tuple[GateCheck, ...]) -> str:
    """What came out, with the numbers: the limits that were not kept, or all of them."""
    missed = [c for c in checks if not c.passed]
    return f"gate {gate.name}: " + ", ".join(_words(c) for c in missed or checks)


def limits(gate: Gate) -> tuple[str, ...]:
    """The limits of a gate that has no numbers yet, as they stand in the spec."""
    if gate.benchmark is not None:
        most = gate.benchmark.maximum.to_dict() if gate.benchmark.maximum else {}
        least = gate.benchmark.minimum.to_dict() if gate.benchmark.minimum else {}
        most.setdefault("errorRate", DEFAULT_ERRORS)
    else:
        most, least = {}, gate.evaluation.minimum.to_dict() if gate.evaluation else {}
    named = (("at most", most), ("at least", least))
    return tuple(f"{metric} {bound} {limit}" for bound, given in named for metric, limit in given.items())


def number(value: float, unit: str) -> str:
    """A number for people, with its unit."""
    figures = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{figures} {unit}".rstrip()


def _words(check: GateCheck) -> str:
    relation = (
        ("is within" if check.upper else "reaches") if check.passed else ("is over" if check.upper else "is under")
    )
    limit = number(check.bound, check.unit)
    if check.limit.endswith("x") and check.stable is not None:
        limit = f"{check.limit} of stable's {number(check.stable, check.unit)}"
    return f"{check.metric} {number(check.value, check.unit)} {relation} {limit}"


def _benchmark(gate: Benchmark, numbers: BenchmarkNumbers) -> Iterator[GateCheck]:
    given = gate.maximum.to_dict() if gate.maximum else {}
    yield _errors(given.get("errorRate") or DEFAULT_ERRORS, numbers)
    for metric in LATENCIES:
        if metric in given:
            yield _latency(metric, given[metric], numbers)
    limit = gate.minimum.tokens_per_second if gate.minimum else None
    if limit is not None:
        value, stable = numbers.candidate.tokens_per_second, numbers.stable.tokens_per_second
        if value is None:
            raise UnmeasuredError("no answer of the candidate said how many tokens it has")
        bound = _times(limit, stable, "tokensPerSecond") if limit.endswith("x") else float(limit)
        yield GateCheck(
            metric="tokensPerSecond", value=value, unit="tokens/s", limit=limit, bound=bound, stable=stable,
            upper=False, passed=value >= bound,
        )  # fmt: skip


def _errors(limit: str, numbers: BenchmarkNumbers) -> GateCheck:
    candidate, stable = _error_share(numbers.candidate), _error_share(numbers.stable)
    bound = share(limit)
    if candidate > bound and stable > bound:
        raise UnmeasuredError(
            f"{candidate:.0%} of the candidate's requests failed, and {stable:.0%} of stable's: the gateway or the "
            f"engines are unwell"
        )
    return GateCheck(
        metric="errorRate", value=round(100 * candidate, 3), unit="%", limit=limit, bound=100 * bound,
        stable=round(100 * stable, 3), upper=True, passed=candidate <= bound,
    )  # fmt: skip


def _error_share(side: Side) -> float:
    if not side.requests:
        raise UnmeasuredError("no request was made")
    return side.errors / side.requests


def _latency(metric: str, limit: str, numbers: BenchmarkNumbers) -> GateCheck:
    value, stable = (_percentile(side, metric) for side in (numbers.candidate, numbers.stable))
    if value is None:
        raise UnmeasuredError(f"{metric} is limited and no answer of the candidate had such a time")
    bound = _times(limit, stable, metric) if limit.endswith("x") else float(milliseconds(limit))
    return GateCheck(
        metric=metric, value=value, unit="ms", limit=limit, bound=bound, stable=stable, upper=True,
        passed=value <= bound,
    )  # fmt: skip


def _percentile(side: Side, metric: str) -> float | None:
    what, percent = metric[:-3], metric[-3:].lower()
    times: Times | None = getattr(side, what)
    return None if times is None else float(getattr(times, percent))


def _times(limit: str, stable: float | None, metric: str) -> float:
    if stable is None:
        raise UnmeasuredError(f"{metric} is limited to {limit} of stable's, and no answer of stable had one")
    return float(limit.removesuffix("x")) * stable


def _evaluation(gate: Evaluation, numbers: EvaluationNumbers) -> Iterator[GateCheck]:
    for metric, limit in gate.minimum.to_dict().items():
        value = numbers.scores.get(metric)
        if value is None:
            raise UnmeasuredError(
                f"min.{metric} is limited and no prompt of {gate.prompts.config_map} has a check {metric}"
            )
        yield GateCheck(
            metric=metric, value=value, limit=str(limit), bound=float(limit), upper=False, passed=value >= float(limit)
        )
