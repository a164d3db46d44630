"""What keeps a build's Job from being made: what the API server would refuse whole for one word. Pure."""

from __future__ import annotations

from tuneyard.api.build import Build
from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import Problem
from tuneyard.planning.quantities import is_quantity
from tuneyard.planning.servingchecks import is_label_value


def violation(build: Build) -> Problem | None:
    """The first thing that keeps a Job from being made, or None."""
    return unknown_step(build) or malformed_quantities(build) or malformed_node_selector(build)


def unknown_step(build: Build) -> Problem | None:
    """Newer versions may have more kinds, of steps and of outputs."""
    if any(step.kind is None for step in build.steps):
        return Problem(Reason.INVALID_SPEC, "source.build.steps has a step of a kind that this version does not know")
    if build.output.source("0", "0" * 40) is None:
        return Problem(Reason.INVALID_SPEC, "source.build.output is of a kind that this version does not know")
    return None


def malformed_quantities(build: Build) -> Problem | None:
    """Resources and sizes are quantities."""
    given: dict[str, str | int] = {
        f"resources.{kind}.{resource}": quantity
        for kind in ("limits", "requests")
        for resource, quantity in ((getattr(build.resources, kind) if build.resources else None) or {}).items()
    }
    if build.scratch is not None and build.scratch.size is not None:
        given["scratch.size"] = build.scratch.size
    for field, quantity in given.items():
        if not is_quantity(str(quantity)):
            words = f"source.build.{field}: {quantity!r} is not a quantity such as 2, 500m or 16Gi"
            return Problem(Reason.INVALID_SPEC, words)
    return None


def malformed_node_selector(build: Build) -> Problem | None:
    """Node selectors are labels."""
    for key, value in (build.node_selector or {}).items():
        if not is_label_value(value):
            return Problem(Reason.INVALID_SPEC, f"source.build.nodeSelector.{key}: {value!r} is not a label value")
    return None
