"""The base of every API class: camelCase outside, snake_case inside, immutable.

Unknown fields are ignored on reading, because the API server prunes them already and an older process must be
able to read what a newer one wrote.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """A part of a custom resource or of a document that Tuneyard's processes exchange."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", validate_default=False
    )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as the API server stores it: camelCase, without fields that are unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read the JSON form; raises pydantic.ValidationError where it does not fit."""
        return cls.model_validate(data)


_Document = TypeVar("_Document", bound=ApiModel)


def parsed(document: type[_Document], text: str | None) -> _Document | None:
    """A document from JSON text, or None where there is none or it does not fit."""
    if not text:
        return None
    try:
        return document.model_validate_json(text)
    except ValidationError:
        return None
