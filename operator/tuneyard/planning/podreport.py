"""What a pod says of itself, and how that fits an annotation.

Rules:
- nothing is said before the engine was looked at: a restarted agent takes nothing back;
- an engine is Ready for others only when its base has answered and nothing has silenced it;
- an adapter that has no place in the engine is said to have none; what serves keeps its place;
- a pod that the plan was made without says so: until it has its share, it must not replace one that has.

Size: the API server refuses an object whose annotations have more than 256 KiB together, and a refused report is read
by nobody. So messages and names out of artifacts are clipped where they are heard of, and a report that is longer than
`REPORT_BYTES` loses, in this order: what the operator knows already (source, digest, rank, modules and size of adapters
whose digest the plan has pinned; a failure keeps its source), rank, modules and size of the others, most of every
message, and last whole entries: failed ones first, then loading ones, then loaded ones, each from the plan's end.

A report holds about 2,250 serving adapters with names of 20 characters, 1,150 with names of 63; until their digests are
pinned 1,050 and 720. maxCpuLoras allows 1,024: while that many with long names are not pinned yet, no gateway hears of
the last ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Set

from tuneyard.api.documents import AdapterReport, KeepReport, PlannedAdapter, PodReport
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.names import short_hash
from tuneyard.api.reasons import Reason
from tuneyard.api.sources import Source
from tuneyard.planning.agentstate import EngineState, Failure, Prepared, State, current, within_room
from tuneyard.planning.beginnings import asks_for_turn
from tuneyard.planning.engines import Loading
from tuneyard.planning.remedies import clipped

REPORT_BYTES = 200 << 10
"""The longest report as JSON; the rest of the 256 KiB is for other people's annotations."""
_TERSE = 80
_LASTING = 3
"""Attempts in a row after which a failure is not one that passes: seconds after the first."""

_ORDER = ("Loaded", "Loading", "Failed")


def pod_report(state: State) -> PodReport | None:
    """What the pod says of itself, whatever its size; None until the engine was looked at."""
    if not state.engine.seen or state.plan is None:
        return None
    ready = state.engine.healthy and state.engine.answers and not state.engine.poisoned
    engine: EngineState = "Draining" if state.draining else "Ready" if ready else "Starting"
    served = within_room(state)
    return PodReport(
        address=state.address,
        engine=engine,
        base_model=state.base_model,
        tls=state.tls or None,
        asks_for_turn=True if asks_for_turn(state) else None,
        awaits_share=None if state.plan.pods is None else not state.plan.pods,
        adapters={
            a.name: _adapter_report(state, a, a.name in served, ready).model_copy(
                update={"source": source_mark(a.source)}
            )
            for a in state.plan.adapters
        },
    )


def source_mark(source: Source) -> str:
    """A source as a short hash, by which operator and agents know that they speak of the same."""
    return short_hash(json.dumps(source.to_dict(), sort_keys=True))


def failed_with(report: AdapterReport, adapter: LoRAAdapterResource) -> bool:
    """Whether the pod has failed with this adapter: one that has not read the new plan speaks of what had its name."""
    mine = report.source in (None, source_mark(adapter.spec.source)) and report.wished in (None, adapter.pinned_digest)
    return report.state == "Failed" and mine


def fitting(report: PodReport, pinned: Set[str], most: int = REPORT_BYTES) -> PodReport:
    """The report in at most `most` bytes of JSON; `pinned`: names whose digest the operator knows.

    Where not even the pod's own fields fit, these remain.
    """

    def known_already(name: str, said: AdapterReport) -> AdapterReport:
        if name not in pinned:
            return said
        # a failure without its source would count against whatever has the name
        source = said.source if said.state == "Failed" else None
        return _without_facts(name, said).model_copy(update={"digest": None, "source": source})

    shorter: tuple[Callable[[str, AdapterReport], AdapterReport], ...] = (known_already, _without_facts, _terse)
    for step in shorter:
        if len(as_text(report)) <= most:
            return report
        report = report.model_copy(update={"adapters": {n: step(n, a) for n, a in report.adapters.items()}})
    return report if len(as_text(report)) <= most else _with_fewer(report, most)


def as_text(report: PodReport | KeepReport) -> str:
    """The report as it stands in the annotation, all of it ASCII."""
    return json.dumps(report.to_dict(), separators=(",", ":"))


def _without_facts(_: str, said: AdapterReport) -> AdapterReport:
    return said.model_copy(update={"rank": None, "target_modules": None, "size_bytes": None})


def _terse(_: str, said: AdapterReport) -> AdapterReport:
    return said.model_copy(update={"message": clipped(said.message, _TERSE)}) if said.message else said


def _with_fewer(report: PodReport, most: int) -> PodReport:
    """The report with as many entries as fit."""
    left = most - len(as_text(report.model_copy(update={"adapters": {}})))
    kept = set()
    for name, said in sorted(report.adapters.items(), key=lambda entry: _ORDER.index(entry[1].state)):
        left -= len(json.dumps({name: said.to_dict()}, separators=(",", ":"))) - 1  # two braces go, a comma comes
        if left < 0:
            break
        kept.add(name)
    return report.model_copy(update={"adapters": {n: a for n, a in report.adapters.items() if n in kept}})


def _adapter_report(state: State, planned: PlannedAdapter, has_room: bool, ready: bool) -> AdapterReport:
    prepared, failure = current(state, planned), state.failures.get(planned.name)
    if not has_room:
        return AdapterReport(
            state="Failed",
            reason=Reason.POOL_FULL,
            message=f"the pool's engines hold {state.max_cpu_loras} adapters: raise serving.lora.maxCpuLoras (its pods "
            "restart) or remove adapters",
        )
    if failure is not None:
        return _failed_report(failure, prepared, planned.digest)
    if prepared is None:
        transfer = state.transfers.get(planned.name)
        reason = Reason.FETCHING if transfer else Reason.RESOLVING
        overdue = True if planned.name in state.slow else None
        return AdapterReport(state="Loading", digest=planned.digest, reason=reason, transfer=transfer, overdue=overdue)
    known = AdapterReport(
        state="Loading",
        digest=prepared.digest,
        engine_name=prepared.engine_name,
        reason=Reason.LOADING if ready and _is_heard(state, prepared) else Reason.ENGINE_NOT_READY,
        rank=prepared.rank,
        target_modules=list(prepared.target_modules),
        size_bytes=prepared.size_bytes,
    )
    if not ready or prepared.engine_name not in state.proven:
        return known
    warning = state.proven[prepared.engine_name]
    return known.model_copy(update={"state": "Loaded", "reason": None, "warning": warning and warning.value})


def _is_heard(state: State, prepared: Prepared) -> bool:
    """Whether the engine that runs should answer with it soon; one that was begun without it never does (turns.py)."""
    return state.loading is not Loading.AT_START or prepared.engine_name in (state.begun or ())


def _failed_report(failure: Failure, prepared: Prepared | None, wished: str | None) -> AdapterReport:
    return AdapterReport(
        state="Failed",
        digest=failure.digest or (prepared.digest if prepared else None),
        engine_name=prepared.engine_name if prepared else None,
        reason=failure.reason.value,
        message=failure.message,
        wished=wished,
        lasting=failure.attempts >= _LASTING or failure.retry_at == math.inf or None,
    )
