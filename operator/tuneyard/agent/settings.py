"""What an agent is told by its environment (the pod template writes it) and where things lie in its pod.

The engine's key is read here and kept out of every text: its field is left out of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from tuneyard.agent.enginetold import VLLM, EngineTold, engine_from
from tuneyard.api import names
from tuneyard.api.sources import Source


class SettingsError(Exception):
    """A variable is missing or cannot be read; the text names it."""


@dataclass(frozen=True)
class PodIdentity:
    """The pod that a process runs in."""

    pod: str
    namespace: str
    uid: str
    address: str
    """host:port of the pod's front, as gateways reach it."""


@dataclass(frozen=True)
class Settings(PodIdentity):
    """One agent's settings; the folders and addresses differ only in tests."""

    pool: str
    base_model: str
    base_path: Path
    max_rank: int
    max_cpu_loras: int
    drain_timeout: float
    engine_key: str = field(repr=False)
    tls: bool = False
    """Whether the pod's front has a certificate."""
    shared_adapters: bool = False
    """Whether engines of other pods read `adapters` too, so that it outlives the pod."""
    engine: EngineTold = VLLM
    base_source: Source | None = None
    """Where a base comes from that is fetched over the network."""
    engine_url: str = f"http://127.0.0.1:{names.ENGINE_PORT}"
    port: int = names.AGENT_PORT
    volumes: Path = Path("/artifacts")
    adapters: Path = Path("/adapters")
    cache: Path = Path("/cache")
    cache_limit: int | None = None
    """Bytes; None: what the disk holds."""
    run: Path = Path("/run/tuneyard")
    front_admin: Path = Path("/run/tuneyard/front-admin.sock")


def settings_from(environment: Mapping[str, str]) -> Settings:
    """The settings that the environment gives; raises SettingsError."""
    text = partial(_text, environment)

    def number(name: str) -> int:
        try:
            return int(text(name))
        except ValueError as error:
            raise SettingsError(f"{name} is not a whole number") from error

    return Settings(
        **asdict(identity_from(environment)),
        pool=text("TUNEYARD_POOL"),
        base_model=text("TUNEYARD_BASE_MODEL"),
        base_path=Path(text("TUNEYARD_BASE_PATH")),
        max_rank=number("TUNEYARD_MAX_RANK"),
        max_cpu_loras=number("TUNEYARD_MAX_CPU_LORAS"),
        drain_timeout=float(number("TUNEYARD_DRAIN_TIMEOUT")),
        engine_key=text("TUNEYARD_ENGINE_KEY"),
        tls=environment.get("TUNEYARD_FRONT_TLS") == "true",
        shared_adapters=environment.get("TUNEYARD_SHARED_ADAPTERS") == "true",
        engine=_engine(environment),
        base_source=_base_source(environment),
        cache_limit=cache_limit(environment),
    )


def _engine(environment: Mapping[str, str]) -> EngineTold:
    try:
        return engine_from(environment)
    except ValueError as error:
        raise SettingsError(str(error)) from error


@dataclass(frozen=True)
class KeepSettings(PodIdentity):
    """The settings of a process that keeps a node's cache."""

    plan: str
    """Name of the ConfigMap with its plan."""
    cache: Path
    cache_limit: int | None
    """Bytes; None: what the disk holds."""
    mark: Path
    """File that is there while all is kept."""


def keep_settings_from(environment: Mapping[str, str], cache: Path, mark: Path) -> KeepSettings:
    """The settings that the environment gives; the paths differ only in tests. Raises SettingsError."""
    return KeepSettings(
        **asdict(identity_from(environment)),
        plan=_text(environment, "TUNEYARD_PREWARM_PLAN"),
        cache=cache,
        cache_limit=cache_limit(environment),
        mark=mark,
    )


def identity_from(environment: Mapping[str, str]) -> PodIdentity:
    """The pod that the environment names; raises SettingsError."""
    text = partial(_text, environment)
    return PodIdentity(
        pod=text("POD_NAME"),
        namespace=text("POD_NAMESPACE"),
        uid=text("POD_UID"),
        address=_address(text("POD_IP")),
    )


def _base_source(environment: Mapping[str, str]) -> Source | None:
    given = environment.get("TUNEYARD_BASE_SOURCE")
    try:
        return Source.model_validate_json(given) if given else None
    except ValueError as error:
        raise SettingsError("TUNEYARD_BASE_SOURCE is not the JSON of a source") from error


def _text(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name, "")
    if not value:
        raise SettingsError(f"{name} is not set: the pod template sets it")
    return value


def cache_limit(environment: Mapping[str, str]) -> int | None:
    """Bytes that the cache may hold, None for no limit; raises SettingsError."""
    given = environment.get("TUNEYARD_CACHE_LIMIT")
    if not given:
        return None
    # imported here: a pod's first step should be quick
    from kubernetes.utils.quantity import parse_quantity  # noqa: PLC0415

    try:
        return int(parse_quantity(given))
    except ValueError as error:
        raise SettingsError(f"TUNEYARD_CACHE_LIMIT: {given!r} is not a quantity such as 200Gi") from error


def _address(ip: str) -> str:
    return f"[{ip}]:{names.FRONT_PORT}" if ":" in ip else f"{ip}:{names.FRONT_PORT}"
