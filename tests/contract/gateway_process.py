"""The gateway process as a real process beside a real Envoy, against a real API server; pods are fakes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import yaml

from tests.contract.apiserver import ROOT, ApiServer
from tests.contract.envoy import Rig, eventually
from tests.contract.ports import PODS_ON_LOOPBACK, free_port
from tests.fakes.upstream import Upstream
from tuneyard.api import names
from tuneyard.api.documents import AppliedDeployment, AppliedReport, DemandReport, EvidenceReport, PodReport
from tuneyard.api.mirror import MirrorReport
from tuneyard.gateway.evidence import SETTLING
from tuneyard.systems.envoy.tls import Tls
from tuneyard.systems.envoy.tokens import Tokens
from tuneyard.systems.kube.client import MERGE, Api, ApiError

Json = dict[str, Any]
_Report = TypeVar("_Report", AppliedReport, DemandReport, EvidenceReport)

MASTER = b"0123456789abcdef0123456789abcdef"
_CRDS = "/apis/tuneyard.dev/v1alpha1"
_TUNEYARD = f"{PODS_ON_LOOPBACK}from tuneyard.cli.main import main; main()"


def digest_of(adapter: str) -> str:
    return f"sha256:{names.short_hash(adapter, length=64)}"


def engine_name_of(adapter: str) -> str:
    return names.engine_adapter_name(adapter, digest_of(adapter))


@dataclass(frozen=True)
class Fronted:
    """A pod whose front is not the fake's own."""

    name: str
    address: str
    tls: bool | None = None


class Team:
    """A namespace and what people and agents write into it."""

    def __init__(self, server: ApiServer, namespace: str, *, base: str = "tiny") -> None:
        self.api: Api = server.api()
        self.namespace = server.fresh_namespace(namespace)
        self.base = base
        self._pods: dict[str, PodReport] = {}

    def _path(self, plural: str, name: str = "") -> str:
        return f"{_CRDS}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def _pod_path(self, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods" + (f"/{name}" if name else "")

    def _create(self, plural: str, kind: str, name: str, spec: Json) -> Json:
        body = {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": spec,
        }
        return self.api.request("POST", self._path(plural), body=body)

    def make_base(self) -> None:
        source = {"volume": {"name": "models", "path": self.base}}
        self._create("basemodels", "BaseModel", self.base, {"source": source})

    def make_adapter(self, name: str, *, pinned: bool = True, **more: Any) -> None:
        spec: Json = {"baseModel": self.base, "source": {"volume": {"name": "models", "path": name}}, **more}
        self._create("loraadapters", "LoRAAdapter", name, {**spec, **({"digest": digest_of(name)} if pinned else {})})

    def replace_adapter(self, name: str) -> None:
        """Delete it and create it with other bytes, as `kubectl replace --force` does."""
        self.api.request("DELETE", self._path("loraadapters", name))
        source = {"volume": {"name": "models", "path": name}}
        spec = {"baseModel": self.base, "source": source, "digest": digest_of(f"{name}, replaced")}
        self._create("loraadapters", "LoRAAdapter", name, spec)

    def pin(self, adapter: str) -> None:
        """As the operator does."""
        self._status("loraadapters", adapter, {"digest": digest_of(adapter)})

    def pin_base(self) -> None:
        """As the operator does."""
        self._status("basemodels", self.base, {"digest": digest_of(self.base)})

    def _status(self, plural: str, name: str, status: Json) -> None:
        path = self._path(plural, name) + "/status"
        self.api.request("PATCH", path, body={"status": status}, content_type=MERGE)

    def rollout(self, name: str, **rollout: Any) -> None:
        """As the operator does."""
        self._status("modeldeployments", name, {"rollout": {"phase": "Idle", **rollout}})

    def make_deployment(self, name: str, traffic: Mapping[str, int], **spec: Any) -> Json:
        """A revision per adapter; `base` stands for a revision without one."""
        revisions = [
            {"name": r, "baseModel": self.base, **({} if r == "base" else {"adapter": r})}
            for r in spec.pop("revisions", None) or traffic
        ]
        targets = [{"revision": r, "weight": w} for r, w in traffic.items()]
        return self._create(
            "modeldeployments", "ModelDeployment", name, {"revisions": revisions, "traffic": targets, **spec}
        )

    def create_deployment(self, name: str, spec: Json) -> Json:
        """Of revisions that are no adapters."""
        return self._create("modeldeployments", "ModelDeployment", name, spec)

    def sleep(self, name: str, **told: object) -> None:
        """What the operator says of idleness: idleSince, wakingSince, reason, traffic."""
        self._status("modeldeployments", name, {"idleSince": None, "wakingSince": None, "reason": None, **told})

    def set_traffic(self, name: str, **traffic: int) -> Json:
        """The edit of a canary; returns the object."""
        targets = [{"revision": r, "weight": w} for r, w in traffic.items()]
        path = self._path("modeldeployments", name)
        return self.api.request("PATCH", path, body={"spec": {"traffic": targets}}, content_type=MERGE)

    def annotate(self, name: str, **annotations: str) -> None:
        """A ModelDeployment."""
        path = self._path("modeldeployments", name)
        self.api.request("PATCH", path, body={"metadata": {"annotations": annotations}}, content_type=MERGE)

    def keep_only(self, name: str, revision: str) -> None:
        """The edit that ends a canary: the other revisions are not listed any more."""
        revisions = [{"name": revision, "baseModel": self.base, "adapter": revision}]
        spec = {"revisions": revisions, "traffic": [{"revision": revision, "weight": 100}]}
        path = self._path("modeldeployments", name)
        self.api.request("PATCH", path, body={"spec": spec}, content_type=MERGE)

    def delete(self, plural: str, name: str) -> None:
        self.api.request("DELETE", self._path(plural, name))

    def make_pod(self, pod: Upstream | Fronted, *adapters: str, engine: str = "Ready", pool: str | None = None) -> None:
        """A model pod that says that it serves the base and these adapters."""
        metadata = {
            "name": pod.name,
            "labels": {names.LABEL_POOL: pool or names.pool_name(self.base), names.LABEL_BASE_MODEL: self.base},
            "annotations": {names.ANNOTATION_ADAPTERS: self._report(pod, adapters, engine)},
        }
        spec = {"containers": [{"name": "engine", "image": "none"}], "terminationGracePeriodSeconds": 0}
        self.api.request("POST", self._pod_path(), body={"metadata": metadata, "spec": spec})

    def report(self, pod: Upstream | Fronted, *adapters: str, engine: str = "Ready") -> None:
        """As the pod's agent does."""
        annotation = {names.ANNOTATION_ADAPTERS: self._report(pod, adapters, engine)}
        body = {"metadata": {"annotations": annotation}}
        self.api.request("PATCH", self._pod_path(pod.name), body=body, content_type=MERGE)

    def end_pod(self, pod: Upstream, phase: str = "Failed") -> None:
        """Evicted: the object stays."""
        path = self._pod_path(pod.name) + "/status"
        self.api.request("PATCH", path, body={"status": {"phase": phase}}, content_type=MERGE)

    def delete_pod(self, pod: Upstream) -> None:
        self.api.request("DELETE", self._pod_path(pod.name), body={"gracePeriodSeconds": 0})

    def _report(self, pod: Upstream | Fronted, adapters: tuple[str, ...], engine: str) -> str:
        loaded = {a: {"state": "Loaded", "digest": digest_of(a), "engineName": engine_name_of(a)} for a in adapters}
        report: Json = {"address": pod.address, "engine": engine, "baseModel": self.base, "adapters": loaded}
        if isinstance(pod, Fronted):
            report["tls"] = pod.tls
        return PodReport.from_dict(report).model_dump_json(by_alias=True, exclude_none=True)

    def clear(self) -> None:
        """Remove what gateways look at."""
        for plural in ("modeldeployments", "loraadapters", "basemodels"):
            self.api.request("DELETE", self._path(plural))
        try:
            self.api.request("DELETE", self._pod_path(), body={"gracePeriodSeconds": 0})
        except ApiError as error:
            assert error.not_found, error


class GatewayProcess:
    """`tuneyard gateway` and its Envoy; `rig` sends requests through it."""

    def __init__(
        self,
        server: ApiServer,
        folder: Path,
        *,
        name: str = "gateway-0",
        settings: Json | None = None,
        token: str = "",
        environment: Mapping[str, str] | None = None,
        keys: bool = False,
        tls: Tls | None = None,
        tokens: Tokens | None = None,
        priorities: bool = False,
    ) -> None:
        """`keys`: clients need keys. `tokens`, `priorities`: for Envoy, as the environment says."""
        self.folder = folder / name
        self.folder.mkdir(parents=True)
        self.name = name
        self.port = free_port()
        self.log = self.folder / "gateway.log"
        self.rig = Rig(
            self.folder,
            ads=self.folder / "ads.sock",
            count_usage=True,
            keys=keys,
            tls=tls,
            tokens=tokens,
            priorities=priorities,
        )
        self._config, master = self.folder / "config.yaml", self.folder / "master"
        self._config.write_text(yaml.safe_dump(settings or {}))
        master.write_bytes(MASTER)
        self._environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig(token) if token else server.kubeconfig()),
            "TUNEYARD_MASTER_FILE": str(master),
            "TUNEYARD_RUN_DIRECTORY": str(self.folder),
            "TUNEYARD_OBSERVE_PORT": str(self.port),
            "TUNEYARD_LISTEN": "127.0.0.1",
            "TUNEYARD_DRAIN_DELAY": "0.2",
            "TUNEYARD_AUTH": "ApiKeys" if keys else "None",
            "POD_NAME": name,
            "PYTHONPATH": str(ROOT / "operator"),
            **({"TUNEYARD_TLS_CERTIFICATE": tls.certificate, "TUNEYARD_TLS_SECRET": tls.secret} if tls else {}),
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def knows(self, *gateways: GatewayProcess) -> None:
        """Before it starts: these are all gateways."""
        self._environment["TUNEYARD_PEERS"] = ",".join(f"127.0.0.1:{one.port}" for one in gateways)

    def start(self) -> None:
        """The process alone."""
        command = [sys.executable, "-c", _TUNEYARD, "gateway", "--config", str(self._config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def kill(self, how: int = signal.SIGKILL) -> None:
        """The process alone; Envoy goes on."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None

    async def __aenter__(self) -> Self:
        self.start()
        await self.rig.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.rig.__aexit__(kind, error, trace)
        self.kill()

    @property
    def url(self) -> str:
        return self.rig.url

    @property
    def entry(self) -> str:
        """Its entry in TUNEYARD_GATEWAYS."""
        return f"{self.name}=127.0.0.1:{self.port}"

    async def _ask(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}", headers=headers) as response,
        ):
            return response.status, await response.text()

    async def probe(self, path: str = "/readyz") -> int:
        """Status of a probe, 0 while nobody answers."""
        try:
            return (await self._ask(path))[0]
        except aiohttp.ClientError:
            return 0

    async def ready(self, within: float = 30.0) -> None:
        async with asyncio.timeout(within):
            while await self.probe() != 200:
                assert self.process is None or self.process.poll() is None, self.log.read_text()[-3000:]
                await asyncio.sleep(0.02)

    async def page(self, path: str = "/metrics") -> str:
        return (await self._ask(path))[1]

    async def held(self) -> int:
        """How many requests it holds now."""
        lines = (await self.page()).splitlines()
        return next(int(float(line.split()[1])) for line in lines if line.startswith("tuneyard_gateway_held "))

    async def applied(self, after: int = -1, *, token: str | None = None) -> AppliedReport:
        return AppliedReport.model_validate_json(await self._report("applied", after, token))

    async def demand(self, after: int = -1) -> DemandReport:
        return DemandReport.model_validate_json(await self._report("demand", after))

    async def evidence(self, after: int = -1) -> EvidenceReport:
        return EvidenceReport.model_validate_json(await self._report("evidence", after))

    async def mirror(self) -> MirrorReport:
        return MirrorReport.model_validate_json(await self._report("mirror", -1, None))

    async def _report(self, what: str, after: int, token: str | None = None) -> str:
        given = names.observe_token(MASTER) if token is None else token
        status, text = await self._ask(f"/v1/{what}?after={after}", {"authorization": f"Bearer {given}"})
        assert status == 200, (status, text)
        return text

    async def demands(self, until: Callable[[DemandReport], bool], what: str, within: float = 20.0) -> DemandReport:
        """The first report of which that holds."""
        return await _first(self.demand, until, what, within)

    async def evidences(
        self, until: Callable[[EvidenceReport], bool], what: str, within: float = 20.0
    ) -> EvidenceReport:
        """The first report of which that holds."""
        return await _first(self.evidence, until, what, within)

    async def status_without(self, token: str, path: str = "/v1/applied") -> int:
        return (await self._ask(path, {"authorization": token}))[0]

    async def applies(self, deployment: str, weights: Mapping[str, int], within: float = 20.0) -> AppliedReport:
        """The first report that has these weights; `deployment` is namespace/name."""
        await self.ready()
        return await self.serves(deployment, lambda found: found.weights == weights, within)

    async def serves(
        self, deployment: str, until: Callable[[AppliedDeployment], bool], within: float = 20.0
    ) -> AppliedReport:
        """The first report that has the deployment, and of which that holds."""

        def holds(report: AppliedReport) -> bool:
            found = report.deployments.get(deployment)
            return found is not None and until(found)

        return await _first(self.applied, holds, f"{deployment} is served as expected", within)

    async def judges(self, deployment: str, weights: Mapping[str, int]) -> None:
        """It has these weights, and counts the requests that begin from now on."""
        await self.applies(deployment, weights)
        await asyncio.sleep(SETTLING)

    async def answered_by(self, model: str, **more: Any) -> str | None:
        """The engine's name of what answered, None for a refusal."""
        status, _, body = await self.rig.post({"model": model, **more})
        return str(yaml.safe_load(body)["model"]) if status == 200 else None


async def _first(
    ask: Callable[[int], Awaitable[_Report]], until: Callable[[_Report], bool], what: str, within: float
) -> _Report:
    report: _Report | None = None
    try:
        async with asyncio.timeout(within):
            while report is None or not until(report):
                report = await ask(-1 if report is None else report.version)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {what}; it is {report}") from None
    return report


async def becomes(check: Any, expected: object, what: str, within: float = 20.0) -> None:
    """Until an asynchronous check gives what is expected."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while (found := await check()) != expected:
        assert loop.time() < deadline, f"not within {within} s: {what}; it is {found}"
        await asyncio.sleep(0.02)


__all__ = ["Fronted", "GatewayProcess", "Team", "becomes", "digest_of", "engine_name_of", "eventually"]
