"""A replica that spans nodes: a LeaderWorkerSet's group of a leader, which is a pod like any pool's, and its workers.

Rules:
- a worker has the engine's further ranks and nothing that others could ask: no front, no agent, and not the pool's
  label, so that gateways, endpoints and plans of adapters know leaders only;
- whatever restarts or goes in a group takes the whole group with it: ranks cannot join one that has begun. A group is
  left alone while one of its pods still starts, or each failure to fetch the base would cost what the others have;
- workers start with their leader, and leave after it: one that is told to end goes on while the leader's engine lives,
  because every stream of the leader runs through it;
- in a rollout, groups are replaced whole (grouprolling.py);
- all pods carry one mark, over both templates: a change of one is a change of the group.
"""

from __future__ import annotations

from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.planning import ranks, vllmcontainer
from tuneyard.planning.grouprolling import Rolling
from tuneyard.planning.observations import ENGINE, HOLD, WORKER
from tuneyard.planning.podparts import (
    BASE,
    RUN,
    bounded,
    cache_mount,
    container,
    fetching,
    literal,
    mount,
    source_text,
    token_mount,
)
from tuneyard.planning.podspec import engine_mounts, engine_resources, pod_template, template, verify
from tuneyard.planning.podvolumes import base_path
from tuneyard.planning.pools import Pool
from tuneyard.planning.settings import Settings

Json = dict[str, Any]

LEADER_WORKER_SET = ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet")
_LABELS = "leaderworkerset.sigs.k8s.io"
LABEL_SET = f"{_LABELS}/name"
"""On all pods of a LeaderWorkerSet: its name."""
AFTER_START = f"{_LABELS}/experimental-recreate-group-after-start"
EXCLUSIVE = f"{_LABELS}/exclusive-topology"


def worker_labels(pool: Pool) -> dict[str, str]:
    """Labels of pods that have no front."""
    return {
        names.LABEL_NAME: "tuneyard-pool",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_COMPONENT: WORKER,
        names.LABEL_WORKER_OF: pool.name,
        names.LABEL_BASE_MODEL: names.bounded(pool.base_model),
    }


def set_annotations(pool: Pool) -> dict[str, str]:
    """How the LeaderWorkerSet places and recreates groups."""
    key = pool.serving.exclusive_topology_key
    return {AFTER_START: "true", **({EXCLUSIVE: key} if key else {})}


def group_templates(pool: Pool, base: BaseModelResource, settings: Settings) -> tuple[Json, Json]:
    """The leader's and the workers'."""
    return pod_template(pool, base, settings), _worker_template(pool, base, settings)


def group_spec(pool: Pool, leader: Json, workers: Json, rolling: Rolling) -> Json:
    """The LeaderWorkerSet's spec; every field that it would fill in is given, so that nothing differs afterwards."""
    return {
        "replicas": rolling.groups,
        "startupPolicy": "LeaderCreated",
        "networkConfig": {"subdomainPolicy": "Shared"},
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"partition": rolling.partition, "maxSurge": 0, "maxUnavailable": 1},
        },
        "leaderWorkerTemplate": {
            "size": pool.serving.nodes_per_replica,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": workers,
        },
    }


def group_policy(pool: Pool) -> Json:
    """Who reaches the ports between ranks: all but one are chosen when they start, and none asks for a key."""
    pods = {"matchLabels": {LABEL_SET: names.pool_groups(pool.name)}}
    return {"podSelector": pods, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": pods}]}]}


def _worker_template(pool: Pool, base: BaseModelResource, settings: Settings) -> Json:
    holds = [_hold(pool, base, settings)] if base.spec.source.is_remote else []
    containers = [verify(pool, base, settings, front=False), *holds, _ranks(pool, base, settings)]
    return template(pool, base, settings, worker_labels(pool), containers)


def _hold(pool: Pool, base: BaseModelResource, settings: Settings) -> Json:
    """Keeps the base in the cache, as a leader's agent does, while the engine may read it."""
    cache = pool.serving.cache
    return container(
        HOLD,
        settings.images.tuneyard,
        settings,
        restartPolicy="Always",
        command=["tuneyard", "agent", "hold"],
        args=["--path", literal(base_path(base)), "--source", source_text(base.spec.source)],
        env=fetching(cache, settings),
        resources=bounded("10m", "96Mi", settings),
        volumeMounts=[cache_mount(pool.namespace, cache), mount("base", BASE), mount("run", RUN), token_mount()],
    )


def _ranks(pool: Pool, base: BaseModelResource, settings: Settings) -> Json:
    """The engine's further ranks: the leader's arguments, and no key, for nobody asks it anything."""
    serving = pool.serving
    variables = [*vllmcontainer.environment(pool, settings), *ranks.environment(pool)]
    return container(
        ENGINE,
        serving.image or settings.images.vllm,
        settings,
        command=ranks.HEADLESS_COMMAND,
        args=[*vllmcontainer.arguments(pool, base, settings), *ranks.arguments(pool), "--headless"],
        env=[v for v in variables if v["name"] != "VLLM_API_KEY"],
        resources=engine_resources(serving.resources),
        lifecycle={"preStop": {"exec": {"command": _while_the_leader_lives(serving.drain_timeout + 45)}}},
        volumeMounts=engine_mounts(pool, base),
    )


def _while_the_leader_lives(timeout: int) -> list[str]:
    """Ends when the leader's engine does not listen any more, or after so many seconds."""
    script = f"""
import os, socket, time
end = time.monotonic() + {timeout}
while time.monotonic() < end:
    try:
        socket.create_connection((os.environ[{ranks.LEADER!r}], {ranks.MASTER_PORT}), 3).close()
    except OSError:
        break
    time.sleep(1)
"""
    return ["python3", "-ISc", script.strip()]
