"""What fails in `make test` runs once more, and is never silent about it: its first failure is printed and kept.

On a machine with other work on it a test may be late through no fault of the code; one that passes then is listed as
unsteady at the end of the run, with where its first failure can be read. It is a fault to mend, in it or in the code.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_KEPT = Path(__file__).parents[1] / "build" / "unsteady"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = terminalreporter.stats.get("rerun", [])
    failed = {r.nodeid for r in terminalreporter.stats.get("failed", [])}
    unsteady = [r for r in reports if r.nodeid not in failed]
    if not unsteady:
        return
    _KEPT.mkdir(parents=True, exist_ok=True)
    terminalreporter.section("unsteady: failed once, then passed; mend them")
    for report in unsteady:
        file = _KEPT / (re.sub(r"[^\w.-]+", "_", report.nodeid)[-120:] + ".txt")
        file.write_text(f"{report.nodeid}\n\n{report.longreprtext}\n")
        terminalreporter.write_line(f"{report.nodeid} ({file.relative_to(_KEPT.parents[1])})")
        terminalreporter.write_line(report.longreprtext)
