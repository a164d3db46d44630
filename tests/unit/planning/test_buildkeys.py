"""What counts in the key of a build's result, and what does not."""

from __future__ import annotations

import pytest

from tests.builders import BASE, Situation, base_model, digest
from tests.unit.planning.test_builds import KNOWN, around, build, built, key, planned
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.planning.buildinputs import credentials_of_build, found_inputs, named_texts
from tuneyard.planning.buildobservations import BuildObservation
from tuneyard.planning.observations import Problem
from tuneyard.planning.plan import Apply


@pytest.mark.parametrize("scheme", ["INT8", "FP8"])
def test_calibration_of_a_scheme_that_looks_at_none_counts_for_nothing(scheme: str) -> None:
    """The API refuses it now: objects from before may name texts, which may be gone."""
    plain = {"quantize": {"scheme": scheme, "baseModel": BASE}}
    data = {"s3": {"uri": "s3://texts/", "credentials": {"name": "texts"}}, "digest": digest("t"), "samples": 3}
    for given in ({"configMap": "gone"}, data):
        told = {"quantize": {**plain["quantize"], "calibration": given}}
        assert key(told) == key(plain)
        assert list(credentials_of_build(build(told))) == []
        assert named_texts(build(told)) == ()
        found = found_inputs(built("x", told), build(told), KNOWN)
        assert not isinstance(found, Problem)
        assert [i.told.kind for i in found] == ["BaseModel"]


def test_what_was_built_with_such_a_calibration_in_its_key_is_not_built_again() -> None:
    step = {"quantize": {"scheme": "INT8", "baseModel": BASE, "calibration": {"configMap": "texts"}}}
    done = built("merged", step, status=BuildStatus(state="Succeeded", key="0" * 32))
    seen = BuildObservation()
    plan, status = planned(Situation(bases=(base_model(digest=digest(BASE)), done), builds={"merged": seen}))
    assert status == done.status.build
    assert not [a for a in plan.actions if isinstance(a, Apply) and a.object["kind"] == "Job"]


def test_a_default_that_is_said_is_the_same_build() -> None:
    there = around(base_model(digest=digest(BASE)), one=digest("text"))

    def awq(length: int | None = None, parts: int | None = None) -> str:
        texts = {"configMap": "texts", "key": "one"} | ({"maxLength": length} if length else {})
        step = {"scheme": "AWQ", "baseModel": BASE, "calibration": texts}
        return key({"quantize": step | ({"tensorParallelSize": parts} if parts else {})}, there=there)

    assert awq() == awq(2048) == awq(parts=1) == awq(2048, 1)
    assert len({awq(), awq(1024), awq(parts=2)}) == 3
