"""Where the adapters of a replica lie that spans nodes: on the pool's cache claim, in a folder of the replica's own.

Rules:
- every rank reads an adapter's files when it is loaded, and again whenever it comes back into a slot, all under one
  path. Only the leader has an agent, so that nobody has to wait for another pod's copy: a rank that misses a folder
  dies with every stream;
- the folder goes by the address of the leader, which all pods of the replica are told, and no pod of another has;
- without a claim that all nodes can mount there is no such folder: such a pool serves bases, and merged models.
"""

from __future__ import annotations

from typing import Any

from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ArtifactCache
from tuneyard.planning.observations import Problem

FOLDER = "replicas"
"""Beside the cache's own folders."""


def shares_adapters(nodes_per_replica: int, cache: ArtifactCache) -> bool:
    """Whether the pods of a replica read its adapters from one folder."""
    return nodes_per_replica > 1 and cache.persistent_volume_claim is not None


def shared_mount(path: str, *, read_only: bool = False) -> dict[str, Any]:
    """The replica's folder in a container; LeaderWorkerSets tell each container the leader's address."""
    found: dict[str, Any] = {
        "name": "cache",
        "mountPath": path,
        "subPathExpr": f"{FOLDER}/$(LWS_LEADER_ADDRESS)",
    }
    return {**found, "readOnly": True} if read_only else found


def adapters_not_shared(cache: ArtifactCache) -> Problem | None:
    """The ranks on other nodes could not read an adapter."""
    if cache.persistent_volume_claim is not None:
        return None
    return Problem(
        Reason.ADAPTERS_NOT_SHARED,
        "the pool's replicas span nodes (serving.nodesPerReplica), so their adapters need a folder that all of these "
        "can mount: give serving.cache a persistentVolumeClaim with access mode ReadWriteMany, or serve the adapter "
        "merged into its base",
    )
