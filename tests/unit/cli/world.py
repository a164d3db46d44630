"""One canary as the API server would hold it: v1 stable, v2 refused on one of two pods. Shared by the tests here."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from tuneyard.api import names
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.documents import AdapterReport, PodReport, Transfer
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource, ModelDeploymentStatus
from tuneyard.cli.statusview import Read
from tuneyard.planning.observations import pod_observation

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "ab" * 32
BASE, V1, V2 = "smollm2", "acme-support-v1", "acme-support-v2"
NO_STATUS = ModelDeploymentStatus()
SOURCE = {"volume": {"name": "models", "path": "x"}}


def condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-03-01T11:58:00Z",
    }


def metadata(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "models",
        "uid": f"uid-{name}",
        "generation": 3,
        "creationTimestamp": "2026-03-01T11:00:00Z",
        **more,
    }


def deployment(ready: bool = False, **status: Any) -> ModelDeploymentResource:
    return ModelDeploymentResource.from_dict(
        {
            "metadata": metadata("acme-support"),
            "spec": {
                "revisions": [
                    {"name": "v1", "baseModel": BASE, "adapter": V1},
                    {"name": "v2", "baseModel": BASE, "adapter": V2},
                ],
                "traffic": [{"revision": "v1", "weight": 90}, {"revision": "v2", "weight": 10}],
            },
            "status": {
                "observedGeneration": 3,
                "url": "http://tuneyard-gateway.tuneyard-system.svc:8080/v1",
                "reason": None if ready else "NoReadyEndpoint",
                "traffic": [
                    {
                        "revision": "v1",
                        "specWeight": 90,
                        "weight": 90 if ready else 100,
                        "verified": True,
                        "readyEndpoints": 2,
                    },
                    {
                        "revision": "v2",
                        "specWeight": 10,
                        "weight": 10 if ready else 0,
                        "verified": True,
                        "readyEndpoints": 2 if ready else 0,
                        **({} if ready else {"withheld": "NoReadyEndpoint: no pod serves revision v2"}),
                    },
                ],
                "rollout": {"phase": "Completed" if ready else "Progressing", "stable": "v1", "candidate": "v2"},
                "conditions": [
                    condition("Ready", "True", "Ready")
                    if ready
                    else condition("Ready", "False", "NoReadyEndpoint", "revision v2 gets 0 of 10 %"),
                    condition("Accepted", "True", "Accepted"),
                    *([] if ready else [condition("Reconciling", "True", "Loading")]),
                ],
                **status,
            },
        }
    )


def adapter(name: str) -> LoRAAdapterResource:
    return LoRAAdapterResource.from_dict(
        {
            "metadata": metadata(name),
            "spec": {"baseModel": BASE, "source": SOURCE},
            "status": {
                "observedGeneration": 3,
                "rank": 8,
                "size": "3.5 MiB",
                "loaded": "2/2" if name == V1 else "0/2",
                "conditions": [
                    condition("Ready", "True", "Loaded") if name == V1 else condition("Ready", "False", "RankTooHigh")
                ],
            },
        }
    )


def base() -> BaseModelResource:
    return BaseModelResource.from_dict(
        {
            "metadata": metadata(BASE),
            "spec": {"source": SOURCE},
            "status": {
                "observedGeneration": 3,
                "engine": "vllm",
                "tensorParallelSize": 1,
                "replicas": "2/2",
                "usedBy": ["acme-support"],
                "pools": [{"name": BASE, "replicas": 2, "readyReplicas": 2}],
                "conditions": [condition("Ready", "True", "Available")],
            },
        }
    )


def pod(name: str, report: PodReport | None, pool: str = BASE, **status: Any) -> dict[str, Any]:
    annotations = {names.ANNOTATION_ADAPTERS: json.dumps(report.to_dict())} if report else {}
    labels = {names.LABEL_POOL: pool, names.LABEL_BASE_MODEL: BASE}
    return {
        "metadata": metadata(name, labels=labels, annotations=annotations),
        "spec": {"nodeName": "node-1"},
        "status": status,
    }


def report(v2: AdapterReport | None) -> PodReport:
    loaded = AdapterReport(state="Loaded", digest=DIGEST, engine_name=names.engine_adapter_name(V1, DIGEST))
    return PodReport(
        address="10.1.0.2:8080", engine="Ready", base_model=BASE, adapters={V1: loaded, **({V2: v2} if v2 else {})}
    )


def event(reason: str, message: str, at: str, kind: str = "ModelDeployment", name: str = "acme-support") -> Any:
    return {
        "type": "Warning" if "Fail" in reason else "Normal",
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "involvedObject": {"kind": kind, "name": name},
    }


FAILED = AdapterReport(
    state="Failed", digest=DIGEST, reason="RankTooHigh", message="rank 64 is over serving.lora.maxRank 16"
)


def read(ready: bool = False) -> Read:
    good = AdapterReport(state="Loaded", digest=DIGEST, engine_name=names.engine_adapter_name(V2, DIGEST))
    pods = [
        pod("smollm2-pool-5d8c7b9f4-aaaaa", report(good if ready else FAILED)),
        pod("smollm2-pool-5d8c7b9f4-bbbbb", report(good if ready else None)),
        pod("other-pool-1", report(None), pool="other"),
    ]
    return Read(
        deployments=[deployment(ready)],
        base_models=[base()],
        adapters=[adapter(V1), adapter(V2)],
        pods=[pod_observation(p) for p in pods],
        events=[
            event("AdapterLoadFailed", "smollm2-pool-5d8c7b9f4-aaaaa: rank 64 is over 16", "2026-03-01T11:59:30Z",
                  "LoRAAdapter", V2),
            event("WeightChanged", "v2 0 -> 10", "2026-03-01T11:50:00Z"),
        ],
    )  # fmt: skip


def fetching() -> Read:
    """v2, the base of a second pool and what nodes keep are on their way."""
    transfer = Transfer(done_bytes=900 << 20, total_bytes=2 << 30, bytes_per_second=118 << 20)
    coming = AdapterReport(state="Loading", reason="Fetching", transfer=transfer)
    pools = [
        {"name": BASE, "replicas": 2, "readyReplicas": 2, "progress": "serving"},
        {"name": "own", "deployment": "own", "replicas": 1, "readyReplicas": 0, "progress": FETCHING},
    ]
    status = {"pools": pools, "prewarmed": "2/3", "prewarmProgress": FETCHING}
    base_model, v2 = base(), adapter(V2)
    return Read(
        deployments=[deployment()],
        base_models=[BaseModelResource.from_dict(_with_status(base_model.to_dict(), status))],
        adapters=[adapter(V1), LoRAAdapterResource.from_dict(_with_status(v2.to_dict(), {"progress": FETCHING}))],
        pods=[pod_observation(pod("smollm2-pool-5d8c7b9f4-aaaaa", report(coming)))],
    )


FETCHING = "fetching: 43 % of 2.0 GiB at 118.0 MiB/s"


def _with_status(document: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return {**document, "status": {**document["status"], **more}}
