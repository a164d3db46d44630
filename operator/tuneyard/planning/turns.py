"""Which pod's engine may begin anew for adapters, where engines take them only when they begin.

Rules:
- one pod at a time is away for it, and another one serves meanwhile, unless the pool has no other;
- whoever has the turn keeps it until it serves again, and a pod that served and does not now is waited for;
- a pod serves again when its adapters have answered: gateways send nothing for one before that, though the engine is
  ready for the base (its agent ends that: one that does not answer has failed);
- that has an end (`longest_turn`): a pod that does not come back keeps no adapter from the others;
- a pod that Kubernetes never found ready is not waited for: no node may have room for it, or it ends again and again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from tuneyard.api.documents import PoolPlan
from tuneyard.api.reasons import Reason
from tuneyard.planning.observations import PodObservation
from tuneyard.planning.timestamps import parsed_time, remaining

_BEGINNING = 600.0
"""Seconds that an engine has to come up with other adapters (systems/engines/llamacpp.py)."""
_MARGIN = 60.0


def longest_turn(drain_timeout: float) -> float:
    """Seconds after which a pod that is away is not waited for any more: it may answer what it has begun first."""
    return drain_timeout + _BEGINNING + _MARGIN


def turns(
    pods: Sequence[PodObservation], before: PoolPlan | None, seen: Mapping[str, str], now: datetime, longest: float
) -> tuple[list[str] | None, list[float]]:
    """The pod that has the turn, none while others are waited for, None: nobody asks; and when to look again.

    `seen`: poolplan.pods_seen, since when pods that served do not any more. `longest`: seconds, `longest_turn`.
    """
    since = {p.name: moment for p in pods if (moment := parsed_time(seen.get(p.name)))}
    left = {name: remaining(moment, longest, now) for name, moment in since.items()}
    awaited = {name for name, seconds in left.items() if seconds > 0}
    hearing = {p.name for p in pods if _hears_adapters(p)}
    serving = {p.name for p in pods if offers(p)} - since.keys() - hearing
    beginning = hearing - (since.keys() - awaited)  # a report outlives its agent and its node
    asking = sorted(p.name for p in pods if asks(p))
    waits = [left[name] for name in sorted(awaited)]
    held = (before.turns or ()) if before else ()
    having = [n for n in held if n in awaited | beginning or (n in asking and n in serving)]
    if having:
        return having, waits
    if not asking:
        return None, []
    # a pod that is away itself takes nothing from anybody
    may = [n for n in asking if n in serving | awaited and awaited <= {n} and (serving - {n} or len(pods) == 1)]
    return may[:1], waits


def offers(pod: PodObservation) -> bool:
    """Whether it says that it serves."""
    return pod.report is not None and pod.report.engine == "Ready"


def asks(pod: PodObservation) -> bool:
    """Whether its engine has to begin anew for adapters that lie ready."""
    return pod.report is not None and bool(pod.report.asks_for_turn)


def _hears_adapters(pod: PodObservation) -> bool:
    """Whether its engine runs, and has not answered yet with an adapter that it has begun with."""
    report = pod.report
    if report is None or not offers(pod) or asks(pod):
        return False
    return any(a.state == "Loading" and a.reason == Reason.LOADING for a in report.adapters.values())
