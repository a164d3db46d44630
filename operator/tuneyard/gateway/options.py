"""What a gateway's pod tells its process by environment, beyond the settings that the operator shares.

| variable | meaning | default |
|---|---|---|
| POD_NAME | the gateway's name in its reports, and Envoy's node id | the host's name |
| TUNEYARD_RUN_DIRECTORY | shared with Envoy: sockets, bootstrap, snapshot | /run/tuneyard |
| TUNEYARD_CLIENTS_PORT | clients' port of Envoy | 8080 |
| TUNEYARD_OBSERVE_PORT | port of this process | 9443 |
| TUNEYARD_LISTEN | address of both | all, of IPv6 too where there is any |
| TUNEYARD_ENVOY_MEMORY | bytes that Envoy's container may use, 0: unknown | 0 |
| TUNEYARD_HOLD_SECONDS | how long a request waits for an adapter to be loaded | 60 |
| TUNEYARD_HOLD_REQUESTS | how many may wait at this gateway | 1000 |
| TUNEYARD_HOLD_PER_DEPLOYMENT | how many of them for one ModelDeployment | 100 |
| TUNEYARD_PEERS | host:port under which all gateways' processes are found, several with commas | none |
| TUNEYARD_DRAIN_DELAY | seconds between not being ready and closing the listener | 5 |
| TUNEYARD_DRAIN_SECONDS | seconds that running streams may take to finish | 600 |
| TUNEYARD_AUTH | what clients need: None, ApiKeys, Jwt, ApiKeysAndJwt | None |
| TUNEYARD_PRIORITIES | whom full pools refuse: priorityoptions.py | nobody |
| TUNEYARD_JWT_… | which tokens are taken: tokenoptions.py | none |
| TUNEYARD_FEEDBACK_…, TUNEYARD_USAGE_… | where feedback and usage are written: buckettarget.py | nowhere |
| TUNEYARD_ACCESS_LOG | of which requests Envoy's output tells: All, Errors, None | All |
| TUNEYARD_USAGE | whether tokens are counted: true or false | true |
| TUNEYARD_LOG_DIRECTORY | shared with Envoy: its request log, and how far it was read | the run directory |
| TUNEYARD_EXTERNAL_CA | file of Envoy's container: who signs certificates of external APIs | the system's bundle |
| TUNEYARD_TLS_… | TLS for clients: tlsoptions.py | none |
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuneyard.api import names
from tuneyard.gateway.buckettarget import BucketTarget, bucket_target
from tuneyard.gateway.holding import Limits
from tuneyard.gateway.priorityoptions import priority_options
from tuneyard.gateway.requestfiles import CURRENT, UNCOUNTED_BYTES, VOLUME_BYTES
from tuneyard.gateway.tlsoptions import tls_options
from tuneyard.gateway.tokenoptions import NOBODY, GivenTokens, token_options
from tuneyard.planning.priorities import PoolLimits
from tuneyard.systems.envoy.accesslogs import AccessLog
from tuneyard.systems.envoy.bootstrap import RUN_DIRECTORY
from tuneyard.systems.envoy.listening import everywhere
from tuneyard.systems.envoy.outside import SYSTEM_CA
from tuneyard.systems.envoy.tls import Tls


@dataclass(frozen=True)
class Options:
    """Where things are and how long they may take."""

    name: str
    directory: Path
    port: int
    observe_port: int
    listen: str
    envoy_memory: int
    drain_delay: float
    drain_seconds: float
    hold: Limits
    peers: str
    keys: bool = False
    """Whether clients need keys, or tokens."""
    tokens: GivenTokens | None = None
    tenants_namespace: str = ""
    """Where tenants' Secrets and ConfigMaps are; empty: in names.tenants_namespace."""
    priorities: PoolLimits | None = None
    feedback: BucketTarget | None = None
    access_log: AccessLog = AccessLog.ALL
    usage: bool = True
    usage_export: BucketTarget | None = None
    log_directory: Path | None = None
    tls: Tls | None = None
    external_authorities: str = SYSTEM_CA
    """File of Envoy's container with those who sign certificates of external APIs."""

    @property
    def ads_socket(self) -> Path:
        """Where Envoy gets its configuration."""
        return self.directory / "ads.sock"

    @property
    def admin_socket(self) -> Path:
        """Envoy's admin interface."""
        return self.directory / "envoy-admin.sock"

    @property
    def holding_socket(self) -> Path:
        """Where Envoy's script waits for adapters."""
        return self.directory / "holding.sock"

    @property
    def mirror_socket(self) -> Path:
        """Where Envoy's script hands over copies."""
        return self.directory / "mirror.sock"

    @property
    def request_log(self) -> Path:
        """Where Envoy writes what became of each request."""
        return self.log_folder / CURRENT

    @property
    def log_folder(self) -> Path:
        """Where that and what is known of it are."""
        return self.log_directory or self.directory

    @property
    def memory(self) -> int:
        """Bytes that Envoy may use for itself: what its request log may hold, in memory, counts as its own."""
        log = VOLUME_BYTES if self.usage else UNCOUNTED_BYTES
        return max(self.envoy_memory - log, self.envoy_memory // 2)

    @property
    def snapshot(self) -> Path:
        """What an earlier process knew."""
        return self.directory / "world.jsonl"

    @property
    def tenants_snapshot(self) -> Path:
        """What it knew of tenants, their keys among it."""
        return self.directory / "tenants.jsonl"

    @property
    def external_snapshot(self) -> Path:
        """Keys of external APIs."""
        return self.directory / "external.jsonl"


def _memory_of(environment: Mapping[str, str], usage: bool) -> int:
    """What Envoy's container may use; ValueError where the request log would leave it too little."""
    memory = int(environment.get("TUNEYARD_ENVOY_MEMORY") or 0)
    if usage and 0 < memory < 2 * VOLUME_BYTES:
        raise ValueError(
            f"Envoy may use {memory >> 20} MiB of memory, and {VOLUME_BYTES >> 20} of them are for its request log: "
            f"give it {2 * VOLUME_BYTES >> 20} MiB or more (gateway.envoyResources), or count none (usage.enabled)"
        )
    return memory


def _access_log_of(environment: Mapping[str, str]) -> AccessLog:
    told = environment.get("TUNEYARD_ACCESS_LOG") or AccessLog.ALL
    if told not in set(AccessLog):
        raise ValueError(f"the access log is one of {', '.join(AccessLog)} (gateway.accessLog), not {told}")
    return AccessLog(told)


def options(environment: Mapping[str, str]) -> Options:
    """The options that the environment gives; ValueError where one makes no sense."""
    directory = Path(environment.get("TUNEYARD_RUN_DIRECTORY") or RUN_DIRECTORY)
    usage, log_directory = environment.get("TUNEYARD_USAGE") != "false", environment.get("TUNEYARD_LOG_DIRECTORY")
    return Options(
        name=environment.get("POD_NAME") or socket.gethostname(),
        directory=directory,
        port=int(environment.get("TUNEYARD_CLIENTS_PORT") or names.GATEWAY_PORT),
        observe_port=int(environment.get("TUNEYARD_OBSERVE_PORT") or names.GATEWAY_OBSERVE_PORT),
        listen=environment.get("TUNEYARD_LISTEN") or everywhere(),
        envoy_memory=_memory_of(environment, usage),
        drain_delay=float(environment.get("TUNEYARD_DRAIN_DELAY") or 5),
        drain_seconds=float(environment.get("TUNEYARD_DRAIN_SECONDS") or 600),
        hold=Limits(
            seconds=float(environment.get("TUNEYARD_HOLD_SECONDS") or Limits.seconds),
            requests=int(environment.get("TUNEYARD_HOLD_REQUESTS") or Limits.requests),
            of_one_deployment=int(environment.get("TUNEYARD_HOLD_PER_DEPLOYMENT") or Limits.of_one_deployment),
        ),
        peers=environment.get("TUNEYARD_PEERS", ""),
        keys=environment.get("TUNEYARD_AUTH", "") not in NOBODY,
        tokens=token_options(environment),
        priorities=priority_options(environment),
        tenants_namespace=environment.get("TUNEYARD_TENANTS_NAMESPACE", ""),
        feedback=bucket_target(environment, "FEEDBACK"),
        access_log=_access_log_of(environment),
        usage=usage,
        log_directory=Path(log_directory) if log_directory else None,
        usage_export=bucket_target(environment, "USAGE"),
        tls=tls_options(environment, directory),
        external_authorities=environment.get("TUNEYARD_EXTERNAL_CA") or SYSTEM_CA,
    )
