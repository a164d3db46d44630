"""A pod that leaves in order serves what nobody else has, until somebody has it.

Rules:
- others get its adapters as if it were gone already; it only keeps, in the plan, those that it offers and none of them
  offers yet;
- its agent goes on offering what the plan keeps for it, for HAND_OVER_SECONDS at most, and only then says that it
  drains (agent/draining.py);
- operator and gateways send requests there only where no other pod can take them (endpoints.py), and believe a pod that
  is gone without a word for a while only: gateways, which see nothing but its annotation, for LAST_RESORT_SECONDS, the
  operator while Kubernetes finds it ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tuneyard.planning.placing import Host

HAND_OVER_SECONDS = 30.0
LAST_RESORT_SECONDS = 40.0
"""With some seconds for a pod to hear that it is to leave, and to say that it does."""


def with_leaving(
    places: Mapping[str, Sequence[str]], hosts: Iterable[Host], leaving: Sequence[Host]
) -> dict[str, tuple[str, ...]]:
    """The pods of each adapter, and the leaving ones that none of them can stand in for yet."""
    offered = {host.name: host.loaded for host in hosts}
    found = {}
    for adapter, pods in places.items():
        taken_over = any(adapter in offered[pod] for pod in pods)
        kept = () if taken_over else tuple(host.name for host in leaving if adapter in host.loaded)
        found[adapter] = tuple(sorted({*pods, *kept}))
    return found
