"""`tuneyard report` for a terminal and as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.toyworld.drifting import FIRST, OTHER, hours, run, watched
from tests.toyworld.gates import QUALITY, SPEED
from tests.toyworld.rollouts import RolloutWorld, canary
from tests.unit.cli.test_status_render import compare, shown
from tuneyard.api import names
from tuneyard.api.drift import FeedbackSpan, KeptFeedback
from tuneyard.api.gatereports import BenchmarkNumbers, EvaluationNumbers, GateReport, GateReports, Sample
from tuneyard.cli.driftview import DriftView, drift_line
from tuneyard.cli.reporthtml import page
from tuneyard.cli.reportrender import render_report
from tuneyard.cli.reportview import ReportView, bars, report_view
from tuneyard.gate.asking import Answer
from tuneyard.gate.measures import side
from tuneyard.planning.gateobservations import REPORTS_KEY

HOSTILE = "<script>alert(1)</script>\x1b[31m"


def answers(slower: float) -> list[Answer]:
    return [Answer(tokens=20, ttft=slower * (80 + n), itl=slower * 8, e2e=slower * (300 + 3 * n)) for n in range(40)]


def world() -> RolloutWorld:
    """v2 has passed one gate and failed the next, v3 waits for its first one."""
    world = canary(gates=[SPEED, QUALITY])
    numbers = BenchmarkNumbers(candidate=side(answers(1.05)), stable=side(answers(1.0)))
    world.gates.end(GateReport(benchmark=numbers, seconds=21, samples=[Sample(prompt="say it", answer="said")]))
    world.settle()
    sample = Sample(prompt="a page", answer=HOSTILE, check="exactMatch", score=0)
    world.gates.end(
        GateReport(evaluation=EvaluationNumbers(prompts=5, scores={"exactMatch": 0.6}), samples=[sample], seconds=3)
    )
    world.settle()
    world.wait(1)
    world.ready["v3"] = True
    world.spec({"v1": 0, "v2": 0, "v3": 100})
    world.settle()
    return world


def view(world: RolloutWorld, revision: str | None = None):
    stored = world.gates.objects["ConfigMap", names.gate_reports("chat")]
    return report_view(world.now, GateReports.model_validate_json(stored["data"][REPORTS_KEY]), revision)


def test_for_a_terminal() -> None:
    compare("report-120", shown(render_report(view(world())), 120))
    assert "\x1b[31m" not in shown(render_report(view(world())), 120)


def test_of_one_revision() -> None:
    found = view(world(), "v3")
    assert (found.results, [g.name for g in found.under_way]) == ([], ["speed", "quality"])
    found = view(world(), "v2")
    assert ([r.gate for r in found.results], found.under_way) == (["quality", "speed"], [])


def test_of_a_deployment_without_gates() -> None:
    nothing = report_view(RolloutWorld().now, None)
    assert "no gate has been passed or failed yet" in shown(render_report(nothing), 80)
    assert "No gate has been passed or failed yet." in page(nothing)


def drifting() -> ReportView:
    """Two baselines of the evaluation and three days of feedback."""
    world = watched()
    for score, digest in ((0.9, FIRST), (0.75, FIRST), (0.6, OTHER)):
        run(world, score, digest)
    stored = world.gates.objects["ConfigMap", names.gate_reports("chat")]
    kept = GateReports.model_validate_json(stored["data"][REPORTS_KEY])
    days = {"2026-01-08": (40, 2, 2, 0), "2026-01-09": (41, 5, 5, 1), "2026-01-10": (0, 0, 0, 0)}
    baseline = FeedbackSpan(first="2026-01-01", last="2026-01-07", counts=(280, 14, 14, 1))
    feedback = [KeptFeedback(content_hash="c", revision="v1", baseline=baseline, days=days)]
    return report_view(world.now, kept, None, feedback)


@pytest.mark.lasting
def test_stable_over_days() -> None:
    compare("report-drift-120", shown(render_report(drifting()), 120))
    text = page(drifting())
    look = Balanced()
    look.feed(text)
    assert (look.open, look.wrong) == ([], [])
    assert "exactMatch 0.75" in text and "2026-01-01 to 2026-01-07" in text
    samples = [Sample(prompt="a page", answer=HOSTILE, check="exactMatch", score=0)]
    hostile = drifting().model_copy(update={"drift": DriftView(message=HOSTILE, samples=samples)})
    assert "alert(1)" in page(hostile)
    assert "<script>" not in page(hostile)
    assert "\x1b[31m" not in shown(render_report(hostile), 120)


def test_stable_over_days_of_one_revision() -> None:
    world = watched()
    run(world, 0.9)
    stored = world.gates.objects["ConfigMap", names.gate_reports("chat")]
    kept = GateReports.model_validate_json(stored["data"][REPORTS_KEY])
    found = report_view(world.now, kept, "v2").drift
    assert found is not None and found.runs == []
    assert (found.known, found.message) == (False, ""), "the condition is about stable"
    stable = report_view(world.now, kept, "v1").drift
    assert stable is not None and (stable.known, stable.drifting) == (True, False)
    assert report_view(RolloutWorld().now, None).drift is None


def test_where_nothing_is_known_of_stable_nothing_good_is_said() -> None:
    world = watched()
    before = report_view(world.now, None)
    hours(world, 26)
    world.gates.end(GateReport(cannot_run="the judge is away"))
    world.settle()
    assert world.conditions["Drifting"] == ("False", "DriftUnmeasured")
    for view in (before, report_view(world.now, None)):
        assert view.drift is not None and not view.drift.known
        assert "Stable over days  not known" in shown(render_report(view), 120)
        assert 'Stable over days: <span class="Skipped">not known</span>' in page(view)
    line = drift_line(world.now)
    assert line is not None and line.startswith("whether stable drifts is not known: ")


class Balanced(HTMLParser):
    """Notes tags that are not closed in their order, and those that run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe") or any(name.startswith("on") for name, _ in attrs):
            self.wrong.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open.pop() != tag:
            self.wrong.append(f"/{tag}")


def test_the_page_stands_alone_and_runs_nothing() -> None:
    text = page(view(world()))
    look = Balanced()
    look.feed(text)
    assert (look.open, look.wrong) == ([], [])
    assert "&lt;script&gt;alert(1)" in text
    assert "http" not in re.sub(r"contents \w+", "", text)
    assert text.count("<svg") == 3


def test_bars_are_shares_of_each_revision() -> None:
    slow, quick = side([Answer(ttft=200.0), Answer(ttft=200.0)]), side([Answer(ttft=100.0)])
    found = bars(slow, quick, "ttft")
    assert [(b.candidate, b.stable) for b in (found[0], found[-1])] == [(0, 1), (1, 0)]
    assert len(found) == 5, "four buckets to an octave, and none left out"
    assert bars(slow, quick, "itl") == []
