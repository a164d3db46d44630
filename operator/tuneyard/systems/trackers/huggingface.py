"""A repository of the Hugging Face Hub: its commit, its model card and its adapter_config.json.

A branch or tag is resolved once, and the commit is what goes into the manifest: branches move.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from tuneyard.systems.trackers.adapterfolder import ADAPTER_CONFIG, TRAINER_STATE, add_adapter_config, add_trainer_state
from tuneyard.systems.trackers.modelcard import add_model_card
from tuneyard.systems.trackers.record import Record, Selection
from tuneyard.systems.trackers.server import Server, TrackerError

LOGIN = "HF_TOKEN of who may read it"
DEFAULT_URL = "https://huggingface.co"


def huggingface_record(server: Server, repo: str, revision: str, selection: Selection) -> Record:
    """What the hub knows of an adapter; raises TrackerError where it is none or may not be seen."""
    try:
        model = server.json(f"/api/models/{quote(repo)}/revision/{quote(revision, safe='')}")
        sha, files = str(model["sha"]), [str(s["rfilename"]) for s in model.get("siblings") or []]
    except (KeyError, TypeError):
        raise TrackerError(f"{server.url} does not answer like the Hugging Face Hub") from None
    except TrackerError as error:
        if error.missing:
            raise TrackerError(f"{server.url} has no {repo} at {revision}, or only for others: set {LOGIN}") from None
        raise
    if ADAPTER_CONFIG not in files:
        raise TrackerError(f"{repo} at {sha} is no adapter: it has no {ADAPTER_CONFIG}")

    def file(name: str) -> bytes:
        return server.get(f"/{quote(repo)}/resolve/{sha}/{quote(name)}")

    record = Record(source=f"hf://{repo}@{sha}")
    record.fill(run=f"{server.url}/{repo}/tree/{sha}")
    add_adapter_config(record, _object(file(ADAPTER_CONFIG), ADAPTER_CONFIG), selection)
    if TRAINER_STATE in files:
        add_trainer_state(record, _object(file(TRAINER_STATE), TRAINER_STATE), selection)
    if "README.md" in files:
        add_model_card(record, file("README.md").decode(errors="replace"), selection)
    else:
        record.notes.append("the repository has no model card (README.md)")
    return record


def _object(body: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise TrackerError(f"{name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise TrackerError(f"{name} holds no JSON object")
    return found
