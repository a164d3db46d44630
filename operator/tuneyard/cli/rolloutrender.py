"""Views of a rollout as lines and tables for a terminal. Pure: a view in, rich renderables out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tuneyard.api.rollout import AnalysisStatus
from tuneyard.cli.rolloutview import HistoryView, RolloutView
from tuneyard.cli.statusrender import duration, section, table

_STYLES = {
    "Completed": "green",
    "RolledBack": "red",
    "Paused": "yellow",
    "Inconclusive": "yellow",
    "Gating": "cyan",
    "Progressing": "cyan",
    "Baking": "cyan",
}

_GATES = {"Passed": "green", "Failed": "red", "Skipped": "yellow", "CannotRun": "yellow", "Running": "cyan"}
_OUTCOMES = {"Pass": "green", "Reject": "red", "Continue": "cyan"}


def render_rollout(view: RolloutView) -> RenderableType:
    """Where it stands, its steps, its verdicts, the answer to the last command."""
    head = Text.assemble((f"{view.namespace}/{view.name}", "bold"), "  ")
    head.append(view.phase, style=_STYLES.get(view.phase, ""))
    head.append(f"  {view.mode}", style="dim")
    parts: list[RenderableType] = [head, Text(f"stable {_stable(view.stable, view.stable_since)}")]
    if view.candidate is not None:
        parts.append(Text(f"candidate {view.candidate}, {view.weight} of {view.target} %{_waits(view)}"))
    parts.append(Text(view.message))
    if view.drift is not None:
        parts.append(Text(view.drift))
    if view.steps:
        parts.append(_steps(view))
    if view.gates:
        parts.append(_gates(view))
    if view.candidate is not None and view.analysis is not None:
        parts += [_split(view), *_evidence(view, view.analysis)]
    if view.verdicts:
        parts.append(_verdicts(view))
    if view.last_command is not None:
        answer = view.last_command
        word = "done" if answer.accepted else "refused"
        told = f"last command: {answer.action} {answer.revision or ''}".rstrip()
        parts += [Text(""), Text(f"{told}, {word} at {answer.at}: {answer.message}")]
    return Group(*parts)


def _stable(name: str | None, since: str | None) -> str:
    if name is None:
        return "-"
    return f"{name} since {since}" if since else name


def _waits(view: RolloutView) -> str:
    if view.paused_by:
        return f", paused by {view.paused_by}"
    return f", {duration(view.seconds_left)} to go" if view.seconds_left is not None else ""


def _steps(view: RolloutView) -> RenderableType:
    rows = table("STEP", "WEIGHT", "HOLD", "STATE")
    for number, step in enumerate(view.steps, 1):
        style = "bold" if step.state == "now" else "dim" if step.state == "ahead" else ""
        rows.add_row(str(number), f"{step.weight} %", step.hold or "-", Text(step.state, style=style))
    return section("Steps", rows)


def _gates(view: RolloutView) -> RenderableType:
    rows = table("GATE", "STATE", "SINCE", "PROGRESS", "NUMBERS AND LIMITS")
    for gate in view.gates:
        state = Text(gate.state, style=_GATES.get(gate.state, ""))
        since = f"again in {duration(gate.seconds_left)}" if gate.seconds_left is not None else duration(gate.seconds)
        rows.add_row(gate.name, state, since, gate.progress or "-", gate.numbers or "-")
    return section("Gates", rows)


def _split(view: RolloutView) -> RenderableType:
    rows = table("REVISION", "WEIGHT", "SPEC", "EVERYWHERE", "WITHHELD")
    for part in view.split:
        everywhere = Text("yes" if part.verified else "not yet", style="" if part.verified else "yellow")
        weights = (f"{part.weight} %", f"{part.spec_weight} %")
        rows.add_row(part.revision, *weights, everywhere, part.withheld or "-")
    return section("Split", rows)


def _evidence(view: RolloutView, analysis: AnalysisStatus) -> list[RenderableType]:
    rows = table("OBJECTIVE", f"{view.candidate}: BAD OF JUDGED", f"{view.stable}: BAD OF JUDGED")
    for counted in analysis.objectives or ():
        mine, other = (counted.candidate_bad, counted.candidate_judged), (counted.stable_bad, counted.stable_judged)
        rows.add_row(counted.objective, _share(*mine), _share(*other))
    words = Text(f"{analysis.outcome}: ", style=_OUTCOMES.get(analysis.outcome, "yellow"))
    # while a step waits for it, the message above has the sentence already
    words.append("as above" if analysis.sentence in view.message else analysis.sentence, style="default")
    said: list[RenderableType] = [section(f"Evidence since {analysis.since}", rows), *_checks(analysis), words]
    return [*said, Text(analysis.stable_broken, style="yellow")] if analysis.stable_broken else said


def _checks(analysis: AnalysisStatus) -> list[RenderableType]:
    if not analysis.checks:
        return []
    rows = table("CHECK", "VALUE", "LIMIT", "OUT IN A ROW", "MESSAGE")
    for check in analysis.checks:
        row = Text(str(check.failures), style="yellow" if check.failures else "")
        rows.add_row(check.name, check.value or "-", check.limit, row, check.message)
    return [section("Checks of Prometheus", rows)]


def _share(bad: int, judged: int) -> str:
    return f"{bad} of {judged} ({100 * bad / judged:.2g} %)" if judged else "none yet"


def _verdicts(view: RolloutView) -> RenderableType:
    rows = table("REJECTED", "REASON", "AT", "EVIDENCE")
    for verdict in view.verdicts:
        rows.add_row(verdict.revision, Text(verdict.reason, style="red"), verdict.at, verdict.evidence)
    return section("Verdicts", rows)


def render_history(view: HistoryView) -> RenderableType:
    """One line a change, the newest last."""
    head = Text.assemble(
        (f"{view.namespace}/{view.name}", "bold"), f"  stable {_stable(view.stable, view.stable_since)}"
    )
    if not view.outcomes:
        return Group(head, Text("no rollout by steps and no verdict yet"))
    rows = table("AT", "REVISION", "BECAME", "CONTENTS", "REASON")
    for line in view.outcomes:
        style = "red" if line.outcome == "Rejected" else "green"
        became = Text(line.outcome.lower(), style=style)
        rows.add_row(line.at, line.revision, became, line.content_hash, line.reason or "-")
    return Group(head, section("History", rows))
