"""Lineage: what a fine-tune was made from, written down by whoever made it and kept for ever.

Rules:
- a record that could be rewritten proves nothing, so that all of it is immutable but `evals`: evaluations are made
  after the training too, and each is one more entry under a name of its own, never another value of an old one;
- `evals` is a list-map by name, so that a pipeline can add its own entry by server-side apply and touch no other;
- values of hyperparameters are texts: numbers would be written back in another form than they were trained with.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import ConfigDict, Field

from tuneyard.api.base import ApiModel
from tuneyard.api.schema import cel, unchanged

MAX_HYPERPARAMETERS = 64
MAX_EVALS = 64
VALUE_LENGTH = 256
"""Characters of a hyperparameter's value."""

Moment = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]
WebAddress = Annotated[str, Field(max_length=1024, pattern=r"^https?://[^\s]+$")]
ShortText = Annotated[str, Field(max_length=256)]


class Evaluation(ApiModel):
    """One result of one evaluation; never changed afterwards."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(
                    "self == oldSelf",
                    "an entry of lineage.evals is immutable: leave it as it is and add the new result under another name",
                    message_expression="'lineage.evals entry ' + self.name + ' is immutable: leave it as it is and add the "
                    "new result under another name (for example with its date)'",
                ),
                cel(
                    "has(self.score) || has(self.passed)",
                    "an entry of lineage.evals must say score or passed",
                ),
            ]
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=128)]
    score: float | None = None
    passed: bool | None = None
    dataset: Annotated[ShortText | None, Field(description="What it was measured on.")] = None
    run: Annotated[WebAddress | None, Field(description="Where the evaluation is recorded.")] = None
    evaluated_at: Moment | None = None


_FIXED = (
    "version",
    "parent",
    "dataset",
    "datasetHash",
    "hyperparameters",
    "run",
    "commit",
    "trainedBy",
    "trainedAt",
)
_IMMUTABLE = "lineage is immutable except evals: create a new object, under another name, with the corrected one"
_APPEND_ONLY = "lineage.evals is append only: keep every earlier entry as it is and add new ones"


class Lineage(ApiModel):
    """What it was made from, and how well it did; immutable except evals."""

    # optional chaining in one rule of the spec would read better, but the API server has no bound for its cost
    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                cel(unchanged(*_FIXED), _IMMUTABLE),
                cel(
                    "!has(oldSelf.evals) || (has(self.evals) && oldSelf.evals.all(o, self.evals.exists(n, n.name == o.name)))",
                    _APPEND_ONLY,
                    field_path=".evals",
                ),
            ]
        }
    )

    version: Annotated[str | None, Field(max_length=63, description="For example v3.")] = None
    parent: Annotated[
        ShortText | None,
        Field(
            description="What the training began with: a model in words, or the name of a LoRAAdapter, of which a condition warns."
        ),
    ] = None
    dataset: Annotated[ShortText | None, Field(description="Name or address of the training data.")] = None
    dataset_hash: Annotated[
        str | None,
        Field(max_length=256, description="What identifies the training data's contents, for example sha256:9f1c…"),
    ] = None
    hyperparameters: Annotated[
        dict[str, Annotated[str, Field(max_length=VALUE_LENGTH)]] | None,
        Field(
            max_length=MAX_HYPERPARAMETERS,
            json_schema_extra={"maxProperties": MAX_HYPERPARAMETERS},
            description='Texts: write lr: "2e-4".',
        ),
    ] = None
    run: Annotated[WebAddress | None, Field(description="Where the training is recorded.")] = None
    commit: Annotated[str | None, Field(max_length=64, description="Commit of the training's code.")] = None
    trained_by: ShortText | None = None
    trained_at: Moment | None = None
    evals: Annotated[
        list[Evaluation] | None,
        Field(
            max_length=MAX_EVALS,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
            description="Append only: entries are added, never changed or removed.",
        ),
    ] = None

    @property
    def parent_name(self) -> str | None:
        """The parent where it can be the name of an object, None where it is words."""
        return self.parent if self.parent and re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", self.parent) else None


LineageField = Annotated[Lineage | None, Field(description="What it was made from, and how well it did.")]

LINEAGE_STAYS = (
    cel("!has(oldSelf.lineage) || has(self.lineage)", "lineage cannot be removed", field_path=".lineage"),
    cel(
        f"has(oldSelf.lineage) || !has(self.lineage) || !({' || '.join(f'has(self.lineage.{f})' for f in _FIXED)})",
        _IMMUTABLE,
        field_path=".lineage",
    ),
)
"""The rules of a spec that has `lineage`: what came without one may get evals, and nothing else."""
