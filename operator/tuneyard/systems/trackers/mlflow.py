"""A run of an MLflow tracking server, by its REST API 2.0 (`runs/get`, `artifacts/list`, and the file itself).

Rules:
- parameters are hyperparameters, metrics by name evaluations, datasets that were logged for training the data;
- where the artifacts lie on S3 and one folder of them is an adapter, that is the source;
- artifacts are an extra: a server that does not show them leaves a note.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from tuneyard.systems.trackers.adapterfolder import ADAPTER_CONFIG, add_adapter_config
from tuneyard.systems.trackers.record import Record, Selection, moment
from tuneyard.systems.trackers.server import Server, TrackerError

LOGIN = "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
_API = "/api/2.0/mlflow"
_FOLDERS = 40
"""How many folders of artifacts are looked into for an adapter."""


def mlflow_record(server: Server, run_id: str, selection: Selection) -> Record:
    """What the server knows of a run; raises TrackerError where there is no such run."""
    try:
        run = server.json(f"{_API}/runs/get", {"run_id": run_id})["run"]
        record = record_of(run, server.url, selection)
    except TrackerError as error:
        if error.missing:
            raise TrackerError(f"{server.url} has no run {run_id}: {error}") from None
        raise
    except (KeyError, TypeError, AttributeError):
        raise TrackerError(f"{server.url} does not answer like MLflow: is it the right address?") from None
    _add_artifacts(record, server, run_id, str(run.get("info", {}).get("artifact_uri") or ""), selection)
    return record


def record_of(run: Mapping[str, Any], url: str, selection: Selection) -> Record:
    """The record that a Run object holds."""
    record, info, data = Record(), run.get("info") or {}, run.get("data") or {}
    tags = {t["key"]: t.get("value") for t in data.get("tags") or []}
    run_id = info.get("run_id") or info.get("run_uuid")
    record.fill(
        run=f"{url}/#/experiments/{quote(str(info.get('experiment_id')))}/runs/{quote(str(run_id))}",
        commit=tags.get("mlflow.source.git.commit"),
        trained_by=tags.get("mlflow.user") or info.get("user_id"),
        trained_at=moment(info.get("end_time") or info.get("start_time"), 0.001),
    )
    _add_datasets(record, (run.get("inputs") or {}).get("dataset_inputs") or [])
    record.add_parameters({p["key"]: p.get("value") for p in data.get("params") or []}, selection)
    record.add_metrics({m["key"]: m.get("value") for m in data.get("metrics") or []}, selection)
    if info.get("status") not in (None, "FINISHED"):
        record.notes.append(f"the run's status is {info['status']}, not FINISHED")
    return record


def _add_datasets(record: Record, inputs: list[Mapping[str, Any]]) -> None:
    """Of datasets in several contexts, those of the training."""

    def context(item: Mapping[str, Any]) -> str | None:
        return next((t.get("value") for t in item.get("tags") or [] if t.get("key") == "mlflow.data.context"), None)

    training = [i["dataset"] for i in inputs if context(i) in ("training", "train")]
    found = training or [i["dataset"] for i in inputs if context(i) is None]
    record.fill(
        dataset=", ".join(str(d["name"]) for d in found if d.get("name")),
        dataset_hash=", ".join(str(d["digest"]) for d in found if d.get("digest")),
    )


def _add_artifacts(record: Record, server: Server, run_id: str, root: str, selection: Selection) -> None:
    try:
        path = next(_adapter_configs(server, run_id), None)
        if path is None:
            record.notes.append(f"no folder of its artifacts holds {ADAPTER_CONFIG}: name the files with --source")
            return
        folder = path.removesuffix(ADAPTER_CONFIG).strip("/")
        if root.startswith("s3://"):
            record.source = f"{root.rstrip('/')}/{folder}/".replace("//", "/").replace("s3:/", "s3://", 1)
        config = json.loads(server.get("/get-artifact", {"path": path, "run_uuid": run_id}))
        add_adapter_config(record, config, selection)
    except (TrackerError, ValueError, KeyError, TypeError, AttributeError) as error:
        record.notes.append(f"the run's artifacts cannot be read ({error})")


def _adapter_configs(server: Server, run_id: str) -> Iterator[str]:
    """Paths of adapter_config.json among the artifacts, nearest to the root first."""
    folders = [""]
    for _ in range(_FOLDERS):
        if not folders:
            return
        here = folders.pop(0)
        query = {"run_id": run_id, **({"path": here} if here else {})}
        files = server.json(f"{_API}/artifacts/list", query).get("files") or []
        yield from (f["path"] for f in files if f["path"].rpartition("/")[2] == ADAPTER_CONFIG)
        folders += sorted(f["path"] for f in files if f.get("is_dir"))
