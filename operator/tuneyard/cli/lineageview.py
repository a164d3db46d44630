"""What `tuneyard lineage` shows, as values: deployment -> revision -> adapter -> base, with the record of each. Pure.

Rules:
- it says what the objects say: a digest is the spec's, else the pinned one; what is not known is left out;
- what is named and does not exist is in the chain all the same, and marked as missing;
- a name is looked for among ModelDeployments, LoRAAdapters and BaseModels; `KIND/NAME` decides where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.conditions import find
from tuneyard.api.external import ExternalSpec
from tuneyard.api.lineage import Lineage
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.api.systemprompt import SystemPrompt
from tuneyard.cli.sourcetext import source_text
from tuneyard.cli.statusview import Read
from tuneyard.planning.loraadapter import TRAINED_FROM_BASE

Kind = Literal["ModelDeployment", "LoRAAdapter", "BaseModel"]
KIND_WORDS: Mapping[str, Kind] = {
    **dict.fromkeys(("mdep", "modeldeployment", "modeldeployments"), "ModelDeployment"),
    **dict.fromkeys(("lora", "loraadapter", "loraadapters"), "LoRAAdapter"),
    **dict.fromkeys(("bmodel", "basemodel", "basemodels"), "BaseModel"),
}
SHORT: Mapping[Kind, str] = {"ModelDeployment": "mdep", "LoRAAdapter": "lora", "BaseModel": "bmodel"}


class Made(ApiModel):
    """A base model or an adapter, and what it was made from. `missing`: it is named and does not exist."""

    name: str
    missing: bool = False
    digest: str | None = None
    source: str | None = None
    promoted_at: str | None = None
    promoted_by: str | None = None
    lineage: Lineage | None = None
    build: BuildStatus | None = None
    """Of a base that was built: of what, by what, and where it is."""


class MadeAdapter(Made):
    """An adapter; `warning`: what is wrong with its descent."""

    base_model: str | None = None
    system_prompt: SystemPrompt | None = None
    warning: str | None = None


class ServedRevision(ApiModel):
    """One revision of a deployment, with all it is made of. Weights are percentages."""

    deployment: str
    name: str
    role: str = ""
    """stable, candidate or nothing."""
    spec_weight: int
    weight: int | None = None
    stable_since: str | None = None
    adapter: MadeAdapter | None = None
    base: Made | None = None
    external: ExternalSpec | None = None
    """Where it is served, if it has no base here. What it was made of, only its API knows."""


class LineageView(ApiModel):
    """The chains that lead through one object."""

    kind: Kind
    namespace: str
    name: str
    adapter: MadeAdapter | None = None
    """The object itself, where it is a LoRAAdapter."""
    base: Made | None = None
    """The object itself, where it is a BaseModel; of a LoRAAdapter the one it is for."""
    adapters: list[MadeAdapter] = []
    """Of a BaseModel: the adapters that are for it."""
    revisions: list[ServedRevision] = []
    """Of a ModelDeployment: its own; of the others: all that serve it."""


def found_kinds(name: str, read: Read) -> list[Kind]:
    """The kinds that have an object of that name."""
    kinds: list[tuple[Kind, Sequence[ModelDeploymentResource | LoRAAdapterResource | BaseModelResource]]] = [
        ("ModelDeployment", read.deployments),
        ("LoRAAdapter", read.adapters),
        ("BaseModel", read.base_models),
    ]
    return [kind for kind, objects in kinds if any(o.metadata.name == name for o in objects)]


def _base(name: str, read: Read) -> Made:
    base = next((b for b in read.base_models if b.metadata.name == name), None)
    if base is None:
        return Made(name=name, missing=True)
    return Made(
        name=name,
        digest=base.pinned_digest,
        source=source_text(base.spec.source),
        promoted_at=base.status.promoted_at,
        promoted_by=base.status.promoted_by,
        lineage=base.spec.lineage,
        build=base.status.build,
    )


def _adapter(name: str, read: Read) -> MadeAdapter:
    adapter = next((a for a in read.adapters if a.metadata.name == name), None)
    if adapter is None:
        return MadeAdapter(name=name, missing=True)
    spec, status = adapter.spec, adapter.status
    warned = find(status.conditions, TRAINED_FROM_BASE)
    return MadeAdapter(
        name=name,
        digest=adapter.pinned_digest,
        source=source_text(spec.source),
        lineage=spec.lineage,
        base_model=spec.base_model,
        system_prompt=spec.system_prompt,
        promoted_at=status.promoted_at,
        promoted_by=status.promoted_by,
        warning=f"{warned.reason}: {warned.message}" if warned and warned.status == "False" else None,
    )


def _revision(deployment: ModelDeploymentResource, revision: Revision, read: Read) -> ServedRevision:
    name, rollout = revision.name, deployment.status.rollout
    told = next((t for t in deployment.status.traffic if t.revision == name), None)
    stable = rollout is not None and rollout.stable == name
    role = "stable" if stable else "candidate" if rollout is not None and rollout.candidate == name else ""
    return ServedRevision(
        deployment=deployment.metadata.name,
        name=name,
        role=role,
        spec_weight=deployment.spec.weight_of(name),
        weight=told.weight if told else None,
        stable_since=rollout.stable_since if rollout and stable else None,
        adapter=_adapter(revision.adapter, read) if revision.adapter else None,
        base=_base(revision.base_model, read) if revision.external is None else None,
        external=revision.external,
    )


def _serves(revision: Revision, kind: Kind, name: str) -> bool:
    return name == (revision.adapter if kind == "LoRAAdapter" else revision.base_model)


def lineage_view(kind: Kind, name: str, read: Read) -> LineageView:
    """The chains through an object that exists, from everything in its namespace."""
    if kind == "ModelDeployment":
        (deployment,) = (d for d in read.deployments if d.metadata.name == name)
        revisions = [_revision(deployment, r, read) for r in deployment.spec.revisions]
        return LineageView(kind=kind, namespace=deployment.metadata.namespace, name=name, revisions=revisions)
    served = [
        _revision(d, r, read)
        for d in sorted(read.deployments, key=lambda d: d.metadata.name)
        for r in d.spec.revisions
        if _serves(r, kind, name)
    ]
    if kind == "LoRAAdapter":
        (adapter,) = (a for a in read.adapters if a.metadata.name == name)
        return LineageView(
            kind=kind,
            namespace=adapter.metadata.namespace,
            name=name,
            adapter=_adapter(name, read),
            base=_base(adapter.spec.base_model, read),
            revisions=served,
        )
    (base,) = (b for b in read.base_models if b.metadata.name == name)
    mine = sorted(a.metadata.name for a in read.adapters if a.spec.base_model == name)
    return LineageView(
        kind=kind,
        namespace=base.metadata.namespace,
        name=name,
        base=_base(name, read),
        adapters=[_adapter(adapter, read) for adapter in mine],
        revisions=served,
    )
