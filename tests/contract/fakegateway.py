"""A gateway as the operator knows it: what it reports is a test's business."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Iterable
from typing import Any, Self

from tuneyard.api import names

Object = dict[str, Any]

MASTER = b"0123456789abcdef0123456789abcdef"


class FakeGateway:
    """Answers like a gateway process; `applied`, `demanded` and `counted` set what it says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version = 0
        self.deployments: dict[str, Object] = {}
        self.demand_version = 0
        self.demand: dict[str, Object] = {}
        self.evidence_version = 0
        self.evidence: dict[str, Object] = {}
        """By `namespace/name`."""
        self.process = f"{name}-1"
        self.began = time.monotonic()
        self.judging = True
        self.unauthorized = 0
        self._changed = threading.Condition()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def entry(self) -> str:
        """Its entry in TUNEYARD_GATEWAYS."""
        return f"{self.name}=127.0.0.1:{self._server.server_address[1]}"

    def applied(self, deployment: Object, weights: dict[str, int]) -> None:
        metadata = deployment["metadata"]
        with self._changed:
            self.version += 1
            self.deployments[f"{metadata['namespace']}/{metadata['name']}"] = {
                "uid": metadata["uid"],
                "generation": metadata["generation"],
                "weights": weights,
            }
            self._changed.notify_all()

    def demanded(self, deployment: str, *, waiting: int = 0, idle: float = 0.0, **in_flight: float) -> None:
        """Of a deployment (`namespace/name`): requests under way by revision; who waits does so for the first one."""
        revisions = {name: {"requests": 1, "inFlight": number} for name, number in in_flight.items()}
        for name in [*revisions][:1]:
            revisions[name]["waiting"] = waiting
        with self._changed:
            self.demand_version += 1
            self.demand[deployment] = {"idleSeconds": idle, "waiting": waiting, "revisions": revisions}
            self._changed.notify_all()

    def asked_by_gate(self, deployment: str, job: str, done: int, total: int) -> None:
        """A request of a gate of this deployment (`namespace/name`) has said how far it is."""
        with self._changed:
            self.demand_version += 1
            self.demand[deployment] = {"gate": {"job": job, "done": done, "total": total}}
            self._changed.notify_all()

    def demand_report(self, after: int) -> Object:
        with self._changed:
            self._changed.wait_for(lambda: self.demand_version > after, timeout=20)
            return {"gateway": self.name, "version": self.demand_version, "deployments": self.demand}

    def judges(self, deployment: Object) -> None:
        """The gateway judges the answers of this object, as its spec says; another one, or by others, begins anew."""
        metadata, slo = deployment["metadata"], deployment["spec"]["rollout"]["analysis"]["slo"]
        with self._changed:
            key = f"{metadata['namespace']}/{metadata['name']}"
            known = self.evidence.get(key, {})
            if (known.get("uid"), known.get("slo")) != (metadata["uid"], slo):
                self.evidence[key] = {"uid": metadata["uid"], "slo": slo, "counts": {}}
                self._told()

    def counted(self, deployment: str, revision: str, judged: int, bad: int = 0) -> None:
        """So many more answers, bad ones never in a row."""
        self.counted_at_once([(deployment, revision, judged, bad)])

    def counted_at_once(self, answers: Iterable[tuple[str, str, int, int]], objective: str = "errorRate") -> None:
        """The same of many deployments and revisions, told in one report."""
        with self._changed:
            for deployment, revision, judged, bad in answers:
                series = self.evidence[deployment]["counts"].setdefault(revision, {}).setdefault(objective, {})
                series["0"] = [a + b for a, b in zip(series.get("0", [0] * 4), (judged, bad, bad, 0), strict=True)]
            self._told()

    def judge(self, judging: bool) -> None:
        """Whether its Envoy tells what becomes of requests."""
        with self._changed:
            self.judging = judging
            self._told()

    def restarted(self) -> None:
        """Another process: it counts from the beginning."""
        with self._changed:
            name, _, number = self.process.rpartition("-")
            self.process, self.began = f"{name}-{int(number) + 1}", time.monotonic()
            for told in self.evidence.values():
                told["counts"] = {}
            self._told()

    def _told(self) -> None:
        self.evidence_version += 1
        self._changed.notify_all()

    def evidence_report(self, after: int) -> Object:
        with self._changed:
            self._changed.wait_for(lambda: self.evidence_version != after, timeout=20)
            return {
                "gateway": self.name,
                "process": self.process,
                "ageSeconds": time.monotonic() - self.began,
                "version": self.evidence_version,
                "judging": self.judging,
                "deployments": json.loads(json.dumps(self.evidence)),
            }

    def report(self, after: int) -> Object:
        with self._changed:
            self._changed.wait_for(lambda: self.version > after, timeout=20)
            return {"gateway": self.name, "version": self.version, "deployments": self.deployments}

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        gateway = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {names.observe_token(MASTER)}":
                    gateway.unauthorized += 1
                    self.send_error(401)
                    return
                after = int(self.path.partition("after=")[2] or -1)
                reports = {"/v1/demand": gateway.demand_report, "/v1/evidence": gateway.evidence_report}
                asked = reports.get(self.path.partition("?")[0], gateway.report)
                body = json.dumps(asked(after)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def handle(self) -> None:
                # an operator that is killed leaves its long poll behind
                with contextlib.suppress(OSError):
                    super().handle()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        return Handler

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
