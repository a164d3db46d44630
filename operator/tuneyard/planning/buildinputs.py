"""What a build is made of: the objects that its steps name, found and known by their digests. Pure.

Rules:
- an input counts by its contents: its digest, or where nobody has read it yet a source that cannot move (a commit of a
  hub, the digest of an image). Anything else is waited for: what it would be made of is not known;
- a base that is built itself is an input once it is there, and none where it is built in few bits;
- what people named is looked up by name in the namespace; of what is missing the first is told.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.build import DEFAULT_PROMPTS, Build, BuildStep, CalibrationData
from tuneyard.api.buildtask import BuildInput, InputKind
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import COMMIT_PATTERN, Source
from tuneyard.planning.buildpresets import PRESETS
from tuneyard.planning.built import as_built
from tuneyard.planning.observations import Problem
from tuneyard.planning.resolvedserving import Serving, resolved_serving
from tuneyard.planning.servingchecks import host_path_not_allowed
from tuneyard.planning.settings import Settings

INPUTS = "/inputs"
Json = dict[str, Any]


@dataclass(frozen=True)
class FoundInput:
    """An input as a Job is given it."""

    told: BuildInput
    identity: str
    """What it is, wherever it lies: the same identity is the same contents."""
    volume: Json | None = None
    """The pod's volume that it is on, without a name; None: it is fetched."""
    folder: str = ""
    """Where that is mounted."""


@dataclass(frozen=True)
class Surroundings:
    """What there is in the namespace."""

    bases: Mapping[str, BaseModelResource]
    adapters: Mapping[str, LoRAAdapterResource]
    calibrations: Mapping[tuple[str, str], str | None]
    """Digest of the text, by ConfigMap and key; None: there is none."""
    settings: Settings


def named_adapters(build: Build) -> frozenset[str]:
    """The LoRAAdapters that the steps name."""
    return frozenset(name for kind, name in _named(build.steps) if kind == "LoRAAdapter")


def named_texts(build: Build) -> tuple[tuple[str, str], ...]:
    """The ConfigMaps with calibration data that the steps name, each with the key."""
    return tuple((c.config_map, c.key or DEFAULT_PROMPTS) for c in _calibrations(build.steps) if c.config_map)


def credentials_of_build(build: Build) -> Iterator[str]:
    """Names of the Secrets that its Job needs beside those of its inputs, and its pools for what it has made."""
    if build.output.credentials:
        yield build.output.credentials
    for calibration in _calibrations(build.steps):
        if calibration.s3 is not None and calibration.s3.credentials is not None:
            yield calibration.s3.credentials.name


def found_inputs(base: BaseModelResource, build: Build, around: Surroundings) -> tuple[FoundInput, ...] | Problem:
    """All that the steps read, each once, or the first thing that is not there or not known yet."""
    circle = _circle(base.metadata.name, around.bases)
    if circle is not None:
        return circle
    lean = _lean_input(build, around.bases)
    if lean is not None:
        return lean
    found: list[FoundInput] = []
    for number, (kind, name) in enumerate(dict.fromkeys(_named(build.steps))):
        look = _base_input if kind == "BaseModel" else _adapter_input
        one = look(name, f"{INPUTS}/{number}", around)
        if isinstance(one, Problem):
            return one
        found.append(one)
    for calibration in _calibrations(build.steps):
        one = _calibration_input(calibration, f"{INPUTS}/calibration", around)
        if isinstance(one, Problem):
            return one
        found.append(one)
    return tuple(found)


def _named(steps: Iterable[BuildStep]) -> Iterator[tuple[InputKind, str]]:
    for step in steps:
        if step.merge is not None:
            yield "BaseModel", step.merge.base_model
            yield "LoRAAdapter", step.merge.adapter
        for model in step.mergekit.models if step.mergekit else ():
            yield "BaseModel", model.base_model
            if model.adapter is not None:
                yield "LoRAAdapter", model.adapter
        for lean in (step.quantize, step.gguf):
            if lean is not None and lean.base_model is not None:
                yield "BaseModel", lean.base_model


def _pairs(steps: Iterable[BuildStep]) -> Iterator[tuple[str, str]]:
    """Each adapter with the base that a step adds it to."""
    for step in steps:
        if step.merge is not None:
            yield step.merge.base_model, step.merge.adapter
        for model in step.mergekit.models if step.mergekit else ():
            if model.adapter is not None:
                yield model.base_model, model.adapter


def adapter_of_another_base(build: Build, around: Surroundings) -> Problem | None:
    """An adapter is added to the base that it was trained on, and to no other."""
    for base, name in _pairs(build.steps):
        adapter = around.adapters.get(name)
        if adapter is not None and adapter.spec.base_model != base:
            words = f"LoRAAdapter {name} was trained for BaseModel {adapter.spec.base_model}, the step names {base}"
            return Problem(Reason.BASE_MODEL_MISMATCH, words)
    return None


def _calibrations(steps: Iterable[BuildStep]) -> Iterator[CalibrationData]:
    for step in steps:
        found = calibration_of(step)
        if found is not None:
            yield found


def calibration_of(step: BuildStep) -> CalibrationData | None:
    """The texts that a step measures the model on.

    Objects from before the API refused it name some for schemes that look at none: these are neither waited for nor
    part of what the result is.
    """
    given = step.quantize
    return given.calibration if given is not None and PRESETS[given.scheme].calibrated else None


def _circle(name: str, bases: Mapping[str, BaseModelResource]) -> Problem | None:
    """A base that is, by whatever way, made of itself would wait for ever."""
    ways: list[tuple[str, ...]] = [(name,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        known = bases.get(way[-1])
        build = known.spec.source.build if known else None
        for kind, used in _named(build.steps) if build else ():
            if kind == "BaseModel" and used == name:
                words = f"the build is made of itself: {' → '.join((*way, name))}"
                return Problem(Reason.INVALID_SPEC, words)
            if kind == "BaseModel" and used not in seen:
                seen.add(used)
                ways.append((*way, used))
    return None


def _lean_input(build: Build, bases: Mapping[str, BaseModelResource]) -> Problem | None:
    """No step works on weights in few bits: the tools would refuse them, after that build and for good."""
    for kind, name in _named(build.steps):
        known = bases.get(name) if kind == "BaseModel" else None
        made = known.spec.source.build if known is not None else None
        for step in made.steps if made is not None else ():
            if step.quantize is not None or step.gguf is not None:
                how = "quantised" if step.quantize is not None else "as GGUF"
                words = f"BaseModel {name} is built {how}, which no step can work on: name what it is made of"
                return Problem(Reason.INVALID_SPEC, words)
    return None


def _base_input(name: str, folder: str, around: Surroundings) -> FoundInput | Problem:
    known = around.bases.get(name)
    if known is None or known.metadata.deletion_timestamp:
        return Problem(Reason.BUILD_INPUT_MISSING, f"BaseModel {name} does not exist in this namespace")
    base = as_built(known)
    if base is None:
        return Problem(Reason.BUILD_PENDING, f"waits for the build of BaseModel {name}")
    serving = resolved_serving(base.spec.serving)
    build = known.spec.source.build
    if build is not None and build.output.volume is not None and base.spec.source.volume is not None:
        told = BuildInput(kind="BaseModel", name=name, digest=base.pinned_digest)
        claim = {"persistentVolumeClaim": {"claimName": build.output.volume.claim_name, "readOnly": True}}
        return _mounted(told, claim, folder, base.spec.source.volume.path)
    return _input("BaseModel", name, base.spec.source, base.pinned_digest, (folder, serving, around.settings))


def _adapter_input(name: str, folder: str, around: Surroundings) -> FoundInput | Problem:
    adapter = around.adapters.get(name)
    if adapter is None or adapter.metadata.deletion_timestamp:
        return Problem(Reason.BUILD_INPUT_MISSING, f"LoRAAdapter {name} does not exist in this namespace")
    base = around.bases.get(adapter.spec.base_model)
    serving = resolved_serving(base.spec.serving if base else None)
    source, digest = adapter.spec.source, adapter.pinned_digest
    return _input("LoRAAdapter", name, source, digest, (folder, serving, around.settings))


def _input(
    kind: InputKind, name: str, source: Source, digest: str | None, where: tuple[str, Serving, Settings]
) -> FoundInput | Problem:
    folder, serving, settings = where
    identity = digest or immovable(source)
    if identity is None:
        return Problem(
            Reason.BUILD_INPUT_MISSING,
            f"{kind} {name} has no digest yet: no pod has read it, and what its source holds may change",
        )
    plain = Source.from_dict({k: v for k, v in source.to_dict().items() if k != "build"})
    told = BuildInput(kind=kind, name=name, source=plain, digest=digest)
    if source.is_remote:
        return FoundInput(told, identity)
    if source.image is not None:
        image = {"image": {"reference": source.image.reference, "pullPolicy": settings.image_pull_policy}}
        return _mounted(told, image, folder, source.image.path or "", identity)
    volume = source.volume
    if volume is None or not volume.path or ".." in volume.path.split("/"):
        return Problem(Reason.INVALID_SPEC, f"{kind} {name} has a source that a build cannot read")
    declared = next((v for v in serving.artifact_volumes if v.name == volume.name), None)
    if declared is None:
        words = f"source.volume {volume.name} of {kind} {name} is not in serving.artifactVolumes of its BaseModel"
        return Problem(Reason.VOLUME_NOT_DECLARED, words)
    refused = host_path_not_allowed(serving, settings)
    if refused is not None:
        return refused
    if declared.persistent_volume_claim is not None:
        claim = {"claimName": declared.persistent_volume_claim.claim_name, "readOnly": True}
        return _mounted(told, {"persistentVolumeClaim": claim}, folder, volume.path, identity)
    path = declared.host_path.path if declared.host_path else "/nonexistent"
    host = {"hostPath": {"path": posixpath.normpath("/" + path.lstrip("/")), "type": "Directory"}}
    return _mounted(told, host, folder, volume.path, identity)


def _mounted(told: BuildInput, volume: Json, folder: str, path: str, identity: str | None = None) -> FoundInput:
    local = posixpath.normpath(f"{folder}/{path}")
    given = told.model_copy(update={"local_path": local})
    return FoundInput(given, identity or told.digest or "", volume, folder)


def immovable(source: Source) -> str | None:
    """What a source names that always has the same contents; None for one whose contents may change."""
    hub, image = source.hugging_face, source.image
    if hub is not None and re.match(COMMIT_PATTERN, hub.revision):
        return f"{hub.endpoint or 'hub'}/{hub.repo}@{hub.revision}"
    if image is not None and "@sha256:" in image.reference:
        return f"{image.reference}//{image.path or ''}"
    return None


def _calibration_input(data: CalibrationData, folder: str, around: Surroundings) -> FoundInput | Problem:
    if data.s3 is not None:
        told = BuildInput(kind="Calibration", name="s3", source=Source(s3=data.s3), digest=data.digest)
        return FoundInput(told, data.digest or "")
    name, key = data.config_map or "", data.key or DEFAULT_PROMPTS
    digest = around.calibrations.get((name, key))
    if digest is None:
        words = f"ConfigMap {name} with the calibration data does not exist in this namespace, or has no key {key}"
        return Problem(Reason.BUILD_INPUT_MISSING, words)
    if data.digest is not None and data.digest != digest:
        words = (
            f"{key} of ConfigMap {name} has digest {digest}, calibration.digest is {data.digest}: restore the data, or "
        )
        return Problem(Reason.DIGEST_MISMATCH, f"{words}make another BaseModel with its digest")
    told = BuildInput(kind="Calibration", name=name, digest=digest)
    volume = {"configMap": {"name": name, "items": [{"key": key, "path": DEFAULT_PROMPTS}]}}
    return _mounted(told, volume, folder, DEFAULT_PROMPTS, digest)
