"""Sums of usage as a table for a terminal. Pure: a view in, a rich renderable out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tuneyard.cli.statusrender import table
from tuneyard.planning.usagereport import UsageRow, UsageView


def render_usage(view: UsageView) -> RenderableType:
    """One line a sum, the total last; what is estimated is in a column of its own where there is any."""
    since = f" since {view.since}" if view.since else ""
    head = Text.assemble((f"Usage by {view.by}", "bold"), since)
    if not view.rows:
        return Group(head, Text("no records"))
    guessed = view.total.estimated_requests > 0
    columns = [view.by.upper(), "REQUESTS", "PROMPT", "CACHED", "COMPLETION"]
    rows = table(*columns, *(["NOT FINISHED (ESTIMATES)"] if guessed else []), wrapping=False)
    for column in rows.columns[1:]:
        column.justify = "right"
    rows.columns[-1].justify = "left" if guessed else "right"
    rows.columns[-1].ratio = None
    for row in (*view.rows, view.total):
        rows.add_row(*_cells(row, guessed), style="bold" if row is view.total else "")
    return Group(head, Text(""), rows)


def _cells(row: UsageRow, guessed: bool) -> list[str]:
    numbers = (row.requests, row.prompt_tokens, row.cached_tokens, row.completion_tokens)
    cells = [row.name, *(f"{number:,}" for number in numbers)]
    if guessed:
        about = f"{row.estimated_requests:,}: {row.estimated_prompt_tokens:,} + {row.estimated_completion_tokens:,}"
        cells.append(about if row.estimated_requests else "-")
    return cells
