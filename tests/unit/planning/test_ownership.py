"""Who owns the fields of a child, in the shape in which the API server says it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tuneyard.api import names
from tuneyard.planning.ownership import owned_fields, owns

WANTED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {
        "name": "base-pool",
        "namespace": "team",
        "labels": {"tuneyard.dev/pool": "base"},
        "annotations": {"tuneyard.dev/content-hash": "abc"},
        "ownerReferences": [{"apiVersion": "tuneyard.dev/v1alpha1", "kind": "BaseModel", "name": "base", "uid": "u-1"}],
    },
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"tuneyard.dev/pool": "base"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "engine",
                        "args": ["serve", "--port=8000"],
                        "command": [],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "ports": [{"containerPort": 8000}],
                    }
                ],
                "volumes": [{"name": "shm", "emptyDir": {}}],
            }
        },
    },
}
OWNED: dict[str, Any] = {
    "f:metadata": {
        "f:annotations": {"f:tuneyard.dev/content-hash": {}},
        "f:labels": {"f:tuneyard.dev/pool": {}},
        "f:ownerReferences": {'k:{"uid":"u-1"}': {}},
    },
    "f:spec": {
        "f:replicas": {},
        "f:selector": {},
        "f:strategy": {"f:rollingUpdate": {"f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
        "f:template": {
            "f:spec": {
                "f:containers": {
                    'k:{"name":"engine"}': {
                        ".": {},
                        "f:args": {},
                        "f:env": {
                            'k:{"name":"A"}': {".": {}, "f:name": {}, "f:value": {}},
                            'k:{"name":"B"}': {".": {}, "f:name": {}, "f:value": {}},
                        },
                        "f:name": {},
                        "f:ports": {'k:{"containerPort":8000,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                    }
                },
                "f:volumes": {'k:{"name":"shm"}': {".": {}, "f:emptyDir": {}, "f:name": {}}},
            }
        },
    },
}
CONTAINER = ("f:spec", "f:template", "f:spec", "f:containers", 'k:{"name":"engine"}')


def without(*path: str) -> str:
    """What is left when somebody else has changed the field at this path: a node without a child is not written."""
    left = copy.deepcopy(OWNED)
    nodes = [left]
    for part in path[:-1]:
        nodes.append(nodes[-1][part])
    for node, part in zip(reversed(nodes), reversed(path), strict=True):
        if part == path[-1] or not node[part]:
            del node[part]
    return json.dumps(left)


def test_what_was_applied_and_left_alone_is_owned():
    assert owns(json.dumps(OWNED), WANTED)
    assert owns(None, WANTED), "where nobody knows, nothing is held against the object"


@pytest.mark.parametrize(
    "path",
    [
        ("f:spec", "f:replicas"),
        ("f:spec", "f:selector"),
        ("f:spec", "f:strategy", "f:rollingUpdate", "f:maxSurge"),
        ("f:metadata", "f:labels"),
        ("f:metadata", "f:ownerReferences", 'k:{"uid":"u-1"}'),
        (*CONTAINER, "f:args"),
        (*CONTAINER, "f:env", 'k:{"name":"B"}', "f:value"),
        (*CONTAINER, "f:env", 'k:{"name":"A"}'),
        (*CONTAINER, "f:ports", 'k:{"containerPort":8000,"protocol":"TCP"}'),
        CONTAINER,
        ("f:spec",),
    ],
)
def test_a_field_that_somebody_took_is_missed(path):
    assert not owns(without(*path), WANTED)


def test_nothing_owned_is_nothing_applied():
    assert not owns("{}", WANTED)


def test_the_operators_own_apply_is_told_from_every_other_writer():
    ours = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": {"f:spec": {}}}
    mark = {"manager": names.FIELD_MANAGER, "operation": "Update", "fieldsV1": {"f:metadata": {}}}
    other = {"manager": "kubectl", "operation": "Apply", "fieldsV1": {"f:data": {}}}
    assert owned_fields({"managedFields": [mark, other, ours]}) == '{"f:spec":{}}'
    assert owned_fields({"managedFields": [mark, other]}) == "{}"
    assert owned_fields({}) is None
