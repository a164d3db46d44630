"""External revisions as gateways see them: where requests go, with which key, and why they cannot.

Rules:
- whether one is ready is what gateways say of it: they alone may read its key. The operator never has it, and takes an
  external revision for ready until a gateway says what it lacks: a gateway that is not heard of must not take the
  traffic of a revision that serves. A gateway without the key sends nothing there, whatever the operator thinks;
- one is not asked whether it works: that would cost tokens, and need the key. Its failures are seen by the judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tuneyard.api.documents import AppliedReport
from tuneyard.api.external import ExternalPricing, ExternalSpec
from tuneyard.api.modeldeployment import ModelDeploymentResource, Revision
from tuneyard.planning.plan import Redacted


@dataclass(frozen=True)
class Access:
    """What a gateway has for an external revision."""

    key: Redacted | None = None
    problem: str = ""
    """Why nothing can be sent; empty: it can."""
    soon: bool = False
    """That passes by itself in a moment, so that nobody needs to hear of it."""


Accesses = Callable[[ModelDeploymentResource, Revision], Access]
"""What there is for a revision."""


def nothing_asked(_deployment: ModelDeploymentResource, _revision: Revision) -> Access:
    """Where nobody keeps keys: every one is ready, and none is sent."""
    return Access()


@dataclass(frozen=True)
class ExternalRoute:
    """Where requests of an external revision go."""

    host: str
    port: int
    authority: str
    path: str
    """Of the URL; it stands in the place of `/v1`."""
    url: str
    access: Access = Access()
    pricing: ExternalPricing | None = None
    """What its tokens cost now; it is written down with each request."""

    @property
    def lacks(self) -> str:
        """What somebody must do something about; empty: nothing."""
        return "" if self.access.soon else self.access.problem


def external_route(external: ExternalSpec | None, access: Access | None) -> ExternalRoute | None:
    """The route of a revision, None for one that has pods."""
    if external is None or access is None:
        return None
    place = external.host, external.port, external.authority, external.path, external.url
    return ExternalRoute(*place, access, external.pricing)


def accesses_of(deployment: ModelDeploymentResource, accesses: Accesses) -> dict[str, Access]:
    """What there is for each external revision."""
    return {r.name: accesses(deployment, r) for r in deployment.spec.revisions if r.external is not None}


def lacking_of(accesses: Mapping[str, Access]) -> frozenset[str]:
    """Those to which nothing can be sent."""
    return frozenset(name for name, access in accesses.items() if access.problem)


def told_lacking(deployment: ModelDeploymentResource, reports: Iterable[AppliedReport]) -> dict[str, str]:
    """The same as gateways tell it, of external revisions of this very object; one gateway's word is enough."""
    key, external = "/".join(deployment.metadata.key), {r.name for r in deployment.spec.revisions if r.external}
    if not external:
        return {}
    told = (report.deployments.get(key) for report in reports)
    found: dict[str, str] = {}
    for one in told:
        if one is not None and one.uid == deployment.metadata.uid:
            found |= {name: words for name, words in one.lacking.items() if name in external}
    return found


def secrets_of(deployment: ModelDeploymentResource) -> set[tuple[str, str]]:
    """The Secrets, by namespace and name, that its external revisions name."""
    named = (r.external.credentials for r in deployment.spec.revisions if r.external)
    return {(deployment.metadata.namespace, one.name) for one in named if one is not None}
