"""What `tuneyard import` makes of values that trackers recorded: bounded, read as they were meant, written as such."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.fakes.trackers import SHA
from tuneyard.api.lineage import MAX_EVALS, MAX_HYPERPARAMETERS, VALUE_LENGTH, Lineage
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.sources import ImageSource, Source
from tuneyard.cli.manifest import adapter_manifest
from tuneyard.cli.sourcetext import parsed_source, source_text
from tuneyard.systems.trackers.record import Measured, Record, Selection, moment, number, value_text


def test_what_does_not_fit_is_noted() -> None:
    record = Record()
    record.add_parameters({**{f"k{n:03}": n for n in range(1, 100)}, "learning_rate": "x" * 999}, Selection())
    record.add_metrics({f"eval_{n:03}": n for n in range(1, 100)}, Selection())
    hyperparameters, evals = record.lineage.hyperparameters or {}, record.lineage.evals or []
    assert (len(hyperparameters), len(evals)) == (MAX_HYPERPARAMETERS, MAX_EVALS)
    assert len(hyperparameters["learning_rate"]) == VALUE_LENGTH, "what people ask about first is kept"
    assert record.notes == [
        "36 of 100 hyperparameters are left out: choose with --param",
        "35 of 99 evaluations are left out: choose with --eval",
    ]


def test_evaluations_get_names_that_the_api_takes() -> None:
    record = Record()
    record.add_metrics({"": 1, "eval/" + "x" * 200: 2, " ": 3}, Selection(evaluations=("*",)))
    record.add_evaluations([Measured("y" * 200, 4, "z" * 600)])
    found = Lineage.from_dict(record.lineage.to_dict()).evals or []
    assert [(len(e.name), e.score) for e in found] == [(7, 1), (128, 2), (9, 3), (128, 4)]
    assert [e.name for e in found[::2]] == ["unnamed", "unnamed_2"]


def test_metrics_of_the_training_alone_are_no_evaluations() -> None:
    record = Record()
    record.add_metrics({"loss": 1.0, "train_loss": 2.0}, Selection())
    assert record.lineage.evals is None
    assert record.notes == ["none of 2 metrics looks like an evaluation (loss, train_loss): choose with --eval"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (0, "0"),
        (2e-05, "2e-05"),
        ("a \n b", "a b"),
        ([1, "x"], "1, x"),
        ({"b": 1}, '{"b": 1}'),
    ],
)
def test_values_as_texts(value: Any, text: str) -> None:
    assert value_text(value) == text


@pytest.mark.parametrize(
    ("value", "found"),
    [(1, 1.0), ("0.5", 0.5), ("NaN", None), (float("inf"), None), (True, None), ("x", None), (None, None)],
)
def test_numbers(value: Any, found: Any) -> None:
    assert number(value) == found


@pytest.mark.parametrize(
    ("value", "unit", "found"),
    [
        ("2026-05-30T12:00:00+02:00", 1, "2026-05-30T10:00:00Z"),
        (1780135200000, 0.001, "2026-05-30T10:00:00Z"),
        ("1780135200000", 0.001, "2026-05-30T10:00:00Z"),
        (1e30, 1, None),
        ("soon", 1, None),
        (None, 1, None),
    ],
)
def test_moments(value: Any, unit: float, found: Any) -> None:
    assert moment(value, unit) == found


@pytest.mark.parametrize("word", ["s3://models/acme/v3/", f"hf://acme/support@{SHA}", "volume:models/acme/v3"])
def test_sources_as_words(word: str) -> None:
    assert source_text(parsed_source(word)) == word


@pytest.mark.parametrize(
    ("path", "word"), [(None, "image:r.example/m@sha256:00"), ("m", "image:r.example/m@sha256:00//m")]
)
def test_an_image_as_a_word_that_is_not_typed(path: str | None, word: str) -> None:
    assert source_text(Source(image=ImageSource(reference="r.example/m@sha256:00", path=path))) == word
    with pytest.raises(ValueError, match="is no source: write s3://"):
        parsed_source(word)


AMBIGUOUS = (
    "2e-4",
    "1_000",
    "yes",
    "No",
    "0x1F",
    "12:30:45",
    "+1",
    ".5",
    "null",
    "~",
    "1e3",
    ".nan",
    "2026-05-30",
    "-",
)


def test_texts_that_look_like_something_else_are_quoted() -> None:
    record = Record()
    record.fill(dataset="yes", version="3", trained_by="on", parent="null", commit="1234567")
    record.add_parameters(
        {f"k{n}": value for n, value in enumerate(AMBIGUOUS)} | {"yes": "a: b # c", "1": '"'}, Selection()
    )
    spec = LoRAAdapterResource.from_dict(
        {"metadata": {"name": "a"}, "spec": {"baseModel": "off", "source": {"volume": {"name": "v", "path": "1/2"}}}}
    ).spec.model_copy(update={"lineage": record.lineage})
    assert yaml.safe_load(adapter_manifest("a", spec))["spec"] == spec.to_dict()
