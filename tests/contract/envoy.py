"""The real Envoy, for tests and benchmarks: where it is, what it says of a configuration, and one that runs.

`envoy_binary()` is $ENVOY_BINARY, else that of the locked environment `envoy` (built once, seconds).
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# gRPC's handlers around fork() are for programs that use it on both sides; here the child is Envoy at once
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import aiohttp
from prometheus_client import CollectorRegistry

from cluster import pythons
from tests.contract.dying import die_with_parent
from tests.contract.ports import free_port
from tuneyard.gateway.endings import Endings, EndingsMetrics
from tuneyard.gateway.requestfiles import CURRENT, RequestFiles
from tuneyard.planning.endpoints import Endpoint
from tuneyard.planning.routes import ModelRoutes, RevisionRoute
from tuneyard.planning.settings import TracingSettings
from tuneyard.systems.envoy.accesslogs import AccessLog, stdout_log
from tuneyard.systems.envoy.ads import AdsServer
from tuneyard.systems.envoy.bootstrap import NO_TENANTS, bootstrap
from tuneyard.systems.envoy.clientlimits import ClientLimits
from tuneyard.systems.envoy.documents import Json, extension, tcp
from tuneyard.systems.envoy.front import Guarding, front_config
from tuneyard.systems.envoy.outside import SYSTEM_CA
from tuneyard.systems.envoy.podtls import front_source
from tuneyard.systems.envoy.requestlog import Line, line_of
from tuneyard.systems.envoy.tenancy import tenant_script, tenants_list_resources
from tuneyard.systems.envoy.tls import Tls, sources
from tuneyard.systems.envoy.tokens import Tokens
from tuneyard.systems.envoy.translate import LIST, list_resources, model_resources

_PATIENCE = 30.0
_LIMITS = ClientLimits()


@cache
def envoy_binary() -> Path:
    """Path of the `envoy` program."""
    given = os.environ.get("ENVOY_BINARY")
    if given:
        return Path(given)
    return pythons.site_packages(pythons.venv("envoy")) / "envoy" / "_bin" / "envoy"


def validation_errors(document: Json) -> str:
    """What `envoy --mode validate` objects to, empty where it accepts the configuration."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(document, file)
        file.flush()
        command = [str(envoy_binary()), "--mode", "validate", "-l", "error", "-c", file.name]
        ended = subprocess.run(command, check=False, capture_output=True, text=True)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


async def eventually(condition: Callable[[], bool], what: str, within: float = _PATIENCE) -> None:
    """Until the condition holds; looks every few milliseconds."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        assert loop.time() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.003)


class Envoy:
    """One running Envoy."""

    def __init__(self, config: Json, folder: Path, name: str = "envoy", *, concurrency: int = 1) -> None:
        """`config` must have its admin interface on a Unix socket."""
        self._admin = config["admin"]["address"]["pipe"]["path"]
        self._concurrency = concurrency
        self._config = folder / f"{name}.json"
        self._config.write_text(json.dumps(config))
        self.log, self.access_log = folder / f"{name}.log", folder / f"{name}.access.jsonl"
        self._process: subprocess.Popen[bytes] | None = None

    def resolver(self, port: int) -> None:
        """Have names looked up at a DNS server on this port of loopback; before the start."""
        config, where = json.loads(self._config.read_text()), tcp("127.0.0.1", port)
        where["socket_address"]["protocol"] = "UDP"
        config["typed_dns_resolver_config"] = extension(
            "cares", "network.dns_resolver.cares.v3.CaresDnsResolverConfig", resolvers=[where]
        )
        self._config.write_text(json.dumps(config))

    def start(self) -> None:
        with self.log.open("ab") as errors, self.access_log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(str(envoy_binary()), "-c", str(self._config), "-l", "warning", "--use-dynamic-base-id"),
                    *("--concurrency", str(self._concurrency), "--file-flush-interval-msec", "50"),
                    *("--drain-time-s", "2"),
                ],
                stdout=output,
                stderr=errors,
                preexec_fn=die_with_parent,  # noqa: PLW1509 -- it calls nothing but the kernel
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, how: int = signal.SIGKILL) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    async def admin(self, path: str, method: str = "GET") -> str:
        """An answer of the admin interface."""
        connector = aiohttp.UnixConnector(self._admin)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://admin{path}") as response,
        ):
            return await response.text()

    async def stat(self, name: str) -> int:
        """The value of one counter or gauge, 0 where it does not exist yet."""
        lines = (await self.admin(f"/stats?filter=^{name}$")).splitlines()
        return int(lines[0].rsplit(" ", 1)[1]) if lines else 0

    async def ready(self) -> None:
        """Until it takes requests."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        while True:
            assert self._process is not None and self._process.poll() is None, self.log.read_text()[-2000:]
            assert asyncio.get_running_loop().time() < deadline, self.log.read_text()[-2000:]
            try:
                if "LIVE" in await self.admin("/ready"):
                    return
            except (aiohttp.ClientError, OSError):
                pass
            await asyncio.sleep(0.02)

    async def logged(self, count: int) -> list[dict[str, Any]]:
        """The lines of the access log, once there are that many."""
        await eventually(lambda: self.access_log.read_bytes().count(b"\n") >= count, f"{count} lines of access log")
        return [json.loads(line) for line in self.access_log.read_text().splitlines()]


def revision(
    name: str, weight: int, pods: Iterable[str] = (), *, engine: str | None = None, pool: str = "base"
) -> RevisionRoute:
    """A revision whose pods are at these addresses."""
    endpoints = tuple(Endpoint(address, f"pod-{number}") for number, address in enumerate(pods))
    return RevisionRoute(name, pool, engine or f"engine-{name}", weight, endpoints)


def model(name: str, *revisions: RevisionRoute, unserved: int = 0, header: bool = False) -> ModelRoutes:
    """A model of namespace `default`, its ModelDeployment named `md` and the model's name."""
    return ModelRoutes(
        model=name,
        namespace="default",
        deployment=f"md-{name}".replace("/", "-"),
        uid=f"uid-{name}",
        generation=1,
        created=1_700_000_000,
        revisions=revisions,
        unserved=unserved,
        allow_revision_header=header,
    )


def engine_key(namespace: str, pool: str) -> str:
    """The key that the rig's gateway uses."""
    return f"key-of-{namespace}-{pool}"


class Rig:
    """An ADS server in this process and the real Envoy that follows it."""

    def __init__(
        self,
        folder: Path,
        *,
        scripts: Mapping[str, str] | None = None,
        concurrency: int = 1,
        ads: Path | None = None,
        memory: int = 0,
        heard: Callable[[Sequence[Line]], None] | None = None,
        traces: TracingSettings | None = None,
        count_usage: bool = False,
        keys: bool = False,
        tls: Tls | None = None,
        authority: str = "",
        limits: ClientLimits = _LIMITS,
        tokens: Tokens | None = None,
        priorities: bool = False,
        authorities: str = SYSTEM_CA,
        access_log: AccessLog = AccessLog.ALL,
    ) -> None:
        """`ads`: the socket of an ADS server of another process, then this one runs none.

        `heard` gets the lines of the request log, some at a time; `count_usage`: streams are asked for their tokens.
        `memory`: bytes that Envoy is told it may use, 0: nothing is told. `keys`: clients need keys. `tokens`: which
        are taken, in the place of keys. `priorities`: full pools refuse who may wait. `authority`: who signs pods'
        certificates; `authorities`: file of who signs those of external APIs. `access_log`: what its output has.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ads = AdsServer()
        self.folder = folder
        self.authority, self.authorities = authority, authorities
        self._own_ads = ads is None
        self.requests = folder / CURRENT
        self._heard = heard
        self._endings: Endings | None = None
        self._socket = ads or folder / "ads.sock"
        config = bootstrap(
            "gateway-test",
            ads_socket=str(self._socket),
            port=self.port,
            admin_socket=str(folder / "envoy-admin.sock"),
            holding_socket=str(folder / "holding.sock"),
            mirror_socket=str(folder / "mirror.sock"),
            listen="127.0.0.1",
            memory=memory,
            tenants=tenant_script(tokens, priorities=priorities) if keys or tokens else NO_TENANTS,
            scripts=scripts,
            traces=traces or TracingSettings(),
            requests=str(self.requests),
            access_log=stdout_log(access_log),
            count_usage=count_usage,
            tls=tls,
            limits=limits,
            tokens=tokens,
            priorities=priorities,
        )
        for path, content in ({} if tls is None else sources(tls)).items():
            Path(path).write_text(json.dumps(content))
        self.envoy = Envoy(config, folder, concurrency=concurrency)
        self._listing = tenants_list_resources if keys or tokens else list_resources
        self._models: dict[str, ModelRoutes] = {}
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        if self._own_ads:
            await self.ads.start(self._socket)
        if self._heard is not None:
            self._endings = Endings(RequestFiles(self.folder), self._heard, EndingsMetrics(CollectorRegistry()))
            self._endings.start()
        self.envoy.start()
        self.session = aiohttp.ClientSession(
            base_url=self.url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=60),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.session.close()
        self.envoy.stop()
        if self._endings is not None:
            await self._endings.close()
        await self.ads.stop()

    async def lines(self, count: int) -> list[Line]:
        """The request log, once it has that many lines."""
        path = self.requests
        await eventually(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"{count} lines are told")
        return [line_of(text) for text in path.read_bytes().splitlines()]

    async def serve(self, *models: ModelRoutes) -> None:
        """Serve these models, besides those that are served already, and wait until Envoy works with them."""
        self.put(*models)
        await eventually(lambda: self.ads.complete, f"Envoy works with {[m.model for m in models]}")
        await self.envoy.ready()

    def put(self, *models: ModelRoutes) -> None:
        """The same without waiting."""
        added = {m.model for m in models} - self._models.keys()
        for one in models:
            self._models[one.model] = one
            self.ads.put(
                one.model,
                model_resources(one, engine_key, authority=self.authority, authorities=self.authorities),
            )
        if added or not models:
            self.ads.put(LIST, self._listing(self._models.values()))
        self.ads.publish()

    def drop(self, name: str) -> None:
        del self._models[name]
        self.ads.drop(name)
        self.ads.put(LIST, self._listing(self._models.values()))
        self.ads.publish()

    async def post(
        self,
        body: bytes | dict[str, Any],
        *,
        path: str = "/v1/chat/completions",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **(headers or {})}
        async with self.session.post(path, data=io.BytesIO(data), headers=sent) as response:
            return response.status, response.headers, await response.read()

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        async with self.session.get(path, headers=headers) as response:
            return response.status, json.loads(await response.read())


class Front:
    """The real front of a model pod before an engine on loopback."""

    def __init__(
        self,
        folder: Path,
        engine_port: int,
        name: str = "front",
        certificate: Path | None = None,
        guarding: Guarding | None = None,
    ) -> None:
        """`certificate`: the folder of one, with which it takes TLS too."""
        self.port = free_port()
        source = folder / f"{name}-certificate.json"
        if certificate is not None:
            source.write_text(json.dumps(front_source(str(certificate))))
        self.address = f"127.0.0.1:{self.port}"
        config = front_config(
            listen="127.0.0.1",
            port=self.port,
            engine_port=engine_port,
            admin_socket=str(folder / f"{name}-admin.sock"),
            certificate=str(source) if certificate is not None else "",
            guarding=guarding,
        )
        self.envoy = Envoy(config, folder, name)

    async def __aenter__(self) -> Self:
        self.envoy.start()
        await self.envoy.ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.envoy.stop()
