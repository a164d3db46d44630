"""What the gateways say they serve: one long poll per gateway pod.

Rules:
- every Ready gateway pod that is not leaving is asked; one that leaves is forgotten with its report;
- a gateway answers when it has applied something new, or after 20 s; whoever does not answer twice in a row counts as
  unreachable until it does, and its last report no longer counts;
- only the ModelDeployments whose report has changed are woken.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import urllib3
from pydantic import ValidationError

from tuneyard.api import names
from tuneyard.api.documents import AppliedDeployment, AppliedReport
from tuneyard.runtime.gather import GatewayView
from tuneyard.runtime.keys import MODEL_DEPLOYMENT, Key
from tuneyard.systems.kube.client import Object

_log = logging.getLogger(__name__)

_CONNECT, _READ = 2.0, 25.0
_FAILURES = 2
_DELAYS = (0.2, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Said:
    """What one gateway said last."""

    report: AppliedReport | None = None
    failures: int = 0

    @property
    def reachable(self) -> bool:
        """Whether it answers."""
        return self.report is not None and self.failures < _FAILURES


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


class Gateways:
    """Polls the gateways that it is told of; `wake` gets the keys whose report has changed, or None for all of them."""

    def __init__(self, token: str, wake: Callable[[list[Key] | None], None]) -> None:
        self._token = token
        self._wake = wake
        self._lock = threading.Lock()
        self._polls: dict[str, _Poll] = {}
        self._said: dict[str, Said] = {}
        # gateways are asked by address, and the token is what tells that the answer comes from one
        self._http = urllib3.PoolManager(
            maxsize=4, retries=False, timeout=urllib3.Timeout(connect=_CONNECT, read=_READ)
        )

    def follow(self, addresses: Mapping[str, str]) -> None:
        """Poll exactly these from now on: name -> host:port."""
        with self._lock:
            gone = [n for n, poll in self._polls.items() if addresses.get(n) != poll.address]
            for name in gone:
                self._polls.pop(name).stop()
                self._said.pop(name, None)
            new = {
                name: _Poll(self._http, name, address, self._token, self._hear)
                for name, address in addresses.items()
                if name not in self._polls
            }
            self._polls.update(new)
        for poll in new.values():
            poll.start()
        if gone or new:
            self._wake(None)

    def view(self) -> GatewayView:
        """What is known now."""
        with self._lock:
            expected = sorted(self._polls)
            said = {name: self._said.get(name, Said()) for name in expected}
        reports = tuple(s.report for s in said.values() if s.report is not None and s.reachable)
        return GatewayView(reports, len(expected), tuple(name for name, s in said.items() if not s.reachable))

    def answered(self) -> bool:
        """Whether every gateway has answered or failed to, so that the view is as good as it gets."""
        with self._lock:
            return all(name in self._said for name in self._polls)

    def stop(self) -> None:
        """End all polls."""
        with self._lock:
            for poll in self._polls.values():
                poll.stop()
            self._polls.clear()

    def _hear(self, name: str, report: AppliedReport | None) -> None:
        """One answer, or None for a failure."""
        with self._lock:
            if name not in self._polls:
                return
            before = self._said.get(name, Said())
            now = Said(before.report, before.failures + 1) if report is None else Said(report)
            self._said[name] = now
        if before.reachable != now.reachable:
            self._wake(None)
        elif report is not None and before.report is not None:
            changed = changed_deployments(before.report.deployments, report.deployments)
            if changed:
                self._wake(changed)


def changed_deployments(before: Mapping[str, AppliedDeployment], now: Mapping[str, AppliedDeployment]) -> list[Key]:
    """The ModelDeployments of which two reports of one gateway say different things."""
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    split = (name.partition("/") for name in differing)
    return [Key(MODEL_DEPLOYMENT, namespace, name) for namespace, slash, name in split if slash]


class _Poll:
    """Asks one gateway again and again, in a thread of its own."""

    def __init__(
        self,
        http: urllib3.PoolManager,
        name: str,
        address: str,
        token: str,
        hear: Callable[[str, AppliedReport | None], None],
    ) -> None:
        self.address = address
        self._http = http
        self._name = name
        self._headers = {"Authorization": f"Bearer {token}"}
        self._hear = hear
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"gateway {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """A poll that waits for its answer ends by itself; nobody listens to it any more."""
        self._stopping.set()

    def _run(self) -> None:
        after, failures = -1, 0
        while not self._stopping.is_set():
            report = self._ask(after)
            if self._stopping.is_set():
                return
            self._hear(self._name, report)
            if report is not None:
                # a gateway that restarted counts from the beginning again
                after, failures = report.version, 0
                continue
            after, failures = -1, failures + 1
            self._stopping.wait(_DELAYS[min(failures, len(_DELAYS)) - 1] * random.uniform(0.75, 1.25))  # noqa: S311

    def _ask(self, after: int) -> AppliedReport | None:
        try:
            answer = self._http.request(
                "GET", f"http://{self.address}/v1/applied", fields={"after": str(after)}, headers=self._headers
            )
            if answer.status != 200:
                _log.info("gateway %s answered %d", self._name, answer.status)
                return None
            return AppliedReport.from_dict(json.loads(answer.data))
        except (urllib3.exceptions.HTTPError, ValueError, ValidationError) as error:
            _log.info("gateway %s does not say what it serves: %s", self._name, type(error).__name__)
            return None
