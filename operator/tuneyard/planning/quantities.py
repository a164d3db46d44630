"""Quantities as Kubernetes writes them: 2, 500m, 16Gi."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?P<unit>[eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = "KMGTPE"
_LONGEST = 64
"""Numbers of thousands of digits hold up who reads them."""


def is_quantity(text: str) -> bool:
    """Whether the API server would take it as one."""
    return _QUANTITY.fullmatch(text) is not None


def whole(quantity: str | int) -> int | None:
    """The quantity as a whole number, rounded down; None for what is none."""
    text = str(quantity)
    match = _QUANTITY.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        return None
    number, unit = Decimal(match["number"]), match["unit"] or ""
    if unit.endswith("i"):
        return int(number * 1024 ** (_BINARY.index(unit[0]) + 1))
    power = int(unit[1:]) if unit[:1] in ("e", "E") and len(unit) > 1 else _DECIMAL.get(unit, 0)
    return int(number.scaleb(power)) if -_LONGEST < power < _LONGEST else None
