"""Pieces of Grafana's dashboards as JSON: panels, rows, variables, and where they stand on the page.

Rules: a dashboard is a pure function of its panels, so that the files can be compared; panels name their data source by
the variable `datasource`, so that one file fits every Grafana; a panel's description says what to make of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]
TOKENS = "si:tok/s"
"""Grafana's unit of tokens per second."""
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH = 24
_HEIGHTS = {"stat": 4, "table": 8, "timeseries": 8, "state-timeline": 7}

Shape = Literal["stat", "table", "timeseries", "state-timeline"]


@dataclass(frozen=True)
class Query:
    """One query of a panel and what its series are called; `{{label}}` is the label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel; `unit` is Grafana's name of it. In tables each row is a series, `legend` is not used."""

    title: str
    queries: tuple[Query, ...]
    description: str = ""
    unit: str = "short"
    shape: Shape = "timeseries"
    width: int = 8
    stacked: bool = False
    top: float | None = None
    """Where the axis ends, for what has a largest value."""
    labels_only: bool = False
    """Of a table whose values say nothing: they are 1 for what is there."""
    bad_above: float | None = None
    """From where on a stat is red."""


@dataclass(frozen=True)
class Row:
    """A headline and the panels under it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top, filled by a query for the values of a label."""

    name: str
    query: str
    several: bool = False
    """Several may be chosen; all are at first."""


@dataclass(frozen=True)
class Typed:
    """What is typed in at the top: a number or a name, with what stands there at first."""

    name: str
    first: str
    label: str


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    name: str
    """Of its file."""
    title: str
    description: str
    variables: tuple[Variable | Typed, ...]
    rows: tuple[Row, ...]

    @property
    def queries(self) -> Iterable[str]:
        """Every query of every panel."""
        return (query.expr for row in self.rows for panel in row.panels for query in panel.queries)


def panel(title: str, *queries: Query | str, **more: Any) -> Panel:
    """A panel; a query without a legend may be given as text."""
    return Panel(title, tuple(Query(q) if isinstance(q, str) else q for q in queries), **more)


def rendered(dashboard: Dashboard) -> Json:
    """The dashboard as Grafana imports it."""
    return {
        "uid": f"tuneyard-{dashboard.name}",
        "title": f"Tuneyard / {dashboard.title}",
        "description": dashboard.description,
        "tags": ["tuneyard"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "dashboards",
                "title": "Tuneyard",
                "tags": ["tuneyard"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_source_variable(), *map(_variable, dashboard.variables)]},
        "panels": list(_placed(dashboard.rows)),
    }


def _source_variable() -> Json:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source", "hide": 0}


def _variable(variable: Variable | Typed) -> Json:
    if isinstance(variable, Typed):
        first = {"text": variable.first, "value": variable.first}
        typed = {"name": variable.name, "label": variable.label, "type": "textbox", "query": variable.first}
        return {**typed, "current": first, "options": [{**first, "selected": True}], "hide": 0}
    everything = {"includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return {
        "name": variable.name,
        "label": variable.name.replace("_", " ").capitalize(),
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": variable.query, "refId": variable.name},
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        **(everything if variable.several else {"includeAll": False, "multi": False}),
    }


def _placed(rows: Iterable[Row]) -> Iterable[Json]:
    """Panels from left to right, line by line, each row under its headline."""
    number, y = 0, 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": _WIDTH, "h": 1},
        }
        y, x, height = y + 1, 0, 0
        for one in row.panels:
            number += 1
            if x + one.width > _WIDTH:
                x, y, height = 0, y + height, 0
            tall = _HEIGHTS[one.shape]
            yield _panel(one, number, {"x": x, "y": y, "w": one.width, "h": tall})
            x, height = x + one.width, max(height, tall)
        y += height


def _panel(one: Panel, number: int, place: Json) -> Json:
    table = one.shape == "table"
    targets = [
        {
            "refId": chr(ord("A") + at),
            "datasource": _SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend or "__auto",
            "instant": table or one.shape == "stat",
            **({"format": "table"} if table else {}),
        }
        for at, query in enumerate(one.queries)
    ]
    return {
        "id": number,
        "type": one.shape,
        "title": one.title,
        "description": one.description,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(one), "overrides": []},
        "options": _options(one),
        **({"transformations": [{"id": "organize", "options": {"excludeByName": _left_out(one)}}]} if table else {}),
    }


def _left_out(table: Panel) -> Json:
    """Columns that are not shown."""
    more = ("Value", "__name__", "alertstate") if table.labels_only else ()
    return dict.fromkeys(("Time", *more), True)


def _defaults(one: Panel) -> Json:
    steps: list[Json] = [{"color": "green", "value": None}]
    if one.bad_above is not None:
        steps.append({"color": "red", "value": one.bad_above})
    found: Json = {"unit": one.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if one.shape == "timeseries":
        found["min"] = 0
        stacking = {"mode": "normal" if one.stacked else "none", "group": "A"}
        found["custom"] = {"fillOpacity": 40 if one.stacked else 5, "lineWidth": 1, "stacking": stacking}
    if one.top is not None:
        found["max"] = one.top
    return found


def _options(one: Panel) -> Json:
    if one.shape == "stat":
        return {"colorMode": "value", "reduceOptions": {"calcs": ["lastNotNull"]}}
    if one.shape == "table":
        return {"showHeader": True}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    if one.shape == "state-timeline":
        return {"mergeValues": True, "showValue": "never", "legend": legend}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
