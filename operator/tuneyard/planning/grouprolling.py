"""How a LeaderWorkerSet's groups are replaced by those of another template, without serving less meanwhile.

Rules:
- with `update: Surge` there is one group more for as long as that takes: it is made from the new template while all
  others are held (`partition`), and once it serves they are replaced one at a time, and it goes last. So there are
  never fewer that serve than are wanted;
- LeaderWorkerSets have a surge of their own, which is not used: with one replica it never begins, and a
  `maxUnavailable` of 0 is refused by Kubernetes 1.37, where it reaches a StatefulSet (LWS 0.8);
- with `update: Replace` one group at a time goes before its successor comes;
- groups that serve nobody are replaced without waiting for anybody: nothing is lost with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tuneyard.api import names
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.pools import Pool


class Rolling(NamedTuple):
    """How many groups there are to be now, and from which one on they are made from the new template."""

    groups: int
    partition: int = 0


def next_rolling(pool: Pool, mark: str, leaders: Iterable[PodObservation]) -> Rolling:
    """The step that is due. `mark`: the one of the template that is wanted; `leaders`: those that are not leaving."""
    wanted, end = pool.pods, Rolling(pool.pods)
    if not wanted or pool.serving.update == "Replace":
        return end
    named = {p.name: p for p in leaders}
    name = names.pool_groups(pool.name)
    extra = named.get(f"{name}-{wanted}")
    found = [p for number in range(wanted) if (p := named.get(f"{name}-{number}")) is not None]
    helps = extra is not None and extra.wanted_as == mark and _serves(extra)
    if any(p.wanted_as != mark and _serves(p) for p in found):
        return Rolling(wanted + 1, 0 if helps else wanted)
    whole = sum(p.wanted_as == mark and _serves(p) for p in found) >= wanted
    return Rolling(wanted + 1) if helps and not whole else end


def _serves(pod: PodObservation) -> bool:
    """By its own word and by Kubernetes', which goes by its adapters too."""
    return pod.ready and pod.report is not None and pod.report.engine == "Ready"
