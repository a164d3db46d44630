"""Names of everything Tuneyard creates: deterministic, so that a crash never leaves an orphan under another name.

Every name here is a pure function of its arguments. Names of Kubernetes objects are at most 63 characters
(label values and pod hostnames allow no more); longer ones are cut and end in a hash of the whole.
"""

from __future__ import annotations

import hashlib
import hmac
import re

GROUP = "tuneyard.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "tuneyard-operator"

LABEL_POOL = f"{GROUP}/pool"
LABEL_WORKER_OF = f"{GROUP}/worker-of"
"""On a pod with ranks of a replica that spans nodes, and no front: its pool. It is not among the pool's pods."""
LABEL_BASE_MODEL = f"{GROUP}/base-model"
LABEL_DEPLOYMENT = f"{GROUP}/model-deployment"
LABEL_CREDENTIALS = f"{GROUP}/credentials"
"""On a Secret, `true`: sources of its namespace may use it."""
LABEL_TENANT = f"{GROUP}/tenant"
"""On a Secret or a ConfigMap of the gateways' namespace: the tenant whose keys or policy it holds."""
ANNOTATION_ENDPOINTS = f"{GROUP}/endpoints"
"""On such a Secret: URLs of the hubs, besides the public one, that its token may be sent to."""
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_NAME = "app.kubernetes.io/name"
MANAGED_BY = "tuneyard"

ANNOTATION_ADAPTERS = f"{GROUP}/adapters"
"""On a pod, written by its agent only, as JSON: a PodReport on a model pod, a KeepReport on one that keeps a cache."""
ANNOTATION_TEMPLATE = f"{GROUP}/template-hash"
"""On a model pod: hash of the template that it was made from, as the operator wanted it."""
ANNOTATION_CONTENT = f"{GROUP}/content-hash"
"""On a child: hash of what the operator wanted when it applied it, so that an unchanged child is not written."""
ANNOTATION_UNUSED_SINCE = f"{GROUP}/unused-since"
"""On a pool's Deployment: when the last ModelDeployment stopped referring to it, RFC 3339."""

ANNOTATION_COMMAND = f"{GROUP}/command"
"""On a ModelDeployment: a command for its rollout, as JSON: id, action and the revision that is meant."""
ANNOTATION_DRILL = f"{GROUP}/drill"
"""On a ModelDeployment that a rehearsal has made: the fault of one of its revisions, as JSON (api/drill.py)."""
ANNOTATION_GATE = f"{GROUP}/gate"
"""On the Job of a gate: whose it is, as JSON, see planning.gatejobs."""
ANNOTATION_BUILD = f"{GROUP}/build"
"""On the Job of a build: which attempt of which build it is, as JSON, see planning.buildobservations."""
LABEL_BUILD = f"{GROUP}/build"
"""On the Job of a build and on its pods: the BaseModel that is built, as a label value."""
BUILD = "build"
"""Value of the label app.kubernetes.io/component of everything that runs a build."""
GATE = "gate"
"""Value of the label app.kubernetes.io/component of everything that runs a gate."""
GATE_REPORTS = "gate-reports"
"""Value of the same label of the ConfigMaps that keep what gates found."""
ROLLOUT_RECORD = "rollout-record"
"""Value of the label app.kubernetes.io/component of the ConfigMaps that outlive their ModelDeployments."""

ROLLOUT_EVIDENCE = "rollout-evidence"
"""The same of the ConfigMaps that keep the evidence on candidates."""

AGENT_SERVICE_ACCOUNT = "tuneyard-agent"
GATEWAY_POD_READER = "tuneyard-gateway"

FRONT_PORT = 8080
"""TCP port of the pod's front (Envoy) on the pod address: the only way to the engine from outside the pod."""
ENGINE_PORT = 8000
"""TCP port of the engine on the pod's loopback."""
AGENT_PORT = 9080
"""TCP port of the agent on the pod's loopback (drain, health)."""
GATEWAY_PORT = 8080
"""TCP port on which gateways' Envoys take clients' requests."""
GATEWAY_TLS_PORT = 8443
"""The same with TLS, where the installation has a certificate."""
GATEWAY_OBSERVE_PORT = 9443
"""TCP port on which a gateway process answers the operator (what it has applied); bearer token."""

MODEL_HEADER = "x-model"
TENANT_HEADER = "x-tenant"
"""Whose request it is, as the gateway itself says: what a client sends under this name is removed."""
REVISION_HEADER = "x-revision"
GATE_TOKEN_HEADER = "tuneyard-gate"  # noqa: S105
"""On requests of a gate's pod: the token by which it may choose a revision that clients may not."""
GATE_RUN_HEADER = "tuneyard-gate-run"
"""On the same requests: how far the run is (gatereports.GateRun)."""
GATE_TENANT = "tuneyard/gate"
"""Its value on requests of gates; no tenant can have this name."""
ADAPTER_HEADER = "x-adapter"
"""On answers of a revision with an adapter: `name@sha256:<hex>`, the bytes that answered."""
BASE_HEADER = "x-base-model"
"""On answers of a base itself: the same of the BaseModel."""

_MAX_NAME = 63


def short_hash(*parts: str, length: int = 8) -> str:
    """Hex SHA-256 over the parts, cut to `length` characters."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


def bounded(name: str, limit: int = _MAX_NAME) -> str:
    """`name` if it has at most `limit` characters, else its beginning and a hash of the whole."""
    if len(name) <= limit:
        return name
    return f"{name[: limit - 9].rstrip('-.')}-{short_hash(name)}"


def pool_name(base_model: str, deployment: str | None = None, revision: str | None = None) -> str:
    """The pool of a base model: the shared one, or the own one of a deployment (or of one of its revisions).

    The name does not depend on the serving settings, so that a change of them rolls the same Deployment.
    """
    if deployment is None:
        return bounded(base_model, 52)
    return bounded(f"{base_model}-{short_hash(base_model, deployment, revision or '')}", 52)


def pool_deployment(pool: str) -> str:
    """Name of the pool's apps/v1 Deployment, PodDisruptionBudget, NetworkPolicy and headless Service."""
    return bounded(f"{pool}-pool")


def pool_groups(pool: str) -> str:
    """Name of the pool's LeaderWorkerSet, and of the NetworkPolicy between its pods: a DNS label that begins with a letter.

    Another one than the Deployment's and its Service's: a pool that changes from the one to the other has both for a
    while, and LeaderWorkerSets make a Service of their own name. At most 46 characters: StatefulSets of it have its
    name, a number, and in a label a hash of 10 characters.
    """
    name = f"{pool}-group"
    if len(name) <= 46 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        return name
    plain = re.sub(r"[^-a-z0-9]", "-", pool)
    return bounded(f"pool-{plain}", 36).rstrip("-.") + f"-{short_hash(pool)}"


def pool_plan(pool: str) -> str:
    """Name of the pool's plan ConfigMap."""
    return bounded(f"{pool}-plan")


def pool_key_secret(pool: str) -> str:
    """Name of the Secret that holds the pool's engine API key under `key`."""
    return bounded(f"{pool}-engine-key")


def rollout_record(deployment: str) -> str:
    """Name of the ConfigMap that keeps a ModelDeployment's verdicts beyond the object itself."""
    return bounded(f"{deployment}-verdicts")


def rollout_evidence(deployment: str) -> str:
    """Name of the ConfigMap that keeps the evidence on a ModelDeployment's candidate."""
    return bounded(f"{deployment}-evidence")


def gate_reports(deployment: str) -> str:
    """Name of the ConfigMap that keeps what gates found of a ModelDeployment's revisions."""
    return f"{bounded(deployment, 55)}-reports"


def gate_job(deployment: str, key: str, attempt: int) -> str:
    """Name of the Job that runs a gate, and of the ConfigMap that tells it what to do."""
    return f"{bounded(deployment, 41)}-gate-{short_hash(deployment, key, str(attempt), length=10)}"


def gate_secret(job: str) -> str:
    """Name of the Secret with the token of a gate's Job, under `token`."""
    return f"{job}-token"


def build_task(base_model: str, key: str) -> str:
    """Name of the ConfigMap that tells the Jobs of a build what to do, the same for every attempt."""
    return f"{bounded(base_model, 40)}-build-{short_hash(base_model, key, length=10)}-task"


def build_job(base_model: str, uid: str, key: str, attempt: int) -> str:
    """Name of the Job of one attempt of a build. `uid`: the BaseModel's, so that one made anew takes no old result."""
    return f"{bounded(base_model, 40)}-build-{short_hash(base_model, uid, key, str(attempt), length=10)}"


def prewarm(base_model: str) -> str:
    """Name of the DaemonSet that fills nodes' caches for a base, of its plan ConfigMap and of the right to read that."""
    return f"{bounded(base_model, 55)}-prewarm"


def engine_adapter_name(adapter: str, digest: str) -> str:
    """The engine's name of an adapter: its own and the first 12 hex digits of its digest (`sha256:<hex>`)."""
    return f"{adapter}-{digest.removeprefix('sha256:')[:12]}"


def engine_key(master: bytes, namespace: str, pool: str) -> str:
    """The API key of a pool's engines, derived so that gateways need no tenant's Secret: HMAC-SHA256, hex."""
    return hmac.new(master, f"engine/{namespace}/{pool}".encode(), hashlib.sha256).hexdigest()


def pod_server_name(namespace: str, pool: str) -> str:
    """What the certificate of a pool's pods names: no DNS knows it. A namespace has no dots, a pool may have some."""
    return f"{pool}.{namespace}.tuneyard"


def gate_token(master: bytes, namespace: str, deployment: str) -> str:
    """The value of GATE_TOKEN_HEADER by which gates of a ModelDeployment choose its revisions."""
    return hmac.new(master, f"gate/{namespace}/{deployment}".encode(), hashlib.sha256).hexdigest()


def tenants_namespace(namespace: str) -> str:
    """Where tenants' keys and policies are, unless the chart says otherwise; `namespace`: of operator and gateways."""
    return f"{namespace}-tenants"


def observe_token(master: bytes) -> str:
    """The bearer token with which the operator reads the gateways' observations."""
    return hmac.new(master, b"observe", hashlib.sha256).hexdigest()
