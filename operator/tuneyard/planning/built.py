"""A base that was built, as what it is afterwards: files somewhere, like any other base. Pure.

Rules:
- only what stands in the status counts: a result that nobody has written down yet is served by nobody;
- contents (contents.py) go by the spec, which says how the base is made: they are the same before and after.
"""

from __future__ import annotations

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.build import BaseSource
from tuneyard.api.sources import Source


def as_built(base: BaseModelResource) -> BaseModelResource | None:
    """The base with the source of its build's result; the base itself where nothing is built; None: not built yet."""
    if base.spec.source.build is None:
        return base
    source = result_source(base)
    if source is None:
        return None
    spec = base.spec.model_copy(update={"source": BaseSource.from_dict(source.to_dict())})
    return base.model_copy(update={"spec": spec})


def result_source(base: BaseModelResource) -> Source | None:
    """Where the result of the base's build is; None while there is none."""
    build, status = base.spec.source.build, base.status.build
    if build is None or status is None or not status.succeeded or status.key is None:
        return None
    return build.output.source(status.key, status.commit)
