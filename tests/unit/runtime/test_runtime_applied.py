"""What an apply leaves behind in memory: Secrets that nobody may read, and fields that nobody owns."""

from __future__ import annotations

from typing import Any

from tuneyard.api import names
from tuneyard.planning.observations import ChildObservation, child_observation
from tuneyard.runtime.applied import Applied

Object = dict[str, Any]
LABELS = {names.LABEL_POOL: "base", names.LABEL_BASE_MODEL: "base"}


def stored(kind: str, name: str, fields: Object | None = None) -> Object:
    entry = {"manager": names.FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields or {"f:data": {}}}
    metadata = {"name": name, "namespace": "team", "uid": "u", "resourceVersion": "7", "labels": LABELS}
    return {"apiVersion": "v1", "kind": kind, "metadata": {**metadata, "managedFields": [entry]}}


def seen(applied: Applied, fields: Object) -> ChildObservation:
    return applied.seen(child_observation(stored("ConfigMap", "base-plan", fields)))


def test_fields_that_an_apply_did_not_get_are_no_reason_to_apply_again() -> None:
    applied = Applied()
    half: Object = {"f:data": {"f:plan": {}}}
    assert seen(applied, half).owned is not None, "another process applied it: who knows"
    applied.applied(stored("ConfigMap", "base-plan", half))
    assert seen(applied, half).owned is None
    assert seen(applied, {"f:data": {}}).owned is not None, "since then somebody has changed it"
    applied.deleted("ConfigMap", "team", "base-plan")
    assert seen(applied, half).owned is not None


def test_a_secret_counts_as_there_for_ten_minutes_and_less_while_a_pod_misses_it() -> None:
    clock = [0.0]
    applied = Applied(lambda: clock[0])
    pool = child_observation(stored("ConfigMap", "base-plan"))

    def known(*, missed: bool) -> bool:
        return applied.secret_beside(pool, missed=missed).uid == "u"

    assert not known(missed=False)
    applied.applied(stored("Secret", "base-engine-key"))
    assert known(missed=False) and known(missed=True)
    clock[0] = 11.0
    assert known(missed=False) and not known(missed=True)
    clock[0] = 601.0
    assert not known(missed=False)


def test_a_deletion_of_a_secret_asks_for_no_version_that_nobody_sees() -> None:
    applied = Applied()
    pool = child_observation(stored("ConfigMap", "base-plan"))
    assert applied.secret_beside(pool, missed=False).resource_version == ""
    applied.applied(stored("Secret", "base-engine-key"))
    assert applied.secret_beside(pool, missed=False).resource_version == ""
