"""Parts that model pods and those that only fill a node's cache have in common.

Rules:
- the service-account token is mounted where a container needs it, never by default;
- of a folder of the node a container sees its namespace's part only;
- everything fits Pod Security "restricted", but for hostPath volumes.
"""

from __future__ import annotations

import json
import posixpath
from typing import Any

from tuneyard.api import names
from tuneyard.api.serving import ArtifactCache
from tuneyard.api.sources import Source
from tuneyard.planning.engines import capabilities
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings

CACHE = "/cache"
"""What was fetched over the network; see docs/explanation/artifact-cache.md."""
BASE = "/base"
BASE_LINK = f"{BASE}/model"
"""A link that `verify` makes, to the base's files in the cache: where these lie is known once their digest is."""
BASE_DIGEST = "base-digest"
"""Key of the plan ConfigMap: the base's pinned digest, empty while nothing is pinned."""
RUN = "/run/tuneyard"
KEPT_MARK = f"{RUN}/kept"
"""File that is there while a node's cache holds everything that a prewarm plan names, and none of it can go."""
KEY = "key"
"""Key of the engine key Secret."""
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
USER = 65532


def security_context() -> dict[str, Any]:
    """The pod's."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container(name: str, image: str, settings: Settings, **fields: Any) -> dict[str, Any]:
    """A container that may nothing that it need not."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        **fields,
    }


def requests(cpu: str, memory: str) -> dict[str, Any]:
    """Resources that are asked for, without a limit."""
    return {"requests": {"cpu": cpu, "memory": memory}}


def bounded(cpu: str, memory: str, settings: Settings) -> dict[str, Any]:
    """Resources of a process that reads artifacts, with a limit: what strangers write must not take a node's memory."""
    return {**requests(cpu, memory), "limits": {"memory": settings.agent_memory_limit}}


def literal(text: str) -> str:
    """Text that the kubelet does not expand as $(VARIABLE)."""
    return text.replace("$(", "$$(")


def value(name: str, text: str) -> dict[str, Any]:
    """An environment variable."""
    return {"name": name, "value": text}


def field(name: str, path: str) -> dict[str, Any]:
    """An environment variable with something of the pod's own."""
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def _identity() -> list[dict[str, Any]]:
    """Who the pod is, for who writes its annotation."""
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "POD_IP": "status.podIP",
    }
    return [field(name, path) for name, path in fields.items()]


def fetching(cache: ArtifactCache, settings: Settings) -> list[dict[str, Any]]:
    """What a process is told that fetches into the cache: who its pod is, how much the cache may hold, which mirror
    stands for the public hub, and where a private authority's certificate can lie while a client reads it, for the root
    file system is read-only.
    """
    limit = [] if cache.size_limit is None else [value("TUNEYARD_CACHE_LIMIT", str(cache.size_limit))]
    mirror = [value("HF_ENDPOINT", settings.hub_endpoint)] if settings.hub_endpoint else []
    return [*_identity(), *limit, *mirror, value("TMPDIR", RUN)]


def engine_settings(pool: Pool) -> list[dict[str, Any]]:
    """What verify and the agent are told of an engine that is not vLLM."""
    serving = pool.serving
    if serving.engine == "vllm":
        return []
    row = capabilities(serving.engine, serving.custom)
    return [
        value("TUNEYARD_ENGINE", serving.engine),
        value("TUNEYARD_ENGINE_ADAPTERS", row.adapters.value),
        value("TUNEYARD_ENGINE_HEALTH", row.health_path),
        value("TUNEYARD_ENGINE_MODEL", literal(row.model_name or pool.base_model)),
    ]


def base_digest(config_map: str) -> dict[str, Any]:
    """Tells `verify` the base's pinned digest, which stands in the ConfigMap of a plan."""
    key = {"name": config_map, "key": BASE_DIGEST}
    return {"name": "TUNEYARD_BASE_DIGEST", "valueFrom": {"configMapKeyRef": key}}


def source_text(source: Source) -> str:
    """A source as containers are told it."""
    return literal(json.dumps(source.to_dict(), sort_keys=True))


def mount(volume: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    """A volume of the pod in a container."""
    found: dict[str, Any] = {"name": volume, "mountPath": path}
    return {**found, "readOnly": True} if read_only else found


def cache_mount(namespace: str, cache: ArtifactCache, *, read_only: bool = False) -> dict[str, Any]:
    """The cache's volume in a container."""
    found = mount("cache", CACHE, read_only=read_only)
    # of a folder of the node, each namespace sees its own part only
    return {**found, "subPath": namespace} if cache.host_path else found


def host_folder(path: str) -> dict[str, Any]:
    """A folder of the node that is there."""
    return {"hostPath": {"path": posixpath.normpath("/" + path.lstrip("/")), "type": "Directory"}}


def cache_volume(cache: ArtifactCache) -> dict[str, Any]:
    """Where fetched artifacts are kept."""
    if cache.persistent_volume_claim is not None:
        return {"name": "cache", "persistentVolumeClaim": {"claimName": cache.persistent_volume_claim.claim_name}}
    return {"name": "cache", **(host_folder(cache.host_path.path) if cache.host_path else {"emptyDir": {}})}


def token_volume() -> dict[str, Any]:
    """The agents' token, as Kubernetes itself would mount it."""
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
    ]
    return {"name": "token", "projected": {"sources": sources}}


def token_mount() -> dict[str, Any]:
    """The token, where clients look for it."""
    return mount("token", SERVICE_ACCOUNT, read_only=True)


def key_variable(name: str, pool: str) -> dict[str, Any]:
    """The engine's key as an environment variable, by name of the pool's Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": names.pool_key_secret(pool), "key": KEY}}}
