"""Stable over days, for a terminal and for the page of `tuneyard report`. Pure.

Rule: everything that was written elsewhere is escaped on the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from rich.console import RenderableType
from rich.text import Text

from tuneyard.cli.driftview import DriftView
from tuneyard.cli.reportview import line
from tuneyard.cli.statusrender import section, table

_RUNS = ("RUN AT", "REVISION", "PROMPTS", "", "SCORES")
_SAMPLES = ("PROMPT", "ANSWER", "CHECK", "SCORE")
_DAYS = ("DAY", "REVISION", "WITH FEEDBACK", "BAD", "", "SHARE")


def render_drift(view: DriftView) -> Iterator[RenderableType]:
    """What the condition says, every run, and feedback by day."""
    yield Text("")
    yield Text.assemble(("Stable over days  ", "bold"), _verdict(view))
    if view.message:
        yield Text(line(view.message))
    for title, columns, cells in _tables(view):
        rows = table(*columns)
        for row in cells:
            rows.add_row(*row)
        yield section(title, rows)


def drift_page(view: DriftView) -> Iterator[str]:
    """The same as HTML."""
    word, style = _verdict(view)
    css = {"red": "missed", "green": "kept", "yellow": "Skipped"}[style]
    yield f'<h2>Stable over days: <span class="{css}">{escape(word)}</span></h2><p>{escape(view.message)}</p>'
    for title, columns, cells in _tables(view):
        head = "".join(f"<th>{escape(c.capitalize())}</th>" for c in columns)
        rows = ("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in cells)
        yield f"<h3>{escape(title)}</h3><table><tr>{head}</tr>{''.join(rows)}</table>"


def _verdict(view: DriftView) -> tuple[str, str]:
    if not view.known:
        return "not known", "yellow"
    return ("drifts", "red") if view.drifting else ("does not drift", "green")


def _tables(view: DriftView) -> Iterator[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]:
    if view.runs:
        runs = [(r.at, r.revision, str(r.prompts), "baseline" if r.baseline else "", r.words) for r in view.runs]
        yield "Evaluation", _RUNS, runs
    if view.samples:
        samples = [
            (line(s.prompt), line(s.answer), s.check or "-", "-" if s.score is None else f"{s.score:.2f}")
            for s in view.samples
        ]
        yield "Worst answers of the newest run", _SAMPLES, samples
    if view.days:
        days = [
            (d.day, d.revision, str(d.judged), str(d.bad), "baseline" if d.baseline else "", d.words) for d in view.days
        ]
        yield "Feedback", _DAYS, days
