"""The pod of a pool: one engine, an Envoy front as the only way in, an agent beside it, and a check before all.

Rules:
- the engine listens on loopback and has no service-account token; the token is mounted in the agent alone, bound to
  the pod, at the usual path;
- containers start in the order verify, front, agent, engine; front and agent are native sidecars, so that at the end
  the engine goes first and the front, which tells clients what happens, last;
- nothing in here depends on adapters, pinned digests or keys: these change while pods run and must not roll them. What
  changes reaches a starting pod through the plan ConfigMap and the key Secret, by name;
- everything fits Pod Security "restricted", but for hostPath volumes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.serving import Resources, Toleration
from tuneyard.planning import enginecontainer
from tuneyard.planning.enginepresets import engine_of, preset_of
from tuneyard.planning.engines import capabilities
from tuneyard.planning.gpumemory import checked_demand
from tuneyard.planning.observations import AGENT, ENGINE, FRONT, VERIFY
from tuneyard.planning.podparts import (
    BASE,
    RUN,
    base_digest,
    bounded,
    cache_mount,
    container,
    engine_settings,
    fetching,
    key_variable,
    literal,
    mount,
    requests,
    security_context,
    source_text,
    token_mount,
    value,
)
from tuneyard.planning.podvolumes import artifact_mounts, base_mounts, base_path, compile_cache_mounts, volumes
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings
from tuneyard.planning.sharedadapters import shared_mount, shares_adapters

ADAPTERS = "/adapters"
FRONT_CONFIG = f"{RUN}/front.yaml"
FRONT_CERTIFICATE = "/etc/tuneyard-front"
"""Where the front, and nobody else in the pod, has the pool's certificate and its key."""
SERVED_MARK = f"{RUN}/served"
"""File that says that this pod has once had all adapters of its plan."""
GRACE_BEYOND_DRAIN = 60
"""Seconds that a pod has beyond its drain timeout: gateways drop it before, the engine ends after."""
LOST_NODE_SECONDS = 30
"""Seconds after which a pod is replaced whose node does not answer; Kubernetes' own are 300."""
_STARTUP_PERIOD = 2


def pod_labels(pool: Pool) -> dict[str, str]:
    """Labels of the pool's pods; all are label values, whatever the names are."""
    return {
        names.LABEL_NAME: "tuneyard-pool",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: "pool",
        names.LABEL_POOL: pool.name,
        names.LABEL_BASE_MODEL: names.bounded(pool.base_model),
    }


def pod_template(pool: Pool, base: BaseModelResource, settings: Settings) -> dict[str, Any]:
    """The pod template of a pool whose serving block passed servingchecks.violation.

    Where a replica spans nodes it is that of its leader: the one pod that others know of.
    """
    containers = [verify(pool, base, settings, front=True), _front(pool, settings), _agent(pool, base, settings)]
    return template(pool, base, settings, pod_labels(pool), [*containers, _engine(pool, base, settings)])


def template(
    pool: Pool, base: BaseModelResource, settings: Settings, labels: dict[str, str], containers: list[dict[str, Any]]
) -> dict[str, Any]:
    """The template of pods with these labels and containers, the engine last, and the others to be started before."""
    serving = pool.serving
    spread_over = names.LABEL_POOL if names.LABEL_POOL in labels else names.LABEL_WORKER_OF
    spec: dict[str, Any] = {
        "serviceAccountName": names.AGENT_SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": serving.drain_timeout + GRACE_BEYOND_DRAIN,
        "securityContext": security_context(),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {spread_over: pool.name}},
            }
        ],
        "initContainers": containers[:-1],
        "containers": containers[-1:],
        "volumes": volumes(pool, base, settings),
        "tolerations": [*(t.to_dict() for t in serving.tolerations), *_lost_nodes(serving.tolerations)],
    }
    if settings.model_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.model_pull_secrets]
    if serving.node_selector:
        spec["nodeSelector"] = dict(serving.node_selector)
    metadata: dict[str, Any] = {"labels": labels}
    if settings.agent_service_account_annotations:
        metadata["annotations"] = _identity_stays_out_of_engines()
    return {"metadata": metadata, "spec": spec}


def _identity_stays_out_of_engines() -> dict[str, str]:
    """Amazon's webhook gives a pod's identity to all of its containers but those that are named here."""
    return {"eks.amazonaws.com/skip-containers": f"{ENGINE},{FRONT}"}


def _lost_nodes(given: Iterable[Toleration]) -> list[dict[str, Any]]:
    """How long a pod stays on a node that is lost, where the user says nothing of it."""
    said = {t.key for t in given if t.effect in (None, "NoExecute")}
    if None in said:
        # tolerates everything, and may mean it for ever
        return []
    return [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
        for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
        if key not in said
    ]


def engine_resources(asked_for: Resources) -> dict[str, Any]:
    """Quantities as text, the one form in which the API server gives them back."""
    return {kind: {r: str(q) for r, q in given.items()} for kind, given in asked_for.to_dict().items()}


def verify(pool: Pool, base: BaseModelResource, settings: Settings, *, front: bool) -> dict[str, Any]:
    """What looks at the base before all; where that is fetched over the network, it also fetches it.

    `front`: the pod has one, whose configuration it writes.
    """
    source = base.spec.source
    certificate = ["--front-certificate", FRONT_CERTIFICATE] if settings.pod_tls else []
    env, fetch = [base_digest(names.pool_plan(pool.name))], []
    mounts = [*artifact_mounts(pool.serving.artifact_volumes), mount("run", RUN)]
    if source.is_remote:
        fetch = ["--source", source_text(source)]
        env += fetching(pool.serving.cache, settings)
        mounts += [cache_mount(pool.namespace, pool.serving.cache), mount("base", BASE), token_mount()]
    else:
        mounts += base_mounts(base)
    return container(
        VERIFY,
        settings.images.tuneyard,
        settings,
        command=["tuneyard", "agent", "verify"],
        args=[
            *("--base-model", literal(pool.base_model)),
            *("--path", literal(base_path(base))),
            *("--tensor-parallel-size", str(pool.serving.tensor_parallel_size)),
            "--digest=$(TUNEYARD_BASE_DIGEST)",
            *(["--front-config", FRONT_CONFIG, *certificate] if front else []),
            *_memory(pool, settings),
            *fetch,
        ],
        env=[*env, *engine_settings(pool), *_known_vllm(pool, settings)],
        resources=bounded("100m", "128Mi", settings),
        volumeMounts=mounts,
    )


def _known_vllm(pool: Pool, settings: Settings) -> list[dict[str, Any]]:
    """Which vLLM it is, where it is known how bases may be quantised for it."""
    engine = engine_of(pool.serving, settings.images.vllm)
    if preset_of(engine) is None:
        return []
    return [value("TUNEYARD_ENGINE_VERSION", engine.version), value("TUNEYARD_ENGINE_BUILD", engine.build)]


def _memory(pool: Pool, settings: Settings) -> list[str]:
    """What is compared with the base's files before the engine starts."""
    demand = checked_demand(pool.serving, settings)
    return ["--memory", json.dumps(demand.to_dict(), sort_keys=True)] if demand else []


def _front(pool: Pool, settings: Settings) -> dict[str, Any]:
    guards = capabilities(pool.serving.engine, pool.serving.custom).guards
    return container(
        FRONT,
        settings.images.envoy,
        settings,
        restartPolicy="Always",
        command=["envoy"],
        args=["-c", FRONT_CONFIG, "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"],
        **({} if guards else {"env": [key_variable("TUNEYARD_ENGINE_KEY", pool.name)]}),
        ports=[{"name": "front", "containerPort": names.FRONT_PORT, "protocol": "TCP"}],
        resources=requests("50m", "64Mi"),
        volumeMounts=[
            mount("run", RUN),
            *([mount("certificate", FRONT_CERTIFICATE, read_only=True)] if settings.pod_tls else []),
        ],
    )


def _agent(pool: Pool, base: BaseModelResource, settings: Settings) -> dict[str, Any]:
    serving = pool.serving
    return container(
        AGENT,
        settings.images.tuneyard,
        settings,
        restartPolicy="Always",
        command=["tuneyard", "agent", "run"],
        env=[
            *fetching(serving.cache, settings),
            value("TUNEYARD_POOL", pool.name),
            value("TUNEYARD_BASE_MODEL", literal(pool.base_model)),
            value("TUNEYARD_BASE_PATH", literal(base_path(base))),
            *_base_source(base),
            value("TUNEYARD_MAX_RANK", str(serving.lora.max_rank)),
            value("TUNEYARD_MAX_CPU_LORAS", str(serving.lora.max_cpu_loras)),
            value("TUNEYARD_DRAIN_TIMEOUT", str(serving.drain_timeout)),
            *([value("TUNEYARD_FRONT_TLS", "true")] if settings.pod_tls else []),
            *(
                [value("TUNEYARD_SHARED_ADAPTERS", "true")]
                if shares_adapters(serving.nodes_per_replica, serving.cache)
                else []
            ),
            *engine_settings(pool),
            key_variable("TUNEYARD_ENGINE_KEY", pool.name),
        ],
        readinessProbe={
            "exec": {"command": _served_once()},
            "initialDelaySeconds": 5,
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 3,
        },
        livenessProbe={
            "exec": {"command": _loopback("GET", "/healthz", 5)},
            "initialDelaySeconds": 30,
            "periodSeconds": 30,
            "timeoutSeconds": 15,
            "failureThreshold": 4,
        },
        resources=bounded("50m", "128Mi", settings),
        volumeMounts=[
            *artifact_mounts(serving.artifact_volumes),
            *base_mounts(base),
            cache_mount(pool.namespace, pool.serving.cache),
            adapters_mount(pool),
            mount("run", RUN),
            token_mount(),
        ],
    )


def adapters_mount(pool: Pool, *, read_only: bool = False) -> dict[str, Any]:
    """Where checked adapters lie that engines read: in the pod, or in a folder of all pods of the replica."""
    serving = pool.serving
    if shares_adapters(serving.nodes_per_replica, serving.cache):
        return shared_mount(ADAPTERS, read_only=read_only)
    return mount("adapters", ADAPTERS, read_only=read_only)


def _engine(pool: Pool, base: BaseModelResource, settings: Settings) -> dict[str, Any]:
    serving = pool.serving
    health = {"path": "/health", "port": names.FRONT_PORT}
    return container(
        ENGINE,
        settings=settings,
        **enginecontainer.started(pool, base, settings),
        resources=engine_resources(serving.resources),
        startupProbe={
            "httpGet": health,
            "periodSeconds": _STARTUP_PERIOD,
            "timeoutSeconds": 5,
            "failureThreshold": max(1, math.ceil(serving.startup_timeout / _STARTUP_PERIOD)),
        },
        readinessProbe={"httpGet": health, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        livenessProbe={
            "httpGet": health,
            "periodSeconds": 10,
            "timeoutSeconds": 10,
            "failureThreshold": 6,
            # an engine that fails it ends nothing well; vLLM's server waits without limit for requests that a dead core
            # never answers, and would hold its container for the pod's whole grace period
            "terminationGracePeriodSeconds": GRACE_BEYOND_DRAIN,
        },
        lifecycle={"preStop": {"exec": {"command": _drain(pool)}}},
        volumeMounts=engine_mounts(pool, base),
    )


def engine_mounts(pool: Pool, base: BaseModelResource) -> list[dict[str, Any]]:
    """What an engine reads, and where it may write."""
    return [
        *artifact_mounts(pool.serving.artifact_volumes),
        *base_mounts(base),
        *([cache_mount(pool.namespace, pool.serving.cache, read_only=True)] if base.spec.source.is_remote else []),
        adapters_mount(pool, read_only=True),
        mount("shm", "/dev/shm"),  # noqa: S108
        mount("tmp", "/tmp"),  # noqa: S108
        mount("home", enginecontainer.HOME),
        *compile_cache_mounts(pool),
    ]


def _loopback(method: str, path: str, timeout: int) -> list[str]:
    """A command that calls the agent from inside the pod; both images have Python, neither needs to have curl."""
    request = f"r.Request('http://127.0.0.1:{names.AGENT_PORT}{path}', method='{method}')"
    return ["python3", "-c", f"import urllib.request as r; r.urlopen({request}, timeout={timeout})"]


def _drain(pool: Pool) -> list[str]:
    """A command that drains the pod, by what its image is known to have; of others a shell with a client of HTTP."""
    seconds = pool.serving.drain_timeout + 45
    drain = _loopback("POST", "/drain", seconds)
    if pool.serving.engine not in ("ollama", "custom"):
        return drain
    url = f"http://127.0.0.1:{names.AGENT_PORT}/drain"
    plain = "POST /drain HTTP/1.0\\r\\nHost: agent\\r\\nContent-Length: 0\\r\\n\\r\\n"
    script = f"""
if command -v python3 >/dev/null; then exec python3 -c "$1"; fi
if command -v curl >/dev/null; then exec curl -sf -m {seconds} -X POST {url}; fi
if command -v wget >/dev/null; then exec wget -q -T {seconds} -O - --post-data= {url}; fi
if command -v bash >/dev/null; then
  exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/{names.AGENT_PORT}; printf "{plain}" >&3; cat <&3 >/dev/null'
fi
echo "python3, curl, wget or bash is needed to drain this pod" >&2
exit 1
"""
    return ["sh", "-c", script.strip(), "drain", drain[-1]]


def _served_once() -> list[str]:
    """Fails until the agent has tried every adapter of its share of the plan and published what became of them.

    A rollout must not take the last pod that has them, nor wait for a source that trickles (slowfetches.py); /report is
    what others can read, not what the agent knows.
    Afterwards it passes for good, because an adapter that is added later makes no pod unready for the others.
    """
    script = f"""
import json, os, sys, urllib.request
mark, awaited = {SERVED_MARK!r}, lambda a: a["state"] == "Loading" and not a.get("overdue")
if not os.path.exists(mark):
    report = json.load(urllib.request.urlopen("http://127.0.0.1:{names.AGENT_PORT}/report", timeout=5))
    adapters = report.get("adapters", {{}}).values()
    if report.get("engine") != "Ready" or report.get("awaitsShare") or any(map(awaited, adapters)):
        sys.exit("the engine or an adapter is not ready")
    open(mark, "w").close()
"""
    return ["python3", "-ISc", script.strip()]


def _base_source(base: BaseModelResource) -> list[dict[str, Any]]:
    """For an agent that finds its base gone from the cache."""
    return [value("TUNEYARD_BASE_SOURCE", source_text(base.spec.source))] if base.spec.source.is_remote else []
