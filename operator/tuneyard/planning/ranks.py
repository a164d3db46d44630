"""How the engine of a replica that spans nodes is told of its other pods: vLLM's own way, without Ray.

Rules:
- every pod runs the same arguments, but for its rank and, on all but the leader, `--headless`: what differs is taken
  from the variables that LeaderWorkerSets give each container, so that one template does for all;
- a pod without an API server is started by `vllm serve`: the module that leaders run knows no `--headless`;
- a worker that finds its leader's engine at work already replaces one that was lost, and can never join: it ends, which
  has its whole group made anew. LeaderWorkerSets do that by themselves for a pod whose deletion they see, but not for
  one that is gone at once, and an engine without requests does not miss it;
- pods of a replica may be ready at very different times (one of them downloads the base): they wait for each other as
  long as an engine may take to start;
- the address is given, because a pod with several networks would guess it.
"""

from __future__ import annotations

from typing import Any

from tuneyard.api import names
from tuneyard.planning.engineinit import under_init
from tuneyard.planning.podparts import field
from tuneyard.planning.pools import Pool

MASTER_PORT = 29501
"""Where the leader waits for the others, on its pod's address; it listens for as long as its engine lives."""
LEADER = "LWS_LEADER_ADDRESS"
_INDEX = "LWS_WORKER_INDEX"
_JOIN = f"""
import os, sys, urllib.request
try:
    urllib.request.urlopen("http://" + os.environ[{LEADER!r}] + ":{names.FRONT_PORT}/health", timeout=5)
except OSError:
    os.execvp("python3", ["python3", "-m", "vllm.entrypoints.cli.main", "serve", *sys.argv[1:]])
sys.exit("the leader's engine runs already, without this pod: the whole group has to begin anew")
"""
HEADLESS_COMMAND = under_init(["python3", "-Ic", _JOIN.strip()])
"""The command of a pod that has ranks and no API server."""
EXECUTOR = "--distributed-executor-backend"


def arguments(pool: Pool) -> list[str]:
    """What the engine is told of the replica's nodes; nothing where it is on one."""
    nodes = pool.serving.nodes_per_replica
    if nodes == 1:
        return []
    given = {
        "--nnodes": str(nodes),
        "--node-rank": f"$({_INDEX})",
        "--master-addr": f"$({LEADER})",
        "--master-port": str(MASTER_PORT),
        EXECUTOR: "mp",
        "--distributed-timeout-seconds": str(pool.serving.startup_timeout),
    }
    return [part for argument in given.items() for part in argument]


def environment(pool: Pool) -> list[dict[str, Any]]:
    """Further variables of the engine; none where the replica is on one node."""
    if pool.serving.nodes_per_replica == 1:
        return []
    given = {e for e in pool.serving.env if e in ("VLLM_HOST_IP", "VLLM_ENGINE_READY_TIMEOUT_S")}
    found = [
        field("VLLM_HOST_IP", "status.podIP"),
        {"name": "VLLM_ENGINE_READY_TIMEOUT_S", "value": str(pool.serving.startup_timeout)},
    ]
    return [variable for variable in found if variable["name"] not in given]
