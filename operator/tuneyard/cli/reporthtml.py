"""Reports of gates as one HTML page with plots, which needs no other file and runs no script. Pure.

Rule: everything that was written elsewhere (names, messages, prompts, answers) is escaped: an answer is a stranger's.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from tuneyard.api.gatereports import GateCheck, GateResult, Sample
from tuneyard.cli.driftrender import drift_page
from tuneyard.cli.reportview import KINDS, Bar, ReportView, bars, limit, milliseconds
from tuneyard.planning.gatejudging import number

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem;border-top:1px solid #d5dbe3;padding-top:1rem}
table{border-collapse:collapse;margin:.5rem 0;width:100%}
td,th{text-align:left;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #e6eaf0;vertical-align:top}
th{font-weight:600}.n{text-align:right;font-variant-numeric:tabular-nums}
.Passed,.kept{color:#17703a}.Failed,.missed{color:#b3261e}.Skipped{color:#8a5a00}
small,.dim{color:#5b6675}td.t{white-space:pre-wrap;overflow-wrap:anywhere}
svg{width:100%;height:auto;margin:.25rem 0 1rem}svg text{font:11px system-ui,sans-serif;fill:#5b6675}
.c{fill:#2563b0}.s{fill:#c3ccd8}
"""
_WIDTH, _HEIGHT, _FOOT, _HEAD = 900.0, 160.0, 28.0, 20.0


def page(view: ReportView) -> str:
    """The whole page."""
    name = escape(f"{view.namespace}/{view.name}")
    body = [f"<h1>Gates of {name}</h1>", *_under_way(view)]
    if view.drift is not None:
        body.extend(drift_page(view.drift))
    if not view.results:
        body.append("<p>No gate has been passed or failed yet.</p>")
    for result in view.results:
        body.extend(_result(result))
    return document(f"Gates of {view.namespace}/{view.name}", body)


def document(title: str, body: list[str]) -> str:
    """A page of these parts, which are HTML; the title is text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _under_way(view: ReportView) -> Iterator[str]:
    for gate in view.under_way:
        words = f"{gate.name} of {view.candidate}: {gate.state}"
        since = f" since {gate.started_at}" if gate.started_at else ""
        yield f"<p><b>{escape(words)}</b>{escape(since)} <small>{escape(gate.message)}</small></p>"


def _result(result: GateResult) -> Iterator[str]:
    yield (
        f"<h2>{escape(result.revision)}, gate {escape(result.gate)}: "
        f'<span class="{result.outcome}">{result.outcome}</span></h2>'
    )
    against = f" against {result.stable}" if result.stable else ""
    yield f"<p><small>{escape(result.at + against)}, contents {escape(result.content_hash)}</small></p>"
    if result.checks:
        yield _checks(result.checks)
    else:
        yield f"<p>{escape(result.message)}</p>"
    report = result.report
    if report is not None and report.benchmark is not None:
        sides = report.benchmark
        yield f'<p class="dim">{sides.candidate.requests} requests to each in {report.seconds:.0f} s</p>'
        for kind, words in KINDS:
            found = bars(sides.candidate, sides.stable, kind)
            if found:
                yield _plot(words, found)
    if report is not None and report.samples:
        yield _samples(report.samples)


def _checks(checks: list[GateCheck]) -> str:
    rows = []
    for check in checks:
        stable = "" if check.stable is None else number(check.stable, check.unit)
        word = "kept" if check.passed else "missed"
        cells = (check.metric, number(check.value, check.unit), limit(check), stable)
        rows.append(
            f"<tr><td>{escape(cells[0])}</td>"
            + "".join(f'<td class="n">{escape(c)}</td>' for c in cells[1:])
            + f'<td class="{word}">{word}</td></tr>'
        )
    head = '<tr><th>Metric</th><th class="n">Value</th><th class="n">Limit</th><th class="n">Stable</th><th></th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _plot(words: str, found: list[Bar]) -> str:
    """Bars of both revisions side by side; the height is the share of a revision's answers."""
    highest = max(max(b.candidate, b.stable) for b in found) or 1.0
    slot, floor = _WIDTH / len(found), _HEAD + _HEIGHT
    parts = [
        f'<text x="0" y="12">{escape(words)}, share of answers</text>',
        f'<rect class="c" x="{_WIDTH - 190:.0f}" y="3" width="10" height="10"/>'
        f'<text x="{_WIDTH - 176:.0f}" y="12">candidate</text>',
        f'<rect class="s" x="{_WIDTH - 90:.0f}" y="3" width="10" height="10"/>'
        f'<text x="{_WIDTH - 76:.0f}" y="12">stable</text>',
    ]
    every = max(1, round(len(found) / 12))
    for n, bar in enumerate(found):
        for offset, css, share in ((0.08, "c", bar.candidate), (0.5, "s", bar.stable)):
            height = _HEIGHT * share / highest
            parts.append(
                f'<rect class="{css}" x="{slot * (n + offset):.1f}" y="{floor - height:.1f}" '
                f'width="{slot * 0.42:.1f}" height="{height:.1f}"/>'
            )
        if n % every == 0:
            parts.append(
                f'<text x="{slot * (n + 0.5):.1f}" y="{floor + 16:.0f}" text-anchor="middle">'
                f"up to {milliseconds(bar.upto)}</text>"
            )
    size = f"0 0 {_WIDTH:.0f} {_HEAD + _HEIGHT + _FOOT:.0f}"
    return f'<svg viewBox="{size}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'


def _samples(samples: list[Sample]) -> str:
    rows = [
        f'<tr><td class="t">{escape(s.prompt)}</td><td class="t">{escape(s.answer)}</td>'
        f'<td>{escape(s.check or "")}</td><td class="n">{"" if s.score is None else f"{s.score:.2f}"}</td></tr>'
        for s in samples
    ]
    head = '<tr><th>Prompt</th><th>Answer</th><th>Check</th><th class="n">Score</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"
