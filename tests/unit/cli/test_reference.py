"""The generated pages are those of the code, and people find what to do about every reason."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest
import yaml

from tuneyard.api import crds
from tuneyard.api.reasons import Reason
from tuneyard.cli import reference
from tuneyard.cli.reference import main, values_page

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("docs/reference", "charts/tuneyard")
PAGE, RENDERED = cache(reference.api_page), cache(crds.rendered)


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of the API is made once; the code does not change meanwhile."""
    monkeypatch.setattr(reference, "api_page", PAGE)
    monkeypatch.setattr(crds, "rendered", RENDERED)


@pytest.mark.lasting
def test_committed_pages_are_those_of_the_code() -> None:
    assert main(["--check", *(str(ROOT / folder) for folder in FOLDERS)]) == 0


def test_check_names_what_differs_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / folder for folder in FOLDERS]
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (folders[0] / "reasons.md").write_text("by hand")
    (folders[1] / "files" / "crds" / "gone.yaml").write_text("kind: CustomResourceDefinition")
    arguments = [str(folder) for folder in folders]
    assert main(["--check", *arguments]) == 1
    error = capsys.readouterr().err
    assert "reasons.md" in error
    assert "gone.yaml" in error
    assert "api.md" not in error
    assert main(arguments) == 0
    assert main(["--check", *arguments]) == 0


def test_every_value_of_the_chart_is_on_the_page_with_words() -> None:
    text = (ROOT / "charts/tuneyard/values.yaml").read_text()
    page = values_page(text)
    for key in yaml.safe_load(text):
        assert f"| `{key}" in page
    assert "| `gateway.service.nodePort` | `0` | Port on the nodes" in page


def test_every_reason_that_asks_for_something_is_in_the_guide() -> None:
    guide = (ROOT / "docs/howto/what-a-reason-means.md").read_text()
    well = (
        "Ready",
        "Reconciling",
        "Resolved",
        "Available",
        "Accepted",
        "Compatible",
        "Loaded",
        "Applied",
        "NotUsed",
        "Idle",
        "Asleep",
        "Steady",
        "Built",
    )
    going_on = ("Resolving", "Loading", "Starting", "Applying", "Draining", "Fetching")
    events = (
        "StepCompleted",
        "RolledBack",
        "CommandAccepted",
        "CommandRefused",
        "WeightChanged",
        "AdapterLoaded",
        "PoolCreated",
        "PoolDeleted",
        "DigestPinned",
        "Promoted",
        "AdapterSpread",
        "Woken",
        "DriftEnded",
        "ScaledUp",
        "ScaledDown",
        "BuildStarted",
        "BuildSucceeded",
    )
    missing = [r.value for r in Reason if r.value not in (*well, *going_on, *events) and f"`{r.value}`" not in guide]
    assert missing == []
