"""What tests of every tier read out of a rollout's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def judged_by(rollout: Mapping[str, Any]) -> set[str]:
    """The objectives by which answers of both revisions have been judged; `rollout` is status.rollout."""
    told = (rollout.get("analysis") or {}).get("objectives") or ()
    return {o["objective"] for o in told if o["candidateJudged"] and o["stableJudged"]}
