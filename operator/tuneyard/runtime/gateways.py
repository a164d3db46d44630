"""What the gateways say they serve, what is asked of them and what becomes of answers: three long polls per gateway.

Rules:
- every Ready gateway pod that is not leaving is asked; one that leaves is forgotten with its reports;
- the word of one that does not answer does not count (polling.py), and each of its reports is looked at for
  itself: what it serves may be known while what is asked of it is not;
- only the ModelDeployments whose applied report has changed are woken, and by what is asked only those for which
  requests begin to wait, besides whom `demanded` names. Of whom other answers are told, `answered_by` hears.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tuneyard.api import names
from tuneyard.api.documents import AppliedDeployment, AppliedReport, DemandReport, DeploymentDemand, EvidenceReport
from tuneyard.planning.answers import AnswersView, Heard
from tuneyard.planning.demand import DemandView
from tuneyard.runtime.gather import GatewayView
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key
from tuneyard.runtime.polling import Poll, Said, connections
from tuneyard.systems.kube.client import Object


def gateway_addresses(pods: Iterable[Object]) -> dict[str, str]:
    """Pod name -> host:port of the gateways that take traffic: Ready, with an address, not leaving."""
    found: dict[str, str] = {}
    for pod in pods:
        status, metadata = pod.get("status") or {}, pod["metadata"]
        ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
        address = status.get("podIP")
        if ready and address and not metadata.get("deletionTimestamp"):
            host = f"[{address}]" if ":" in address else address
            found[metadata["name"]] = f"{host}:{names.GATEWAY_OBSERVE_PORT}"
    return found


@dataclass(frozen=True)
class _Followed:
    """The polls of one gateway."""

    address: str
    applied: Poll[AppliedReport]
    demand: Poll[DemandReport]
    evidence: Poll[EvidenceReport]

    def start(self) -> None:
        for poll in (self.applied, self.demand, self.evidence):
            poll.start()

    def stop(self) -> None:
        for poll in (self.applied, self.demand, self.evidence):
            poll.stop()


class Gateways:
    """Polls the gateways that it is told of; `wake` gets the keys that a report concerns, or None for all of them."""

    def __init__(
        self,
        token: str,
        wake: Callable[[list[Key] | None], None],
        demanded: Callable[[DemandView], Iterable[Key]] = lambda _: (),
        answered_by: Callable[[list[Key]], None] = lambda _: None,
    ) -> None:
        """`demanded`: whom what is asked concerns now, besides those for whom requests begin to wait.

        `answered_by` gets the keys of which a gateway tells other answers.
        """
        self._headers = {"Authorization": f"Bearer {token}"}
        self._wake = wake
        self._demanded = demanded
        self._answered_by = answered_by
        self._lock = threading.Lock()
        self._followed: dict[str, _Followed] = {}
        self._applied: dict[str, Said[AppliedReport]] = {}
        self._demand: dict[str, Said[DemandReport]] = {}
        self._evidence: dict[str, Said[EvidenceReport]] = {}
        # gateways are asked by address, and the token is what tells that the answer comes from one
        self._http = connections()

    def follow(self, addresses: Mapping[str, str]) -> None:
        """Poll exactly these from now on: name -> host:port."""
        with self._lock:
            gone = [n for n, followed in self._followed.items() if addresses.get(n) != followed.address]
            for name in gone:
                self._followed.pop(name).stop()
                self._applied.pop(name, None)
                self._demand.pop(name, None)
                self._evidence.pop(name, None)
            new = {n: self._polls(n, address) for n, address in addresses.items() if n not in self._followed}
            self._followed.update(new)
        for polls in new.values():
            polls.start()
        if gone or new:
            self._wake(None)

    def view(self) -> GatewayView:
        """What is known now."""
        with self._lock:
            said = {name: self._applied.get(name, Said()) for name in sorted(self._followed)}
            demand, answers = self._asked(), self._answers()
        applied = tuple(s.report for s in said.values() if s.report is not None and s.reachable)
        silent = tuple(name for name, s in said.items() if not s.reachable)
        return GatewayView(applied, len(said), silent, demand, answers)

    def answered(self) -> bool:
        """Whether every gateway has answered or failed to, so that the view is as good as it gets."""
        with self._lock:
            reports = (self._applied, self._demand, self._evidence)
            return all(name in heard for name in self._followed for heard in reports)

    def stop(self) -> None:
        """End all polls."""
        with self._lock:
            for polls in self._followed.values():
                polls.stop()
            self._followed.clear()

    def _polls(self, name: str, address: str) -> _Followed:
        http, headers, url = self._http, self._headers, f"http://{address}/v1"
        return _Followed(
            address,
            Poll(
                http,
                f"{url}/applied",
                headers,
                AppliedReport.model_validate_json,
                lambda r: self._hear_applied(name, r),
            ),
            Poll(
                http, f"{url}/demand", headers, DemandReport.model_validate_json, lambda r: self._hear_demand(name, r)
            ),
            Poll(
                http,
                f"{url}/evidence",
                headers,
                EvidenceReport.model_validate_json,
                lambda r: self._hear_evidence(name, r),
            ),
        )

    def _asked(self) -> DemandView:
        said = (self._demand.get(name, Said()) for name in sorted(self._followed))
        reports = tuple(s.report for s in said if s.report is not None and s.reachable)
        return DemandView(reports, len(self._followed))

    def _answers(self) -> AnswersView:
        said = (self._evidence.get(name, Said()) for name in sorted(self._followed))
        heard = (Heard(s.report, s.at) for s in said if s.report is not None and s.reachable)
        return AnswersView(tuple(heard), len(self._followed))

    def _hear_applied(self, name: str, report: AppliedReport | None) -> None:
        with self._lock:
            if name not in self._followed:
                return
            before = self._applied.get(name, Said())
            now = self._applied[name] = before.then(report)
        if before.reachable != now.reachable:
            self._wake(None)
        elif report is not None and before.report is not None:
            changed = changed_deployments(before.report.deployments, report.deployments)
            if changed:
                self._wake(changed)

    def _hear_demand(self, name: str, report: DemandReport | None) -> None:
        with self._lock:
            if name not in self._followed:
                return
            before = self._demand.get(name, Said())
            self._demand[name] = before.then(report)
            asked = self._asked()
        if report is None:
            return
        waited_for = begun_to_wait(before.report.deployments if before.report else {}, report.deployments)
        concerned = [*waited_for, *self._demanded(asked)]
        if concerned:
            self._wake(concerned)

    def _hear_evidence(self, name: str, report: EvidenceReport | None) -> None:
        with self._lock:
            if name not in self._followed:
                return
            before = self._evidence.get(name, Said())
            now = self._evidence[name] = before.then(report)
        told = now.report.deployments if now.report else {}
        if before.reachable == now.reachable:
            self._answered_by(other_answers(before.report, report))
        else:
            # its silence, too, is something that is said of all that it judges
            self._answered_by(_keys(told))


def other_answers(before: EvidenceReport | None, now: EvidenceReport | None) -> list[Key]:
    """The ModelDeployments of which two reports of one gateway tell other answers; all, once it judges or does not."""
    if before is None or now is None:
        return []
    old, new = before.deployments, now.deployments
    whole = before.judging != now.judging or before.process != now.process
    return _keys(name for name in old.keys() | new.keys() if whole or old.get(name) != new.get(name))


def changed_deployments(before: Mapping[str, AppliedDeployment], now: Mapping[str, AppliedDeployment]) -> list[Key]:
    """The ModelDeployments of which two reports of one gateway say different things."""
    return _keys(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def begun_to_wait(before: Mapping[str, DeploymentDemand], now: Mapping[str, DeploymentDemand]) -> list[Key]:
    """The ModelDeployments for which requests wait at a gateway where none did before."""
    return _keys(n for n, said in now.items() if said.waiting and not (n in before and before[n].waiting))


def _keys(deployments: Iterable[str]) -> list[Key]:
    """Keys of `namespace/name`, sorted; what is not of that form is left out."""
    split = (name.partition("/") for name in sorted(deployments))
    return [Key(MODEL_DEPLOYMENT, namespace, name) for namespace, slash, name in split if slash]
