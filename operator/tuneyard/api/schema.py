"""Field types and CEL rules shared by the three kinds.

Every string has a maxLength and every list a maxItems, or the API server's cost budget for CEL is exceeded.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Field

from tuneyard.api.digests import DIGEST_PATTERN

Name = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
RevisionName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
ObjectName = Annotated[str, Field(max_length=253, min_length=1, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
Digest = Annotated[str, Field(max_length=71, pattern=DIGEST_PATTERN)]
Duration = Annotated[str, Field(max_length=16, pattern=r"^[0-9]+(s|m|h)$")]
Text = Annotated[str, Field(max_length=1024)]
Quantity = Annotated[
    str | int,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
        }
    ),
]

_SECONDS = {"s": 1, "m": 60, "h": 3600}


def seconds(duration: str) -> int:
    """Seconds of a duration such as `90s`, `10m` or `1h`; ValueError for anything else."""
    match = re.fullmatch(r"([0-9]+)(s|m|h)", duration)
    if match is None:
        raise ValueError(f"{duration!r} is not a duration: write a number and s, m or h, for example 10m")
    return int(match[1]) * _SECONDS[match[2]]


def cel(
    rule: str, message: str, *, message_expression: str | None = None, field_path: str | None = None
) -> dict[str, Any]:
    """One entry of x-kubernetes-validations; `message` is what stands in when the expression fails."""
    entry = {"rule": rule, "message": message}
    if message_expression:
        entry["messageExpression"] = message_expression
    if field_path:
        entry["fieldPath"] = field_path
    return entry


def exactly_one(owner: str, *fields: str) -> dict[str, Any]:
    """The rule that exactly one of these fields is set."""
    listed = ", ".join(f"has(self.{field})" for field in fields)
    names = ", ".join(fields)
    return cel(
        f"[{listed}].filter(x, x).size() == 1",
        f"{owner} must be exactly one of {names}",
        message_expression=f"'{owner} must be exactly one of {names}; found %d'.format([[{listed}].filter(x, x).size()])",
    )


def unchanged(*fields: str) -> str:
    """CEL: none of these fields (optional ones included) differs from what it was."""
    return " && ".join(
        f"has(self.{f}) == has(oldSelf.{f}) && (!has(self.{f}) || self.{f} == oldSelf.{f})" for f in fields
    )
