"""Effective weights: the one function that operator and gateways share, so that both always agree.

Rules (rollout.md 1, 2, 5):
- a revision's weight never exceeds its ceiling: min(spec weight, what the rollout allows), and is 0 while no
  endpoint is ready; what is withheld goes to the stable revision;
- the stable revision is the only one that may get more than its spec weight;
- allowed 0 is a verdict: such a revision gets nothing, whatever the spec says, and does not become the stable one while
  there is another;
- in mode Progressive a revision of which the rollout says nothing gets nothing, and none becomes the stable one by its
  spec weight: an edit that the operator has not seen, or a lost status, must not give a candidate everything;
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


def choose_stable(
    spec: ModelDeploymentSpec,
    previous: str | None,
    ready: Mapping[str, int],
    allowed: Mapping[str, int] | None = None,
) -> str:
    """The stable revision: the previous one while it exists; in mode Manual until another one is meant to get it all.

    `ready` counts ready endpoints per revision, `allowed` is as for `effective`. Without a previous one that is listed:
    the first of `by_claim`, ready or not, because an object that was deleted and created again must not make its
    candidate the stable one.
    """
    names = [r.name for r in spec.revisions]
    limits = allowed or {}
    takers = () if spec.progressive else names
    whole = (n for n in takers if spec.weight_of(n) == 100 and ready.get(n, 0) > 0 and limits.get(n, 100) == 100)
    taker = next(whole, None)
    if taker is not None:
        return taker
    if previous in names:
        return str(previous)
    return by_claim(spec, previous, limits)[0]


def by_claim(spec: ModelDeploymentSpec, previous: str | None, allowed: Mapping[str, int]) -> list[str]:
    """The revisions, who should be the stable one first: the highest spec weight, of equals the first one listed.

    In mode Progressive a revision that is to get everything, of whose steps nothing is known, comes after those that
    spec.traffic names beside it and spec.revisions before it: it is the candidate. What is listed after it is newer,
    and has no weight. Those with a verdict come last.
    """
    names = [r.name for r in spec.revisions]
    named = {t.revision for t in spec.traffic}
    oldest = min((names.index(n) for n in named if n in names and allowed.get(n) != 0), default=0)
    unknown = spec.progressive and previous is None

    def claim(name: str) -> tuple[bool, bool, bool, int, int]:
        weight = spec.weight_of(name)
        has_steps_to_take = unknown and weight == 100 and names.index(name) > oldest
        return allowed.get(name) == 0, name not in named, has_steps_to_take, -weight, names.index(name)

    return sorted(names, key=claim)


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
    the weight above which the rollout does not go; a revision that it does not name is limited by spec alone in mode
    Manual, and gets nothing in mode Progressive. `on_demand`: the revisions that may take requests before they are
    ready.
    """
    chosen = choose_stable(spec, stable, ready, allowed)
    limits = allowed or {}
    weights: dict[str, int] = {}
    withheld: dict[str, Reason] = {}
    for revision in (r.name for r in spec.revisions):
        wanted = spec.weight_of(revision)
        rejected = limits.get(revision) == 0
        unnamed = 0 if spec.progressive else wanted
        limit = wanted if revision == chosen else min(wanted, limits.get(revision, unnamed))
        if rejected:
            limit = 0
        elif wanted and not ready.get(revision, 0) and revision not in on_demand:
            limit = 0
            withheld[revision] = Reason.NO_READY_ENDPOINT
        if limit < wanted:
            withheld.setdefault(revision, Reason.CANDIDATE_REJECTED if rejected else Reason.PROGRESSING)
        weights[revision] = limit
    rest = 100 - sum(weights.values())
    if rest and (ready.get(chosen, 0) or chosen in on_demand) and limits.get(chosen) != 0:
        weights[chosen] += rest
        rest = 0
    return Split(stable=chosen, weights=weights, withheld=withheld, unserved=rest)
