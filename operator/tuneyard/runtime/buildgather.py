"""Reads what is known of a base's build, from the API server itself.

Jobs and their pods are not watched: they are looked at every few seconds until the build has succeeded, and at no other
time. So a Job that was just made is there in the next pass, and no attempt is made twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.planning.buildinputs import named_texts
from tuneyard.planning.buildobservations import BuildObservation, looked_at, text_digest
from tuneyard.planning.children import label_value
from tuneyard.systems.kube import objects
from tuneyard.systems.kube.client import Api

_JOB, _POD, _CONFIG_MAP = ("batch/v1", "Job"), ("v1", "Pod"), ("v1", "ConfigMap")


def wants_look(base: BaseModelResource | None) -> bool:
    """Whether there is something to build yet."""
    if base is None or base.spec.source.build is None:
        return False
    return base.status.build is None or not base.status.build.succeeded


def gather_build(api: Api, base: BaseModelResource, adapters: tuple[LoRAAdapterResource, ...]) -> BuildObservation:
    """Jobs, their pods and the calibration data. `adapters`: those that the steps name. Raises ApiError."""
    namespace, name = base.metadata.key
    selector = f"{names.LABEL_COMPONENT}={names.BUILD},{names.LABEL_BUILD}={label_value(name)}"
    # pods after Jobs: one whose Job is over is over too
    jobs = [j for j in objects.listed(api, *_JOB, namespace, selector) if _owned(j, base)]
    pods = objects.listed(api, *_POD, namespace, selector) if jobs else []
    build = base.spec.source.build
    texts = named_texts(build) if build else ()
    return BuildObservation(
        jobs=looked_at(jobs, pods),
        adapters=adapters,
        calibrations={(text, key): _digest(api, namespace, text, key) for text, key in texts},
    )


def _owned(job: Mapping[str, Any], base: BaseModelResource) -> bool:
    """Whether a Job is of this very object: labels hold only the beginning of a long name."""
    return any(o.get("uid") == base.metadata.uid for o in job["metadata"].get("ownerReferences") or ())


def _digest(api: Api, namespace: str, name: str, key: str) -> str | None:
    found = objects.get(api, *_CONFIG_MAP, namespace, name)
    text = (found.get("data") or {}).get(key) if found is not None else None
    return None if text is None else text_digest(text)
