"""Views of `tuneyard status` as tables for a terminal. Pure: a view in, rich renderables out.

Rules:
- one bar shows both weights: full cells are what a revision gets, light cells what its spec would give it beyond;
- the first line says whether it is ready and why not, so that `| head -1` is an answer;
- files that are coming have a bar on a terminal (`Look.bars`), and words alone elsewhere;
- no meaning by colour alone: every state stands there as a word;
- 80 columns are enough: only the last column of a table may wrap, and bars are shorter below 100 columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuneyard.api.conditions import Condition
from tuneyard.cli.statusview import (
    AdapterOnPodView,
    AdapterView,
    BaseModelView,
    DeploymentView,
    EventView,
    Overview,
    PodView,
    RevisionView,
)
from tuneyard.planning.sizes import percent_said

WIDE = 100
_STATES = {
    "True": "green",
    "Ready": "green",
    "Loaded": "green",
    "False": "red",
    "Failed": "red",
    "Loading": "yellow",
    "Waiting": "yellow",
    "Starting": "yellow",
    "Draining": "yellow",
    "Leaving": "yellow",
    "Unknown": "yellow",
}
_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def duration(seconds: int | None) -> str:
    """Seconds as people read them: 42s, 5m, 3h, 12d."""
    if seconds is None:
        return "-"
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def bar(weight: int, spec_weight: int, *, plain: bool = False, cells: int = 20) -> str:
    """`weight` as full cells, what the spec would give beyond as light ones; 1 % is never no cell at all."""
    full, light = ("#", "-") if plain else ("█", "░")
    filled = min(cells, max(1, round(weight * cells / 100))) if weight else 0
    wanted = min(cells, max(1, round(spec_weight * cells / 100))) if spec_weight else 0
    return (full * filled + light * max(0, wanted - filled)).ljust(cells)


@dataclass(frozen=True)
class Look:
    """Where a view is shown. `width`: columns; `plain`: only ASCII in bars; `bars`: whether transfers have any."""

    width: int = WIDE
    plain: bool = False
    bars: bool = False

    def progress(self, words: str) -> str:
        """What is said of a transfer, with a bar in place of its first word."""
        said = percent_said(words) if self.bars else None
        if said is None:
            return words
        percent, rest = said
        return f"{bar(percent, 100, plain=self.plain, cells=10)} {percent} % {rest}"


def _state(word: str, *, problem: bool = False) -> Text:
    return Text(word, style="red" if problem else _STATES.get(word, ""))


def table(*columns: str, wrapping: bool = True) -> Table:
    """A table without lines; the last column takes the rest of the width and wraps."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns[:-1]:
        made.add_column(column, no_wrap=True, overflow="ellipsis")
    made.add_column(columns[-1], overflow="fold" if wrapping else "ellipsis", no_wrap=not wrapping, ratio=1)
    return made


def section(title: str, rows: Table) -> RenderableType:
    """A table under its title."""
    return Group(Text(""), Text(title, style="bold"), Padding(rows, (0, 0, 0, 2)))


def _headline(view: DeploymentView) -> Text:
    line = Text.assemble((f"{view.namespace}/{view.name}", "bold"), "  ")
    line.append("Ready" if view.ready else "Not ready", style="green" if view.ready else "red")
    if view.reason:
        line.append(f" ({view.reason})", style="dim" if view.ready else "red")
    if view.phase:
        line.append(f"  {view.phase}")
    line.append(f"  {duration(view.seconds_old)} old", style="dim")
    return line


def _remarks(view: DeploymentView) -> list[Text]:
    """What a person has to know before reading the tables."""
    lines = [Text(f'model "{view.model_name}"' + (f" at {view.url}" if view.url else ""))]
    if not view.conditions:
        lines.append(Text("No status yet: the operator has not seen it. Is it running?", style="yellow"))
    lines += [Text(words) for words in (view.rollout, view.mirror) if words]
    if view.stale:
        lines.append(Text("Status is of an older spec; the operator is catching up.", style="yellow"))
    if view.unserved:
        told = f"{view.unserved} % of requests are refused: the revision that should take them has no ready pod."
        lines.append(Text(told, style="red"))
    return lines


def _serves(revision: RevisionView) -> str:
    if revision.external:
        return f"{revision.external_model} at {revision.external}"
    return f"{revision.adapter} on {revision.base_model}" if revision.adapter else revision.base_model


def _remark(revision: RevisionView) -> Text | None:
    """Why weight is withheld, or that gateways are still applying it."""
    if revision.withheld:
        return Text(f"{revision.name} gets less than its spec: {revision.withheld}", style="yellow")
    if revision.verified or revision.weight is None or not (revision.weight or revision.spec_weight):
        return None
    return Text(f"{revision.name}: not every gateway has confirmed {revision.weight} % yet", style="yellow")


def _revisions(revisions: Sequence[RevisionView], look: Look) -> RenderableType:
    rows = table("REVISION", "ROLE", "WEIGHT", "GETS", "SPEC", "PODS", "SERVES")
    for index in (3, 4, 5):
        rows.columns[index].justify = "right"
    for revision in revisions:
        weight = revision.weight or 0
        cells = bar(weight, revision.spec_weight, plain=look.plain, cells=20 if look.width >= WIDE else 10)
        rows.add_row(
            revision.name,
            revision.role,
            Text(cells, style="green" if weight == revision.spec_weight else "yellow"),
            "-" if revision.weight is None else f"{revision.weight} %",
            f"{revision.spec_weight} %",
            str(revision.ready_endpoints),
            _serves(revision),
        )
    remarks = [Padding(remark, (0, 0, 0, 2)) for remark in map(_remark, revisions) if remark]
    return Group(section("Revisions", rows), *remarks)


def _adapter_words(adapter: AdapterOnPodView, look: Look) -> Text:
    words = Text.assemble(f"{adapter.adapter} ", _state(adapter.state))
    progress = look.progress(adapter.progress) if adapter.progress else None
    told = progress or ": ".join(part for part in (adapter.reason, adapter.message) if part)
    if told:
        words.append(f" {told}", style="red" if adapter.state == "Failed" else "yellow")
    return words


def _pods(pods: Sequence[PodView], look: Look) -> RenderableType:
    rows = table("POD", "STATE", "AGE", "ADAPTERS")
    for pod in pods:
        lines = [Text(pod.problem, style="red")] if pod.problem else []
        lines += [_adapter_words(adapter, look) for adapter in pod.adapters]
        words = Text("\n").join(lines) if lines else Text("-")
        rows.add_row(pod.name, _state(pod.state, problem=pod.problem is not None), duration(pod.seconds_old), words)
    if not pods:
        rows.add_row("(none yet)", "", "", "")
    return section("Pods", rows)


def _condition_style(condition: Condition) -> str:
    """Stalled and Reconciling are there only while true, and neither is good news."""
    if condition.type == "Stalled":
        return "red"
    return "yellow" if condition.type == "Reconciling" else _STATES.get(condition.status, "")


def _conditions(conditions: Sequence[Condition]) -> RenderableType:
    rows = table("CONDITION", "STATUS", "REASON", "MESSAGE")
    for condition in conditions:
        shown = Text(condition.status, style=_condition_style(condition))
        rows.add_row(condition.type, shown, condition.reason, condition.message)
    return section("Conditions", rows)


def _events(events: Sequence[EventView]) -> RenderableType:
    rows = table("AGE", "TYPE", "REASON", "EVENT")
    for event in events:
        words = f"{event.about}: {event.message}" + (f" (x{event.count})" if event.count > 1 else "")
        shown = Text(event.type, style="yellow" if event.type == "Warning" else "")
        rows.add_row(duration(event.seconds_ago), shown, event.reason, words)
    return section("Last events", rows)


def render_deployment(view: DeploymentView, look: Look) -> RenderableType:
    """One ModelDeployment in full."""
    parts: list[RenderableType] = [_headline(view), *_remarks(view)]
    parts += [_revisions(view.revisions, look), _pods(view.pods, look)]
    if view.conditions:
        parts.append(_conditions(view.conditions))
    if view.events:
        parts.append(_events(view.events))
    return Group(*parts)


def _place(namespace: str, name: str, *, everywhere: bool) -> str:
    return f"{namespace}/{name}" if everywhere else name


def _readiness(*, ready: bool, reason: str | None) -> Text:
    return Text(f"{ready} {reason or ''}".strip(), style="green" if ready else "red")


def _split(revisions: Sequence[RevisionView]) -> Text:
    """`v1 90 % · v2 0 of 10 %`: what each gets, and the spec where it differs."""
    words = Text()
    for revision in revisions:
        if not (revision.spec_weight or revision.weight):
            continue
        if words:
            words.append(", ")
        if revision.weight == revision.spec_weight:
            words.append(f"{revision.name} {revision.weight} %")
        else:
            gets = "-" if revision.weight is None else revision.weight
            words.append(f"{revision.name} {gets} of {revision.spec_weight} %", style="yellow")
    return words


def _deployments_table(views: Sequence[DeploymentView], *, everywhere: bool) -> RenderableType:
    rows = table("NAME", "READY", "PHASE", "AGE", "TRAFFIC")
    for view in views:
        rows.add_row(
            _place(view.namespace, view.name, everywhere=everywhere),
            _readiness(ready=view.ready, reason=view.reason),
            view.phase or "-",
            duration(view.seconds_old),
            _split(view.revisions),
        )
    return section("Model deployments", rows)


def _prewarmed(view: BaseModelView, look: Look) -> str:
    more = f": {look.progress(view.prewarm_progress)}" if view.prewarm_progress else ""
    return f"prewarmed on {view.prewarmed or '?'} nodes{more}"


def _base_models_table(views: Sequence[BaseModelView], look: Look, *, everywhere: bool) -> RenderableType:
    rows = table("NAME", "READY", "ENGINE", "TP", "PODS", "POOLS")
    for view in views:
        lines = [
            f"{pool.name} {pool.ready_replicas}/{pool.replicas}"
            + (f" (own pods of {pool.deployment})" if pool.deployment else "")
            + (f" {look.progress(pool.progress)}" if pool.progress else "")
            for pool in view.pools
        ]
        if view.prewarmed or view.prewarm_progress:
            lines.append(_prewarmed(view, look))
        rows.add_row(
            _place(view.namespace, view.name, everywhere=everywhere),
            _readiness(ready=view.ready, reason=view.reason),
            view.engine or "-",
            str(view.tensor_parallel_size or "-"),
            view.replicas or "-",
            Text("\n".join(lines) or "-"),
        )
    return section("Base models", rows)


def _adapters_table(views: Sequence[AdapterView], look: Look, *, everywhere: bool) -> RenderableType:
    coming = any(view.progress for view in views)
    rows = table("NAME", "READY", "LOADED", "RANK", "SIZE", "BASE", *(["PROGRESS"] if coming else []))
    for view in views:
        rows.add_row(
            _place(view.namespace, view.name, everywhere=everywhere),
            _readiness(ready=view.ready, reason=view.reason),
            view.loaded or "-",
            str(view.rank or "-"),
            view.size or "-",
            view.base_model,
            *([look.progress(view.progress) if view.progress else ""] if coming else []),
        )
    return section("Adapters", rows)


def render_overview(view: Overview, look: Look, *, everywhere: bool = False) -> RenderableType:
    """All objects, one line each; `everywhere` shows namespaces."""
    ready = sum(d.ready for d in view.deployments)
    parts: list[RenderableType] = [
        Text(f"{ready} of {len(view.deployments)} model deployments are ready", style="bold")
    ]
    if view.deployments:
        parts.append(_deployments_table(view.deployments, everywhere=everywhere))
    if view.base_models:
        parts.append(_base_models_table(view.base_models, look, everywhere=everywhere))
    if view.adapters:
        parts.append(_adapters_table(view.adapters, look, everywhere=everywhere))
    return Group(*parts)
