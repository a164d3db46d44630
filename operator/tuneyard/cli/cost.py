"""`tuneyard cost DIR|URI --prices FILE`: what tokens have cost, from exported records and prices. Reads only."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneyard.cli.costhtml import cost_page
from tuneyard.cli.errors import UserError
from tuneyard.cli.output import answer, write_page
from tuneyard.cli.statusrender import section, table
from tuneyard.cli.usage import add_source_arguments, records_of
from tuneyard.planning.cost import CostRow, CostView, Prices, cost_view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard cost`."""
    add_source_arguments(parser)
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        required=True,
        help="YAML: the period, prices of nodes, hours of pools, prices of APIs (examples/usage/prices.yaml)",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the break-even line, which needs no other file"
    )


def run(args: argparse.Namespace) -> int:
    """Show the costs; raises UserError where the file or the records cannot be read."""
    prices = read_prices(args.prices)
    view = cost_view(records_of(args, prices.period.since), prices, args.by)
    if args.html is not None:
        write_page(args.html, cost_page(view))
    else:
        answer(view, render_cost, args.output)
    return 0


def read_prices(path: Path) -> Prices:
    """The file's prices; raises UserError with what is wrong with them."""
    try:
        return Prices.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError:
        raise UserError(f"{path} is no YAML") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "the file"
        raise UserError(f"{path}: {place}: {problem['msg']}") from None


def render_cost(view: CostView) -> RenderableType:
    """Rows, pools, what else it might have cost."""
    head = Text.assemble((f"Cost by {view.by}", "bold"), f" from {view.period.since} to {view.period.until}")
    title = f"{view.currency} PER 1M TOKENS"
    parts: list[RenderableType] = [head, Text(""), _whole(view, title)]
    if view.pools:
        parts.append(section("Pools", _rows(("POOL", title), view.currency, view.pools)))
    if view.hosted_apis:
        parts.append(section("Hosted", _rows(("API", title), view.currency, view.hosted_apis)))
        parts.append(section("Hosted and own", _split(view, title)))
    if view.idle:
        parts += [Text(""), Text(f"{view.idle:,.2f} of it for pools that nobody asked")]
    if view.fine_tunes:
        saved = view.alone - view.own.cost
        parts += [Text(""), Text(_alone(view, saved), style="green" if saved > 0 else "")]
    if view.apis:
        parts.append(section("The same tokens at an API's prices", _apis(view)))
    for want, names in (("their hours", view.unpriced), (f"a price in {view.currency}", view.unpriced_hosted)):
        if names:
            parts += [Text(""), Text(f"in no sum, for want of {want}: {', '.join(names)}", style="yellow")]
    return Group(*parts)


def _whole(view: CostView, title: str) -> Table:
    """All rows, with what of each was hosted where anything was."""
    if not view.hosted_apis:
        return _rows((view.by.upper(), title), view.currency, view.rows, view.total)
    made = _numbers(table(view.by.upper(), view.currency, "OWN", "HOSTED", "TOKENS", title))
    for row in (*view.rows, view.total):
        cells = f"{row.cost:,.2f}", f"{row.cost - row.hosted:,.2f}", f"{row.hosted:,.2f}", f"{row.tokens:,}", _each(row)
        made.add_row(row.name, *cells, style="bold" if row is view.total else "")
    return made


def _split(view: CostView, title: str) -> Table:
    made = _numbers(table("", view.currency, "SHARE", "TOKENS", "SHARE", title))
    for row in (view.hosted, view.own, view.total):
        cells = f"{row.cost:,.2f}", _part(row.cost, view.total.cost), f"{row.tokens:,}"
        style = "bold" if row is view.total else ""
        made.add_row(row.name, *cells, _part(row.tokens, view.total.tokens), _each(row), style=style)
    return made


def _part(some: float, whole: float) -> str:
    return f"{some / whole:.0%}" if whole else "-"


def _each(row: CostRow) -> str:
    return "-" if row.per_million is None else f"{row.per_million:,.2f}"


def _alone(view: CostView, saved: float) -> str:
    text = f"{view.fine_tunes} fine-tunes with a pool each: {view.alone:,.2f} {view.currency}; shared pools saved "
    share = f" ({saved / view.alone:.0%})" if view.alone else ""
    return f"{text}{saved:,.2f}{share}"


def _rows(names: tuple[str, str], currency: str, rows: list[CostRow], total: CostRow | None = None) -> Table:
    made = _numbers(table(names[0], currency, "TOKENS", names[1]))
    for row in (*rows, *([total] if total else [])):
        made.add_row(row.name, f"{row.cost:,.2f}", f"{row.tokens:,}", _each(row), style="bold" if row is total else "")
    return made


def _apis(view: CostView) -> Table:
    made = _numbers(table("API", view.currency, "BREAK-EVEN TOKENS PER HOUR", "NOW"))
    for api in view.apis:
        even = api.break_even_tokens_per_hour
        now = "-" if even is None else f"{view.tokens_per_hour / even:.0%}"
        made.add_row(api.name, f"{api.cost:,.2f}", "-" if even is None else f"{even:,.0f}", now)
    return made


def _numbers(made: Table) -> Table:
    for column in made.columns[1:]:
        column.justify = "right"
        column.ratio = None
    return made
