"""A Weights & Biases run, from its GraphQL API or from the folder that the client wrote (`wandb/run-…/files`).

Rules:
- the config is hyperparameters, the summary by name evaluations, artifacts of a type with `data` in it the data;
- keys that begin with _ are the tracker's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

from tuneyard.systems.trackers.record import Record, Selection, flattened, moment
from tuneyard.systems.trackers.server import Server, TrackerError

LOGIN = "WANDB_API_KEY"
DEFAULT_URL = "https://api.wandb.ai"
_PAGES = {DEFAULT_URL: "https://wandb.ai"}
"""Where people look at runs, for the server whose API has a host of its own."""
_QUERY = """
query Run($entity: String!, $project: String!, $name: String!) {
  project(name: $project, entityName: $entity) {
    run(name: $name) {
      name displayName state createdAt heartbeatAt commit config summaryMetrics
      user { username }
      inputArtifacts(first: 50) {
        edges { node { digest versionIndex artifactType { name } artifactSequence { name } } }
      }
    }
  }
}
"""


def run_path(text: str) -> tuple[str, str, str]:
    """(entity, project, run id) of `ENTITY/PROJECT/RUN` or of a run's web address; raises TrackerError."""
    path = urlsplit(text).path if text.startswith(("http://", "https://")) else text
    parts = [p for p in path.split("/") if p and p != "runs"]
    if len(parts) < 3 or (len(parts) > 3 and not text.startswith("http")):
        raise TrackerError(f"{text} is no run: write ENTITY/PROJECT/RUN, the run's web address, or its folder")
    return parts[0], parts[1], parts[2]


def wandb_record(server: Server, run: str, selection: Selection) -> Record:
    """What the server knows of a run; raises TrackerError where there is no such run."""
    entity, project, name = run_path(run)
    variables = {"entity": entity, "project": project, "name": name}
    answer = server.post("/graphql", {"query": _QUERY, "variables": variables})
    try:
        if answer.get("errors"):
            raise TrackerError(f"{server.url} refuses the question: {answer['errors'][0].get('message')}")
        found = (answer["data"].get("project") or {}).get("run")
        if not found:
            raise TrackerError(
                f"{server.url} shows no run {name} in {entity}/{project}: correct the path, or set {LOGIN} of who may "
                "see it"
            )
        page = "/".join(quote(part) for part in (entity, project, "runs", name))
        return record_of(found, f"{_PAGES.get(server.url, server.url)}/{page}", selection)
    except (KeyError, TypeError, AttributeError, IndexError):
        raise TrackerError(f"{server.url} does not answer like W&B: is it the right address?") from None


def record_of(found: Mapping[str, Any], page: str, selection: Selection) -> Record:
    """The record that a Run of the GraphQL API holds; `page` is its web address."""
    record, user = Record(), found.get("user") or {}
    record.fill(
        run=page,
        commit=found.get("commit"),
        trained_by=user.get("username"),
        trained_at=moment(found.get("heartbeatAt") or found.get("createdAt")),
    )
    _add_data(record, found)
    _add_config(record, _json(found.get("config")), selection)
    record.add_metrics(flattened(_json(found.get("summaryMetrics"))), selection)
    if found.get("state") not in (None, "finished"):
        record.notes.append(f"the run's state is {found['state']}, not finished")
    return record


def wandb_folder_record(folder: Path, selection: Selection) -> Record:
    """The same from a run's folder, or from the `files` in it; raises TrackerError where it is none."""
    files = folder / "files" if (folder / "files").is_dir() else folder
    config = _read(files / "config.yaml")
    summary, metadata = _read(files / "wandb-summary.json"), _read(files / "wandb-metadata.json")
    if config is None and summary is None:
        if any(folder.glob("*.wandb")):
            raise TrackerError(f"{folder} was recorded offline: `wandb sync` it, then import ENTITY/PROJECT/RUN")
        raise TrackerError(f"{folder} is no run of W&B: it holds neither config.yaml nor wandb-summary.json")
    record, known = Record(), metadata or {}
    record.fill(
        commit=(known.get("git") or {}).get("commit"),
        trained_by=known.get("username") or known.get("email"),
        trained_at=moment((summary or {}).get("_timestamp")) or moment(known.get("startedAt")),
    )
    _add_config(record, config or {}, selection)
    record.add_metrics(flattened(summary or {}), selection)
    return record


def _add_data(record: Record, run: Mapping[str, Any]) -> None:
    edges = (run.get("inputArtifacts") or {}).get("edges") or []
    nodes = [e.get("node") or {} for e in edges]
    data = [n for n in nodes if "data" in str((n.get("artifactType") or {}).get("name")).lower()]
    names = [f"{(n.get('artifactSequence') or {}).get('name')}:v{n.get('versionIndex')}" for n in data]
    record.fill(dataset=", ".join(names), dataset_hash=", ".join(str(n["digest"]) for n in data if n.get("digest")))


def _add_config(record: Record, config: Mapping[str, Any], selection: Selection) -> None:
    """Values stand beside descriptions: `{key: {desc, value}}`."""
    values = {
        key: entry["value"] if isinstance(entry, Mapping) and "value" in entry else entry
        for key, entry in config.items()
        if key != "wandb_version"
    }
    record.add_parameters(flattened(values), selection)
    parent = values.get("base_model_name_or_path") or values.get("model_name_or_path") or values.get("_name_or_path")
    record.fill(parent=parent if isinstance(parent, str) else None)


def _json(text: Any) -> dict[str, Any]:
    """What a JSONString holds."""
    try:
        found = json.loads(text or "{}")
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> dict[str, Any] | None:
    """A file of the folder (JSON is YAML too, but for tabs); None where it is not there."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TrackerError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return found if isinstance(found, dict) else {}
