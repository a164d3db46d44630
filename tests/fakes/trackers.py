"""Tracking servers on loopback that answer as documented: MLflow's REST API 2.0, W&B's GraphQL, the hub's endpoints.

Each answers from a plain table of paths, asks for its credentials where it has some, and remembers what it was asked.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit


class Asked(NamedTuple):
    """One request."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Answer(NamedTuple):
    """Status, body and further headers."""

    status: int
    body: bytes
    headers: dict[str, str] = {}


def said(value: Any, status: int = 200) -> Answer:
    """An answer in JSON."""
    return Answer(status, json.dumps(value).encode())


class FakeServer:
    """`with FakeServer(answer) as server:`; `answer` gets each request that was let in."""

    def __init__(self, answer: Callable[[Asked], Answer], authorization: str | None = None) -> None:
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._respond(None)

            def do_POST(self) -> None:
                self._respond(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _respond(self, body: Any) -> None:
                parts = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                asked = Asked(parts.path, query, {k.lower(): v for k, v in self.headers.items()}, body)
                outer.asked.append(asked)
                refused = authorization is not None and asked.headers.get("authorization") != authorization
                found = said({"error": "unauthorized"}, 401) if refused else answer(asked)
                self.send_response(found.status)
                for name, value in {"content-length": str(len(found.body)), **found.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(found.body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


RUN_ID = "5f0c8a1e2b3d4c5f8a9b0c1d2e3f4a5b"
ADAPTER_CONFIG = {
    "base_model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
    "r": 1,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "target_modules": ["q_proj", "v_proj"],
    "use_rslora": True,
    "use_dora": False,
    "modules_to_save": None,
    "peft_type": "LORA",
}
MLFLOW_RUN: dict[str, Any] = {
    "info": {
        "run_id": RUN_ID,
        "run_uuid": RUN_ID,
        "run_name": "bouncy-shark-12",
        "experiment_id": "7",
        "user_id": "",
        "status": "FINISHED",
        "start_time": 1780131600000,
        "end_time": 1780135200000,
        "artifact_uri": f"s3://mlflow/7/{RUN_ID}/artifacts",
        "lifecycle_stage": "active",
    },
    "data": {
        "metrics": [
            {"key": "train_loss", "value": 0.71, "timestamp": 1780135100000, "step": 900},
            {"key": "eval_loss", "value": 0.9, "timestamp": 1780135100000, "step": 900},
            {"key": "eval/target_task", "value": 0.82, "timestamp": 1780135100000, "step": 900},
            {"key": "eval_broken", "value": "NaN", "timestamp": 1780135100000, "step": 900},
        ],
        "params": [
            {"key": "learning_rate", "value": "0.0002"},
            {"key": "num_train_epochs", "value": "2"},
            {"key": "r", "value": "64"},
        ],
        "tags": [
            {"key": "mlflow.source.git.commit", "value": "4f7a1c9e0b2d3c4f5a6b7c8d9e0f1a2b3c4d5e6f"},
            {"key": "mlflow.user", "value": "pipeline"},
        ],
    },
    "inputs": {
        "dataset_inputs": [
            {
                "tags": [{"key": "mlflow.data.context", "value": "training"}],
                "dataset": {"name": "tickets", "digest": "9f1c0c5d", "source_type": "s3", "source": "{}"},
            },
            {
                "tags": [{"key": "mlflow.data.context", "value": "eval"}],
                "dataset": {"name": "held-out", "digest": "00000000", "source_type": "s3", "source": "{}"},
            },
        ]
    },
}


def mlflow(run: dict[str, Any] = MLFLOW_RUN, *, artifacts: bool = True) -> Callable[[Asked], Answer]:
    """A tracking server with one run, whose artifacts hold an adapter in `model/adapter`."""
    folders = {
        "": [{"path": "model", "is_dir": True}, {"path": "requirements.txt", "is_dir": False, "file_size": "9"}],
        "model": [{"path": "model/adapter", "is_dir": True}],
        "model/adapter": [{"path": "model/adapter/adapter_config.json", "is_dir": False, "file_size": "300"}],
    }

    def answer(asked: Asked) -> Answer:
        if asked.path == "/api/2.0/mlflow/runs/get":
            if asked.query["run_id"] == RUN_ID:
                return said({"run": run})
            code = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"Run {asked.query['run_id']} not found"}
            return said(code, 404)
        if asked.path == "/api/2.0/mlflow/artifacts/list" and artifacts:
            root = run["info"]["artifact_uri"]
            return said({"root_uri": root, "files": folders[asked.query.get("path", "")]})
        if asked.path == "/get-artifact" and asked.query["run_uuid"] == RUN_ID and artifacts:
            return said(ADAPTER_CONFIG)
        return said({"error_code": "ENDPOINT_NOT_FOUND", "message": "no such endpoint"}, 404)

    return answer


WANDB_RUN: dict[str, Any] = {
    "name": "1a2b3c4d",
    "displayName": "glad-sun-7",
    "state": "finished",
    "createdAt": "2026-05-30T09:00:00Z",
    "heartbeatAt": "2026-05-30T10:00:00",
    "commit": "4f7a1c9e",
    "config": json.dumps(
        {
            "_wandb": {"value": {"cli_version": "0.21.0"}},
            "learning_rate": {"desc": None, "value": 0.0002},
            "peft_config": {"desc": None, "value": {"default": {"r": 16, "target_modules": ["q_proj"]}}},
            "model_name_or_path": {"desc": None, "value": "meta-llama/Llama-3.1-8B-Instruct"},
            "report_to": {"desc": None, "value": []},
        }
    ),
    "summaryMetrics": json.dumps(
        {"_runtime": 3600, "_timestamp": 1780135200.5, "train": {"loss": 0.7}, "eval": {"loss": 0.9, "samples": "x"}}
    ),
    "user": {"username": "pipeline"},
    "inputArtifacts": {
        "edges": [
            {
                "node": {
                    "digest": "4a5b6c",
                    "versionIndex": 3,
                    "artifactType": {"name": "dataset"},
                    "artifactSequence": {"name": "tickets"},
                }
            },
            {
                "node": {
                    "digest": "ffff",
                    "versionIndex": 0,
                    "artifactType": {"name": "model"},
                    "artifactSequence": {"name": "llama"},
                }
            },
        ]
    },
}


def wandb(asked: Asked) -> Answer:
    """A server with one run."""
    if asked.path != "/graphql" or "query Run(" not in asked.body["query"]:
        return said({"errors": [{"message": "unknown query"}]}, 400)
    if asked.body["variables"] == {"entity": "acme", "project": "support", "name": "1a2b3c4d"}:
        return said({"data": {"project": {"run": WANDB_RUN}}})
    return said({"data": {"project": None}})


SHA = "0e9e39f249a16976918f6564b8830bc894c89659"
CARD = """---
base_model:
- meta-llama/Llama-3.1-8B-Instruct
datasets:
- acme/tickets
- acme/chats
library_name: peft
model-index:
- name: acme-support
  results:
  - task: {type: text-generation}
    dataset: {type: acme/held-out, name: Held out, split: test}
    metrics:
    - {type: accuracy, value: 0.82, name: Accuracy}
    - {type: accuracy, value: "0.79"}
    - {type: words, value: good}
  - task: {type: text-generation}
    metrics:
    - {type: bleu, value: 31}
---

# acme-support

### Training hyperparameters

The following hyperparameters were used during training:
- learning_rate: 0.0002
- train_batch_size: 8
- optimizer: Use adamw_torch with betas=(0.9,0.999)
- r: 999

### Training results

- loss: 1.0
"""


def hub(files_from: str | None = None) -> Callable[[Asked], Answer]:
    """A hub with one repository; `files_from`: another server, to which it redirects whoever asks for a file."""
    files = {"README.md": CARD.encode(), "adapter_config.json": json.dumps(ADAPTER_CONFIG).encode()}

    def answer(asked: Asked) -> Answer:
        if asked.path in (f"/api/models/acme/support/revision/{r}" for r in ("main", "v3", SHA)):
            return said({"id": "acme/support", "sha": SHA, "siblings": [{"rfilename": name} for name in files]})
        if asked.path == "/api/models/acme/plain/revision/main":
            return said({"id": "acme/plain", "sha": SHA, "siblings": [{"rfilename": "model.safetensors"}]})
        if asked.path == "/api/models/acme/old-name/revision/main":
            return Answer(307, b"", {"location": "/api/models/acme/support/revision/main"})
        name = asked.path.removeprefix(f"/acme/support/resolve/{SHA}/").removeprefix(f"/acme/old-name/resolve/{SHA}/")
        if name in files:
            return Answer(302, b"", {"location": f"{files_from}/{name}"}) if files_from else Answer(200, files[name])
        return said({"error": "Repository not found"}, 404)

    return answer


def storage(asked: Asked) -> Answer:
    """Where a hub's files lie: it asks for no credentials and wants none."""
    name = asked.path.strip("/")
    return Answer(200, CARD.encode()) if name == "README.md" else said(ADAPTER_CONFIG)
