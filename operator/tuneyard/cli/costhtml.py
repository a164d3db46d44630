"""What tokens have cost as an HTML page: the break-even line, then the numbers. Pure.

Rule: names come from records and from a file of prices, so everything is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from tuneyard.cli.reporthtml import document
from tuneyard.planning.cost import ApiRow, CostRow, CostView

_WIDTH, _HEIGHT, _LEFT, _HEAD, _FOOT = 900.0, 260.0, 70.0, 24.0, 44.0
_COLOURS = ("#c2571a", "#7a3fa0", "#17703a", "#8a5a00", "#b3261e")
_STEPS = 4
_Point = tuple[float, float]


def cost_page(view: CostView) -> str:
    """The whole page."""
    title = f"Cost by {view.by}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="dim">{escape(view.period.since)} to {escape(view.period.until)}</p>',
        *_break_even(view),
        *_section(
            f"By {view.by}", _rows(view.by, view.currency, [*view.rows, view.total], split=bool(view.hosted_apis))
        ),
        *(_section("Pools", _rows("pool", view.currency, view.pools)) if view.pools else ()),
        *_hosted(view),
        *(f"<p>{escape(line)}</p>" for line in _remarks(view)),
    ]
    return document(title, body)


def _section(title: str, table: str) -> Iterator[str]:
    yield f"<h2>{escape(title)}</h2>"
    yield table


def _remarks(view: CostView) -> Iterator[str]:
    if view.idle:
        yield f"{view.idle:,.2f} {view.currency} of it for pools that nobody asked."
    if view.fine_tunes:
        yield (
            f"{view.fine_tunes} fine-tunes with a pool each would have cost {view.alone:,.2f} {view.currency}; shared "
            f"pools saved {view.alone - view.own.cost:,.2f}."
        )
    if view.unpriced:
        yield f"In no sum, for want of their hours: {', '.join(view.unpriced)}."
    if view.unpriced_hosted:
        yield f"In no sum, for want of a price in {view.currency}: {', '.join(view.unpriced_hosted)}."


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    def line(cells: Iterable[str], tag: str) -> str:
        of_number = ' class="n"'
        told = (f"<{tag}{of_number if n else ''}>{escape(cell)}</{tag}>" for n, cell in enumerate(cells))
        return f"<tr>{''.join(told)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _hosted(view: CostView) -> Iterator[str]:
    """By API, and against the pools."""
    if view.hosted_apis:
        yield from _section("Hosted", _rows("api", view.currency, view.hosted_apis))
        yield from _section("Hosted and own", _rows("", view.currency, [view.hosted, view.own, view.total]))


def _rows(name: str, currency: str, rows: Iterable[CostRow], *, split: bool = False) -> str:
    """`split`: with what of each cost is the pools' and what APIs'."""
    cells = (
        (
            r.name,
            f"{r.cost:,.2f}",
            *((f"{r.cost - r.hosted:,.2f}", f"{r.hosted:,.2f}") if split else ()),
            f"{r.tokens:,}",
            "-" if r.per_million is None else f"{r.per_million:,.2f}",
        )
        for r in rows
    )
    parts = ("own", "hosted") if split else ()
    return _table((name, currency, *parts, "tokens", f"{currency} per 1M tokens"), cells)


def _break_even(view: CostView) -> Iterator[str]:
    """Cost of an hour over tokens an hour: of the pools, which cost the same whatever is asked, and of each API."""
    priced = [api for api in view.apis if api.break_even_tokens_per_hour]
    if not priced:
        return
    yield "<h2>Break-even</h2>"
    yield _plot(view, priced)
    cells = (
        (
            api.name,
            f"{api.cost:,.2f}",
            f"{api.break_even_tokens_per_hour or 0:,.0f}",
            f"{view.tokens_per_hour / (api.break_even_tokens_per_hour or 1):.0%}",
        )
        for api in priced
    )
    yield _table(("API", view.currency, "break-even tokens per hour", "now"), cells)


def _plot(view: CostView, apis: list[ApiRow]) -> str:
    pools = view.own.cost / view.period.hours
    most = 1.25 * max(view.tokens_per_hour, *(api.break_even_tokens_per_hour or 0.0 for api in apis))
    high = 2 * pools
    floor, right = _HEAD + _HEIGHT, _WIDTH - _LEFT

    def x(tokens: float) -> float:
        return _LEFT + right * tokens / most

    def y(cost: float) -> float:
        return floor - _HEIGHT * min(cost, high) / high

    parts = [f'<text x="0" y="12">{escape(view.currency)} an hour, over tokens an hour</text>']
    for step in range(_STEPS + 1):
        cost, tokens = high * step / _STEPS, most * step / _STEPS
        anchor = "end" if step == _STEPS else "middle"
        parts += [
            _line((_LEFT, y(cost)), (_WIDTH, y(cost)), "#e6eaf0"),
            f'<text x="{_LEFT - 6:.0f}" y="{y(cost) + 4:.1f}" text-anchor="end">{cost:,.2f}</text>',
            f'<text x="{x(tokens):.1f}" y="{floor + 16:.0f}" text-anchor="{anchor}">{_short(tokens)}</text>',
        ]
    parts += [
        _line((x(0), y(pools)), (x(most), y(pools)), "#2563b0", 2.5),
        # every line is above them there
        f'<text x="{_WIDTH:.0f}" y="{y(pools) + 15:.1f}" text-anchor="end" style="fill:#2563b0">the pools</text>',
        _line((x(view.tokens_per_hour), _HEAD), (x(view.tokens_per_hour), floor), "#5b6675", dashed=True),
        f'<text x="{x(view.tokens_per_hour):.1f}" y="{floor + 34:.0f}" '
        f'text-anchor="{_anchor(view.tokens_per_hour / most)}">now: {_short(view.tokens_per_hour)}</text>',
    ]
    for n, api in enumerate(apis):
        even = api.break_even_tokens_per_hour or 1.0
        colour, last = _COLOURS[n % len(_COLOURS)], min(most, 2 * even)
        end, at_edge = (x(last), y(pools * last / even)), last > 0.8 * most
        place = (end[0], end[1] - 6) if at_edge else (end[0] + 6, end[1] + 12)
        parts += [
            _line((x(0), y(0)), end, colour, 2),
            f'<circle cx="{x(even):.1f}" cy="{y(pools):.1f}" r="4" fill="{colour}"/>',
            f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="{"end" if at_edge else "start"}" '
            f'style="fill:{colour}">{escape(api.name)}</text>',
        ]
    size = f"0 0 {_WIDTH:.0f} {floor + _FOOT:.0f}"
    return f'<svg viewBox="{size}" role="img" aria-label="Break-even">{"".join(parts)}</svg>'


def _line(begin: _Point, end: _Point, colour: str, width: float = 1, *, dashed: bool = False) -> str:
    (x1, y1), (x2, y2) = begin, end
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dash}/>'


def _anchor(share: float) -> str:
    """Which end of a text stands at its place, so that the text stays on the plot."""
    return "start" if share < 0.1 else "end" if share > 0.8 else "middle"


def _short(number: float) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"
