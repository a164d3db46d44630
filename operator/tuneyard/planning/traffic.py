"""Effective weights: the one function that operator and gateways share, so that both always agree.

Rules (rollout.md 1, 2, 5):
- a revision's weight never exceeds its ceiling: min(spec weight, what the rollout allows), and is 0 while no
  endpoint is ready; what is withheld goes to the stable revision;
- the stable revision is the only one that may get more than its spec weight;
- a revision that is loaded as soon as somebody asks for it (`on_demand`, see idling.py) takes its share like a ready
  one: its requests are held until it is loaded;
- without a ready stable revision the withheld share is served by nobody (`unserved`): a candidate that was meant for
  1 % of the users must not get all of them because something else broke.
Invariant: sum(weights) + unserved == 100, and no weight above 0 without a ready endpoint, or one on demand.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tuneyard.api.modeldeployment import ModelDeploymentSpec
from tuneyard.api.reasons import Reason


@dataclass(frozen=True)
class Split:
    """What each revision of a deployment really gets."""

    stable: str
    weights: Mapping[str, int]
    """Per revision of spec.revisions, 0 to 100."""
    withheld: Mapping[str, Reason]
    """Why a revision gets less than its spec weight."""
    unserved: int = 0


def choose_stable(spec: ModelDeploymentSpec, previous: str | None, ready: Mapping[str, int]) -> str:
    """The stable revision: the previous one while it exists, until another one is meant to get, and can take, it all.

    `ready` counts ready endpoints per revision. Without a previous one: the highest spec weight, ready or not, because
    an object that was deleted and created again must not make its candidate the stable one; a tie goes to the first.
    """
    names = [r.name for r in spec.revisions]
    whole = next((n for n in names if spec.weight_of(n) == 100 and ready.get(n, 0) > 0), None)
    if whole is not None:
        return whole
    if previous in names:
        return str(previous)
    return max(names, key=lambda n: (spec.weight_of(n), -names.index(n)))


def effective(
    spec: ModelDeploymentSpec,
    ready: Mapping[str, int],
    *,
    stable: str | None = None,
    allowed: Mapping[str, int] | None = None,
    on_demand: Collection[str] = (),
) -> Split:
    """Weights that may be served now.

    `ready`: ready endpoints per revision. `stable`: the stable revision that status names. `allowed`: per revision
    the weight above which the rollout does not go; a revision that it does not name is limited by spec alone.
    `on_demand`: the revisions that may take requests before they are ready.
    """
    chosen = choose_stable(spec, stable, ready)
    weights: dict[str, int] = {}
    withheld: dict[str, Reason] = {}
    for revision in (r.name for r in spec.revisions):
        wanted = spec.weight_of(revision)
        limit = wanted if revision == chosen or allowed is None else min(wanted, allowed.get(revision, wanted))
        if wanted and not ready.get(revision, 0) and revision not in on_demand:
            limit = 0
            withheld[revision] = Reason.NO_READY_ENDPOINT
        elif limit < wanted:
            withheld[revision] = Reason.PROGRESSING
        weights[revision] = limit
    rest = 100 - sum(weights.values())
    if rest and (ready.get(chosen, 0) or chosen in on_demand):
        weights[chosen] += rest
        rest = 0
    return Split(stable=chosen, weights=weights, withheld=withheld, unserved=rest)
