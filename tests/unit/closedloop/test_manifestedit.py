"""The text of manifests: what is added, and that every other byte stays."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from closedloop.files import StepError
from closedloop.manifestedit import with_resource, with_revision

EXAMPLES = Path(__file__).parents[3] / "examples"
V9 = {"name": "v9", "baseModel": "smollm2", "adapter": "acme-support-v9"}
HEAD = "kind: ModelDeployment\nmetadata: {name: m}\nspec:\n"


def changes(old: str, new: str) -> list[str]:
    lines = difflib.ndiff(old.splitlines(keepends=True), new.splitlines(keepends=True))
    return [line for line in lines if line[0] in "+-"]


def test_comments_quotes_and_order_stay() -> None:
    old = (EXAMPLES / "quickstart" / "deployment-90-10.yaml").read_text()
    changed = with_revision(old, "acme-support", V9, 1)
    told = changes(old, changed)
    assert [line[2:].strip() for line in told if line[0] == "+"] == [
        "- {name: v9, baseModel: smollm2, adapter: acme-support-v9}",
        *[line[2:].strip().replace("weight: 90", "weight: 89") for line in told if line[0] == "-"],
        "- {revision: v9, weight: 1}",
    ]
    assert len(told) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            "  revisions:\n  - name: v1 # first\n    baseModel: b\n\n  # who gets what\n  traffic:\n"
            "  - revision: v1\n    weight: 100 # all\n# end\n",
            "  revisions:\n  - name: v1 # first\n    baseModel: b\n"
            "  - {name: v9, baseModel: smollm2, adapter: acme-support-v9}\n\n  # who gets what\n  traffic:\n"
            "  - revision: v1\n    weight: 99 # all\n  - {revision: v9, weight: 1}\n# end\n",
        ),
        (
            "  revisions: [{name: v1, baseModel: b}]\n  traffic: [{revision: v1, weight: 100}]",
            "  revisions: [{name: v1, baseModel: b}, {name: v9, baseModel: smollm2, adapter: acme-support-v9}]\n"
            "  traffic: [{revision: v1, weight: 99}, {revision: v9, weight: 1}]",
        ),
        (
            "  revisions:\r\n    - {name: v1, baseModel: b}\r\n  traffic:\r\n    - {weight: 100, revision: v1}\r\n",
            "  revisions:\r\n    - {name: v1, baseModel: b}\r\n"
            "    - {name: v9, baseModel: smollm2, adapter: acme-support-v9}\r\n  traffic:\r\n"
            "    - {weight: 99, revision: v1}\r\n    - {revision: v9, weight: 1}\r\n",
        ),
        (
            "  revisions:\n  -   name: v1\n      baseModel: b\n      serving:\n        extraArgs:\n        - --a\n"
            "        - --b\n  traffic:\n  - revision: v1\n    weight: 100",
            "  revisions:\n  -   name: v1\n      baseModel: b\n      serving:\n        extraArgs:\n        - --a\n"
            "        - --b\n  - {name: v9, baseModel: smollm2, adapter: acme-support-v9}\n  traffic:\n"
            "  - revision: v1\n    weight: 99\n  - {revision: v9, weight: 1}",
        ),
        (
            "  traffic:\n  - {revision: v1, weight: 30}\n  - {revision: v2, weight: 70}\n"
            "  revisions:\n  - {name: v1, baseModel: b}\n  - {name: v2, baseModel: b}\n---\nkind: Other\n",
            "  traffic:\n  - {revision: v1, weight: 30}\n  - {revision: v2, weight: 69}\n"
            "  - {revision: v9, weight: 1}\n"
            "  revisions:\n  - {name: v1, baseModel: b}\n  - {name: v2, baseModel: b}\n"
            "  - {name: v9, baseModel: smollm2, adapter: acme-support-v9}\n---\nkind: Other\n",
        ),
    ],
    ids=["blocks", "brackets", "crlf", "nested", "heaviest-and-documents"],
)
def test_layouts(old: str, new: str) -> None:
    assert with_revision(HEAD + old, "m", V9, 1) == HEAD + new


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Other\n", "no ModelDeployment m"),
        (HEAD + "  revisions: []\n  traffic: []\n", "no spec.revisions in this file"),
        (HEAD + "  revisions: [{name: v9}]\n  traffic: [{revision: v9, weight: 100}]\n", "revision v9 already"),
        (HEAD + "  revisions: [{name: v1}]\n  traffic: [{revision: v1, weight: 1}]\n", "more than 1 %"),
        (HEAD.replace("{name: m}", "{name: m"), "not valid YAML"),
        (
            "x: &r [{name: v1}]\n" + HEAD + "  revisions: *r\n  traffic: [{revision: v1, weight: 100}]\n",
            "plain YAML lists",
        ),
    ],
)
def test_what_cannot_be_edited_is_refused(text: str, said: str) -> None:
    with pytest.raises(StepError, match=said):
        with_revision(text, "m", V9, 1)


def test_a_kustomization_lists_the_new_file_once() -> None:
    old = "# ours\nresources:\n- a.yaml # first\n- b.yaml\nnamespace: x\n"
    new = with_resource(old, "c.yaml")
    assert new == "# ours\nresources:\n- a.yaml # first\n- b.yaml\n- c.yaml\nnamespace: x\n"
    assert with_resource(new, "c.yaml") == new
