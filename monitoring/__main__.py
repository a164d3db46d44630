"""`python -m monitoring [--check]`: writes the dashboards and the rule file of the chart, and the page of runbooks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from monitoring.dashboards import DASHBOARDS
from monitoring.grafana import rendered
from monitoring.rules import alerts_page, rules_file

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "tuneyard" / "files"


def generated() -> dict[Path, str]:
    """Path -> text of every generated file."""
    dashboards = {CHART / "dashboards" / f"{d.name}.json": json.dumps(rendered(d), indent=1) + "\n" for d in DASHBOARDS}
    return {
        **dashboards,
        CHART / "rules.yaml": rules_file(),
        ROOT / "docs" / "reference" / "alerts.md": alerts_page(),
    }


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which differ; returns the exit code."""
    wanted = generated()
    surplus = [path for path in sorted((CHART / "dashboards").glob("*")) if path not in wanted]
    if "--check" not in arguments:
        for path, text in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for path in surplus:
            path.unlink()
        return 0
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale + surplus:
        sys.stderr.write(f"{path} is not what monitoring/ says: run `make generate`\n")
    return 1 if stale + surplus else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
