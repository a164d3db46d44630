"""Reports of gates as tables and bars for a terminal. Pure: a view in, rich renderables out."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from tuneyard.api.gatereports import GateCheck, GateResult
from tuneyard.cli.driftrender import render_drift
from tuneyard.cli.reportview import KINDS, Bar, ReportView, bars, limit, line, milliseconds
from tuneyard.cli.statusrender import section, table
from tuneyard.planning.gatejudging import number

_STYLES = {"Passed": "green", "Failed": "red", "Skipped": "yellow"}
_WIDTH = 24


def render_report(view: ReportView) -> RenderableType:
    """What is under way, stable over days, then every result."""
    parts: list[RenderableType] = [Text.assemble((f"{view.namespace}/{view.name}", "bold"), f"  {view.phase}")]
    if view.under_way:
        rows = table("GATE", "OF", "STATE", "SINCE", "RUN", "MESSAGE")
        for gate in view.under_way:
            since = gate.started_at or gate.retry_at or "-"
            rows.add_row(gate.name, view.candidate or "-", gate.state, since, str(gate.attempt or "-"), gate.message)
        parts.append(section("Under way", rows))
    if view.drift is not None:
        parts.extend(render_drift(view.drift))
    if not view.results:
        parts.append(Text("no gate has been passed or failed yet"))
    for result in view.results:
        parts.extend(_result(result))
    return Group(*parts)


def _result(result: GateResult) -> Iterator[RenderableType]:
    against = f" against {result.stable}" if result.stable else ""
    head = Text.assemble(
        "\n", (f"{result.revision}  {result.gate}  ", "bold"), (result.outcome, _STYLES.get(result.outcome, ""))
    )
    head.append(f"  {result.at}{against}, contents {result.content_hash}", style="dim")
    yield head
    if not result.checks:
        yield Text(result.message)
    else:
        yield _checks(result.checks)
    report = result.report
    if report is not None and report.benchmark is not None:
        sides = report.benchmark
        yield Text(f"{sides.candidate.requests} requests to each in {report.seconds:.0f} s", style="dim")
        for kind, words in KINDS:
            yield from _plot(words, bars(sides.candidate, sides.stable, kind))
    if report is not None and report.samples:
        rows = table("PROMPT", "ANSWER", "CHECK", "SCORE")
        for sample in report.samples:
            score = "-" if sample.score is None else f"{sample.score:.2f}"
            rows.add_row(line(sample.prompt), line(sample.answer), sample.check or "-", score)
        yield section("Samples", rows)


def _checks(checks: list[GateCheck]) -> RenderableType:
    rows = table("METRIC", "VALUE", "LIMIT", "STABLE", "")
    for check in checks:
        stable = "-" if check.stable is None else number(check.stable, check.unit)
        kept = Text("kept", style="green") if check.passed else Text("missed", style="red")
        rows.add_row(check.metric, number(check.value, check.unit), limit(check), stable, kept)
    return rows


def _plot(words: str, found: list[Bar]) -> Iterator[RenderableType]:
    if not found:
        return
    highest = max(max(b.candidate, b.stable) for b in found) or 1.0
    rows = table(words.upper(), "CANDIDATE", "", "STABLE", "")
    for bar in found:
        mine, other = (round(_WIDTH * share / highest) for share in (bar.candidate, bar.stable))
        rows.add_row(
            f"up to {milliseconds(bar.upto)}", Text("#" * mine, style="cyan"), _percent(bar.candidate),
            Text("#" * other, style="dim"), _percent(bar.stable),
        )  # fmt: skip
    yield Text("")
    yield rows


def _percent(share: float) -> str:
    return f"{share:.0%}" if share else ""
