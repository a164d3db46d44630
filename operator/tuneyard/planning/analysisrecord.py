"""An analysis as JSON and back: what is known of a candidate must outlive the operator's process.

A few kilobytes whatever the traffic: sums, never single answers. A record that cannot be read (another version's, or
somebody's edit) is as good as none: evidence begins anew, which costs time and can neither reject nor pass.
"""

from __future__ import annotations

import json
import math

from pydantic import TypeAdapter, ValidationError

from tuneyard.planning.analysis import Analysis
from tuneyard.planning.sequential import BETS, Capital

_FORM: TypeAdapter[Analysis] = TypeAdapter(Analysis)


def recorded(analysis: Analysis) -> str:
    """The JSON text."""
    return json.dumps(_FORM.dump_python(analysis, mode="json"), separators=(",", ":"))


def restored(text: str) -> Analysis | None:
    """The analysis; None where the text is none."""
    try:
        analysis = _FORM.validate_json(text)
    except ValidationError:
        return None
    compared = (*analysis.comparisons.values(), *analysis.unnamed.values())
    capitals = [c for comparison in compared for c in (comparison.whole, comparison.step)]
    capitals += [watch.capital for watch in analysis.alone.values()]
    return analysis if all(map(_sound, capitals)) else None


def _sound(capital: Capital) -> bool:
    """Of the bets that are made now; one of other bets would be paid as if it had been theirs."""
    return len(capital.logs) == len(BETS) and all(map(math.isfinite, capital.logs))
