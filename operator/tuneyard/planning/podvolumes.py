"""Where the files of bases and adapters lie in a model pod, and the volumes that bring them there.

Rule: a path is the same in every container of the pod that has it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.serving import ArtifactVolume, CompileCache
from tuneyard.planning.podparts import BASE, BASE_LINK, cache_volume, host_folder, mount, token_volume
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings

ARTIFACTS = "/artifacts"
IMAGE = f"{ARTIFACTS}/@image"
"""A base that comes as an image: beside the declared volumes, under a name that none of them can have."""

COMPILE_CACHE = "/compile-cache"
"""What engines compiled, where that outlives their pods."""


def base_path(base: BaseModelResource) -> str:
    """Where the base's files are in its pods."""
    volume, image = base.spec.source.volume, base.spec.source.image
    if image is not None:
        return posixpath.normpath(f"{IMAGE}/{image.path or ''}")
    if volume is None:
        return BASE_LINK
    return posixpath.normpath(f"{ARTIFACTS}/{volume.name}/{volume.path}")


def base_mounts(base: BaseModelResource) -> list[dict[str, Any]]:
    """What a container that reads the base mounts, beside artifact volumes."""
    source = base.spec.source
    if source.image is not None:
        return [mount("image", IMAGE, read_only=True)]
    return [mount("base", BASE, read_only=True)] if source.is_remote else []


def _base_volumes(base: BaseModelResource, settings: Settings) -> list[dict[str, Any]]:
    image = base.spec.source.image
    if image is not None:
        return [{"name": "image", "image": {"reference": image.reference, "pullPolicy": settings.image_pull_policy}}]
    return [{"name": "base", "emptyDir": {}}] if base.spec.source.is_remote else []


def _volume_name(artifact_volume: str) -> str:
    """A volume's name in the pod: a DNS label, while names of artifact volumes may have dots and be longer."""
    name = f"artifacts-{artifact_volume.replace('.', '-')}"
    plain = len(name) <= 63 and "." not in artifact_volume
    return name if plain else f"{name[:54].rstrip('-')}-{names.short_hash(artifact_volume)}"


def artifact_mounts(declared: Iterable[ArtifactVolume]) -> list[dict[str, Any]]:
    """The pool's artifact volumes, each under its name."""
    return [mount(_volume_name(v.name), f"{ARTIFACTS}/{v.name}", read_only=True) for v in declared]


def _artifact_source(volume: ArtifactVolume) -> Mapping[str, Any]:
    if volume.persistent_volume_claim is not None:
        claim = volume.persistent_volume_claim.claim_name
        return {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return host_folder(volume.host_path.path if volume.host_path else "/nonexistent")


def compile_cache_mounts(pool: Pool) -> list[dict[str, Any]]:
    """The engine's mount of what was compiled, if it is kept."""
    cache = pool.serving.compile_cache
    if cache is None:
        return []
    # Beside the namespace's folder of fetched artifacts, not in it: those are read-only for engines. No namespace has a
    # dot in its name.
    part = {"subPath": f"{pool.namespace}.compiled"} if cache.host_path else {}
    return [{**mount("compiled", COMPILE_CACHE), **part}]


def _compile_cache_volume(cache: CompileCache | None) -> list[dict[str, Any]]:
    if cache is None:
        return []
    if cache.persistent_volume_claim is not None:
        claim = {"claimName": cache.persistent_volume_claim.claim_name}
        return [{"name": "compiled", "persistentVolumeClaim": claim}]
    return [{"name": "compiled", **host_folder(cache.host_path.path if cache.host_path else "/nonexistent")}]


def volumes(pool: Pool, base: BaseModelResource, settings: Settings) -> list[dict[str, Any]]:
    """All volumes of a pool's pods."""
    return [
        *({"name": _volume_name(v.name), **_artifact_source(v)} for v in pool.serving.artifact_volumes),
        cache_volume(pool.serving.cache),
        *_compile_cache_volume(pool.serving.compile_cache),
        *_base_volumes(base, settings),
        {"name": "adapters", "emptyDir": {}},
        {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        token_volume(),
        *([_certificate(pool)] if settings.pod_tls else []),
    ]


def _certificate(pool: Pool) -> dict[str, Any]:
    """Without the engine's key, which lies in the same Secret."""
    items = [{"key": name, "path": name} for name in ("tls.crt", "tls.key")]
    secret = {"secretName": names.pool_key_secret(pool.name), "items": items, "defaultMode": 0o440}
    return {"name": "certificate", "secret": secret}
