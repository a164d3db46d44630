"""What changed between two views of a ModelDeployment, as lines: `tuneyard status -w` where there is no terminal. Pure.

Rule: a line says what is now and what was before, so that a log of them tells the story without anything else.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuneyard.cli.statusview import AdapterOnPodView, DeploymentView, Overview, PodView, RevisionView


def _readiness(view: DeploymentView) -> str:
    return "ready" if view.ready else f"not ready ({view.reason})" if view.reason else "not ready"


def _weights(name: str, before: RevisionView | None, after: RevisionView) -> Iterator[str]:
    was = before.weight if before else None
    if after.weight is not None and after.weight != was and (before or after.weight or after.spec_weight):
        shown = "" if was is None else f"{was} -> "
        yield f"{name}: revision {after.name} gets {shown}{after.weight} % (spec {after.spec_weight} %)"
    if before and after.spec_weight != before.spec_weight:
        yield f"{name}: revision {after.name} spec {before.spec_weight} -> {after.spec_weight} %"
    if after.withheld and (before is None or before.withheld != after.withheld):
        yield f"{name}: revision {after.name} withheld: {after.withheld}"
    if before and after.verified and not before.verified:
        yield f"{name}: revision {after.name} at {after.weight} % on every gateway"


def _adapter_line(adapter: AdapterOnPodView) -> str:
    told = ": ".join(part for part in (adapter.reason, adapter.message) if part)
    return f"adapter {adapter.adapter} {adapter.state}" + (f" ({told})" if told else "")


def _pod(name: str, before: PodView | None, after: PodView) -> Iterator[str]:
    if before is None or before.state != after.state:
        shown = f"{before.state} -> " if before else ""
        problem = f" ({after.problem})" if after.problem else ""
        yield f"{name}: pod {after.name} {shown}{after.state}{problem}"
    # how far files are changes all the time, and is no event
    known = {a.adapter: a.model_copy(update={"progress": None}) for a in before.adapters} if before else {}
    for adapter in (a.model_copy(update={"progress": None}) for a in after.adapters):
        if known.get(adapter.adapter) != adapter and (before is not None or adapter.state != "Waiting"):
            yield f"{name}: pod {after.name} {_adapter_line(adapter)}"


def deployment_changes(before: DeploymentView | None, after: DeploymentView) -> list[str]:
    """Lines for everything that differs; with `before` None, for everything that is."""
    name = f"{after.namespace}/{after.name}"
    lines = []
    if before is None or _readiness(before) != _readiness(after):
        lines.append(f"{name}: {_readiness(after)}")
    if after.rollout and (before is None or before.rollout != after.rollout):
        lines.append(f"{name}: {after.rollout}")
    revisions = {r.name: r for r in before.revisions} if before else {}
    for revision in after.revisions:
        lines += _weights(name, revisions.pop(revision.name, None), revision)
    lines += [f"{name}: revision {gone} was removed" for gone in revisions]
    pods = {p.name: p for p in before.pods} if before else {}
    for pod in after.pods:
        lines += _pod(name, pods.pop(pod.name, None), pod)
    lines += [f"{name}: pod {gone} is gone" for gone in pods]
    return lines


def changes(before: Overview | None, after: Overview) -> list[str]:
    """The same for all ModelDeployments that were looked at."""
    known = {(d.namespace, d.name): d for d in before.deployments} if before else {}
    lines = []
    for deployment in after.deployments:
        lines += deployment_changes(known.pop((deployment.namespace, deployment.name), None), deployment)
    lines += [f"{namespace}/{name}: deleted" for namespace, name in known]
    return lines
