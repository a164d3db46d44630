"""The generated CRDs say what the classes say, and stay within what the API server accepts."""

from __future__ import annotations

from functools import cache

import pytest

from tuneyard.api.crds import KINDS, crd, main, rendered


def walk(schema, path="spec"):
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from walk(schema[part], f"{path}[]")


@cache
def schema_of(kind):
    return crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.kind)
def test_every_string_and_list_of_a_spec_is_bounded(kind):
    for path, schema in walk(schema_of(kind)):
        if schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema, f"{path}: CEL's cost budget needs maxLength"
        if schema.get("type") == "array":
            assert "maxItems" in schema, f"{path}: CEL's cost budget needs maxItems"
        if "additionalProperties" in schema:
            assert "maxProperties" in schema, path


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.kind)
def test_schemas_are_structural(kind):
    for path, schema in walk(schema_of(kind)):
        assert not {"$ref", "title", "default"} & set(schema), path
        assert schema.get("type") or schema.get("x-kubernetes-int-or-string"), f"{path} has no type: {schema}"


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.kind)
def test_no_bound_is_exclusive(kind):
    """OpenAPI's is a bool beside a minimum, pydantic's a number: the API server takes no such CRD."""
    assert not [
        path for path, schema in walk(schema_of(kind)) if {"exclusiveMinimum", "exclusiveMaximum"} & schema.keys()
    ]


@pytest.mark.lasting
def test_check_says_which_file_is_stale(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tuneyard.api.crds.rendered", cache(rendered))  # the code does not change meanwhile
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / f"{KINDS[0].plural}.yaml").write_text("old")
    assert main(["--check", str(tmp_path)]) == 1
    assert "make generate" in capsys.readouterr().err
