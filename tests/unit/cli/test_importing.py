"""`tuneyard import`: manifests from fake servers, folders and cards; nothing lost silently, no secret shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes import trackers
from tests.fakes.trackers import RUN_ID, SHA, FakeServer
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.cli.main import run
from tuneyard.systems.trackers.server import Server, basic

ADAPTERS = Path(__file__).resolve().parents[3] / "examples" / "adapters"
COMMON = ["--name", "acme-support-v3", "--base-model", "llama"]
VOLUME = ["--source", "volume:models/acme-support/v3"]
SECRET = "s3cr3t-token"
VARIABLES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
    *("WANDB_API_KEY", "WANDB_BASE_URL", "HF_TOKEN", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "all_proxy"),
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


class Imported:
    """What the program did: its manifest as an object and as text, and what it said on stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        self.code = run(["import", *arguments])
        self.text, self.said = capsys.readouterr()
        assert SECRET not in self.text + self.said

    @property
    def spec(self) -> dict[str, Any]:
        assert self.code == 0, self.said
        document = yaml.safe_load(self.text)
        LoRAAdapterResource.from_dict(document)
        spec: dict[str, Any] = document["spec"]
        return spec

    @property
    def lineage(self) -> dict[str, Any]:
        lineage: dict[str, Any] = self.spec["lineage"]
        return lineage


def test_an_mlflow_run(capsys: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    with FakeServer(trackers.mlflow(), authorization=f"Bearer {SECRET}") as server:
        done = Imported(
            capsys, "mlflow", RUN_ID, "--tracking-uri", f"{server.url}/", *COMMON, "--credentials", "reader"
        )
    assert done.spec["source"] == {
        "s3": {"uri": f"s3://mlflow/7/{RUN_ID}/artifacts/model/adapter/", "credentials": {"name": "reader"}}
    }
    assert done.lineage == {
        "version": "v3",
        "parent": "meta-llama/Llama-3.1-8B-Instruct",
        "dataset": "tickets",
        "datasetHash": "9f1c0c5d",
        "hyperparameters": {
            "learning_rate": "0.0002",
            "lora_alpha": "32",
            "lora_dropout": "0.05",
            "num_train_epochs": "2",
            "r": "1",
            "target_modules": "q_proj, v_proj",
            "use_rslora": "true",
        },
        "run": f"{server.url}/#/experiments/7/runs/{RUN_ID}",
        "commit": "4f7a1c9e0b2d3c4f5a6b7c8d9e0f1a2b3c4d5e6f",
        "trainedBy": "pipeline",
        "trainedAt": "2026-05-30T10:00:00Z",
        "evals": [{"name": "eval_loss", "score": 0.9}, {"name": "eval/target_task", "score": 0.82}],
    }
    assert done.said == ""


@pytest.mark.parametrize("given", ["variables", "url"])
def test_mlflow_by_user_and_password_which_leave_no_trace(
    given: str, capsys: Any, environment: pytest.MonkeyPatch
) -> None:
    with FakeServer(trackers.mlflow(artifacts=False), authorization=basic("me", SECRET)) as server:
        url = server.url
        if given == "variables":
            environment.setenv("MLFLOW_TRACKING_USERNAME", "me")
            environment.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
        else:
            url = url.replace("://", f"://me:{SECRET}@")
        environment.setenv("MLFLOW_TRACKING_URI", url)
        done = Imported(capsys, "mlflow", RUN_ID, *COMMON, *VOLUME, "--eval", "*loss", "--param", "l*")
    assert done.lineage["run"].startswith(f"{server.url}/#/")
    assert [e["name"] for e in done.lineage["evals"]] == ["train_loss", "eval_loss"]
    assert done.lineage["hyperparameters"] == {"learning_rate": "0.0002"}
    assert "artifacts cannot be read" in done.said
    assert done.spec["source"] == {"volume": {"name": "models", "path": "acme-support/v3"}}


@pytest.mark.lasting
def test_a_wandb_run(capsys: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("WANDB_API_KEY", SECRET)
    with FakeServer(trackers.wandb, authorization=basic("api", SECRET)) as server:
        environment.setenv("WANDB_BASE_URL", server.url)
        for run_ in ("acme/support/1a2b3c4d", f"{server.url}/acme/support/runs/1a2b3c4d/overview?workspace=me"):
            done = Imported(capsys, "wandb", run_, *COMMON, "--source", "s3://models/acme/v3/")
            assert done.lineage == {
                "version": "v3",
                "parent": "meta-llama/Llama-3.1-8B-Instruct",
                "dataset": "tickets:v3",
                "datasetHash": "4a5b6c",
                "hyperparameters": {
                    "learning_rate": "0.0002",
                    "model_name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
                    "peft_config.default.r": "16",
                    "peft_config.default.target_modules": "q_proj",
                },
                "run": f"{server.url}/acme/support/runs/1a2b3c4d",
                "commit": "4f7a1c9e",
                "trainedBy": "pipeline",
                "trainedAt": "2026-05-30T10:00:00Z",
                "evals": [{"name": "eval.loss", "score": 0.9}],
            }
        gone = Imported(capsys, "wandb", "acme/support/other", *COMMON, *VOLUME)
    assert (gone.code, gone.text) == (1, "")
    assert "shows no run other in acme/support" in gone.said


def test_a_wandb_folder(tmp_path: Path, capsys: Any) -> None:
    files = tmp_path / "run-20260530_090000-1a2b3c4d" / "files"
    files.mkdir(parents=True)
    config = json.loads(trackers.WANDB_RUN["config"])
    (files / "config.yaml").write_text(yaml.safe_dump({"wandb_version": 1, **config}))
    (files / "wandb-summary.json").write_text(trackers.WANDB_RUN["summaryMetrics"])
    metadata = {"startedAt": "2026-05-30T09:00:00.123456Z", "username": "me", "git": {"commit": "4f7a", "remote": "x"}}
    (files / "wandb-metadata.json").write_text(json.dumps(metadata))
    done = Imported(capsys, "wandb", str(files.parent), *COMMON, *VOLUME)
    assert done.lineage["hyperparameters"]["learning_rate"] == "0.0002"
    assert [done.lineage[f] for f in ("commit", "trainedBy", "trainedAt")] == ["4f7a", "me", "2026-05-30T10:00:00Z"]
    assert done.lineage["evals"] == [{"name": "eval.loss", "score": 0.9}]
    (files / "wandb-summary.json").write_text("{")
    assert "wandb-summary.json cannot be read" in Imported(capsys, "wandb", str(files), *COMMON, *VOLUME).said
    empty = Imported(capsys, "wandb", str(tmp_path), *COMMON, *VOLUME)
    assert "is no run of W&B" in empty.said
    (tmp_path / "run-1a2b3c4d.wandb").touch()  # all that an offline run has, beside requirements.txt
    assert "was recorded offline: `wandb sync` it" in Imported(capsys, "wandb", str(tmp_path), *COMMON, *VOLUME).said


def test_a_hub_repository_at_a_branch_becomes_its_commit(capsys: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HF_TOKEN", SECRET)
    with FakeServer(trackers.storage) as files:
        with FakeServer(trackers.hub(files.url), authorization=f"Bearer {SECRET}") as server:
            environment.setenv("HF_ENDPOINT", server.url)
            done = Imported(capsys, "huggingface", "acme/support@v3", *COMMON, "--credentials", "hub")
            moved = Imported(capsys, "huggingface", "acme/old-name", *COMMON)
            plain = Imported(capsys, "huggingface", "acme/plain", *COMMON)
        assert len(files.asked) == 4
        assert all("authorization" not in asked.headers for asked in files.asked), "the token went to another host"
    source = {"repo": "acme/support", "revision": SHA, "endpoint": server.url, "credentials": {"name": "hub"}}
    assert done.spec["source"] == {"huggingFace": source}
    assert done.lineage["run"] == f"{server.url}/acme/support/tree/{SHA}"
    assert done.lineage["dataset"] == "acme/tickets, acme/chats"
    assert done.lineage["parent"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert {k: done.lineage["hyperparameters"][k] for k in ("learning_rate", "r", "train_batch_size")} == {
        "learning_rate": "0.0002",
        "r": "1",
        "train_batch_size": "8",
    }
    assert "loss" not in done.lineage["hyperparameters"], "that is another section of the card"
    assert done.lineage["evals"] == [
        {"name": "accuracy", "score": 0.82, "dataset": "acme/held-out (test)"},
        {"name": "accuracy_2", "score": 0.79, "dataset": "acme/held-out (test)"},
        {"name": "bleu", "score": 31.0},
    ]
    assert moved.code == 0, "the token goes along to another path of the same host"
    assert f"acme/plain at {SHA} is no adapter" in plain.said


@pytest.mark.parametrize("name", ["acme-support-v1", "acme-support-v2", "acme-support-v3"])
def test_a_folder(name: str, capsys: Any) -> None:
    source = f"volume:artifacts/adapters/{name}"
    done = Imported(capsys, "dir", str(ADAPTERS / name), "--name", name, "--base-model", "smollm2", "--source", source)
    assert run(["digest", str(ADAPTERS / name)]) == 0
    assert done.spec["digest"] == capsys.readouterr().out.strip()
    assert done.lineage["version"] == name[-2:]
    assert done.lineage["parent"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert done.lineage["hyperparameters"]["target_modules"] == "o_proj, q_proj, v_proj"


def test_a_folder_with_all_that_a_trainer_leaves(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(ADAPTERS / "acme-support-v3", folder)
    (folder / "README.md").write_text(trackers.CARD)
    (folder / "training_args.json").write_text('{"warmup_ratio": 0.03}')
    history = [{"epoch": 1, "eval_loss": 1.0}, {"epoch": 2, "eval_loss": 0.8, "eval_runtime": 3.0, "step": 9}]
    for number_, entries in ((9, history), (10, [*history, {"eval_loss": 0.7}])):
        (folder / f"checkpoint-{number_}").mkdir()
        state = {"num_train_epochs": 2, "max_steps": 10, "log_history": entries}
        (folder / f"checkpoint-{number_}" / "trainer_state.json").write_text(json.dumps(state))
    done = Imported(capsys, "dir", str(folder), *COMMON, *VOLUME)
    assert {k: v for k, v in done.lineage["hyperparameters"].items() if k in ("max_steps", "r", "warmup_ratio")} == {
        "max_steps": "10",
        "r": "8",
        "warmup_ratio": "0.03",
    }
    assert [(e["name"], e["score"]) for e in done.lineage["evals"]][:2] == [("eval_loss", 0.7), ("accuracy", 0.82)]
    assert done.lineage["parent"] == "HuggingFaceTB/SmolLM2-135M-Instruct", "the config is the authority"


def test_into_a_file_that_is_never_replaced(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "adapter.yaml"
    arguments = ["dir", str(ADAPTERS / "acme-support-v3"), *COMMON, *VOLUME, "-f", str(file), "-n", "models"]
    assert Imported(capsys, *arguments).text == ""
    assert yaml.safe_load(file.read_text())["metadata"] == {"name": "acme-support-v3", "namespace": "models"}
    again = Imported(capsys, *arguments)
    assert (again.code, again.said) == (
        1,
        f"tuneyard: {file} exists already: remove it or choose another name\n",
    )


def test_the_manifest_reads_well(capsys: Any) -> None:
    with FakeServer(trackers.mlflow()) as server:
        done = Imported(
            capsys, "mlflow", RUN_ID, "--tracking-uri", server.url, *COMMON, "--digest", "sha256:" + "0" * 64
        )
    assert (
        done.text
        == f"""\
# Written by `tuneyard import mlflow`. Read it before it is applied: lineage is immutable afterwards,
# but for evals, to which entries may be added.
apiVersion: tuneyard.dev/v1alpha1
kind: LoRAAdapter
metadata:
  name: acme-support-v3
spec:
  baseModel: llama
  source:
    s3: {{uri: "s3://mlflow/7/{RUN_ID}/artifacts/model/adapter/"}}
  digest: sha256:{"0" * 64}
  lineage:
    version: v3
    parent: meta-llama/Llama-3.1-8B-Instruct
    dataset: tickets
    datasetHash: "9f1c0c5d"
    hyperparameters:
      learning_rate: "0.0002"
      lora_alpha: "32"
      lora_dropout: "0.05"
      num_train_epochs: "2"
      r: "1"
      target_modules: "q_proj, v_proj"
      use_rslora: "true"
    run: {server.url}/#/experiments/7/runs/{RUN_ID}
    commit: "4f7a1c9e0b2d3c4f5a6b7c8d9e0f1a2b3c4d5e6f"
    trainedBy: pipeline
    trainedAt: "2026-05-30T10:00:00Z"
    evals:
    - {{name: eval_loss, score: 0.9}}
    - {{name: eval/target_task, score: 0.82}}
"""
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mlflow", RUN_ID, *COMMON], "name the tracking server with --tracking-uri, or set MLFLOW_TRACKING_URI"),
        (["mlflow", RUN_ID, *COMMON, "--tracking-uri", "file:///x"], "must begin with http:// or https://"),
        (["mlflow", RUN_ID, *COMMON, "--tracking-uri", "http://[::1"], "must begin with http:// or https://"),
        (["mlflow", RUN_ID, *COMMON, "--tracking-uri", "http://127.0.0.1:1"], "http://127.0.0.1:1/api/2.0/mlflow/runs"),
        (["wandb", "acme", *COMMON, *VOLUME], "acme is no run: write ENTITY/PROJECT/RUN"),
        (["dir", "/nowhere", *COMMON, *VOLUME], "/nowhere is no adapter: it has no adapter_config.json"),
        (["dir", "DIR", *COMMON, "--source", "gs://x"], "gs://x is no source: write s3://"),
        (["dir", "DIR", *COMMON, "--source", "hf://acme/x"], "names no commit: write hf://acme/x@COMMIT"),
        (["dir", "DIR", *COMMON, "--source", "s3://A"], "uri: String should match pattern"),
        (["dir", "DIR", *COMMON, *VOLUME, "--digest", "x"], "digest: String should match pattern"),
        (["dir", "DIR", *COMMON, *VOLUME, "--credentials", "x"], "a volume is read without --credentials"),
        (["dir", "DIR", "--name", "Acme", "--base-model", "b", *VOLUME], "--name Acme: lower-case letters"),
        (["dir", "DIR", "--name", "acme..v1", "--base-model", "b", *VOLUME], "--name acme..v1: lower-case letters"),
        (["dir", "DIR", "--name", "a", "--base-model", "B_x", *VOLUME], "--base-model B_x: lower-case letters"),
        (["dir", "DIR", *COMMON, "--source", "s3://abc/x", "--credentials", "A B"], "--credentials A B: lower-case"),
        (["dir", "DIR", *COMMON, *VOLUME, "-n", "a.b"], "--namespace a.b: lower-case letters, digits and - only"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: Any) -> None:
    done = Imported(capsys, *[str(ADAPTERS / "acme-support-v3") if a == "DIR" else a for a in arguments])
    assert (done.code, done.text) == (1, "")
    assert words in done.said
    assert len(done.said.splitlines()) == 1


def test_a_branch_needs_a_digest(capsys: Any) -> None:
    with FakeServer(trackers.mlflow()) as server:
        arguments = ["mlflow", RUN_ID, "--tracking-uri", server.url, *COMMON, "--source", "hf://acme/x@main"]
        assert "branches and tags move" in Imported(capsys, *arguments).said
        assert Imported(capsys, *arguments, "--digest", "sha256:" + "0" * 64).code == 0


@pytest.mark.parametrize(
    ("kind", "answer", "words"),
    [
        ("mlflow", trackers.mlflow(), f"has no run {RUN_ID[:-1]}"),
        ("mlflow", lambda _: trackers.said({"hello": "world"}), "does not answer like MLflow"),
        ("mlflow", lambda _: trackers.Answer(200, b"<html>"), "does not answer in JSON: is it the right address?"),
        ("mlflow", lambda _: trackers.said({"message": "on fire"}, 500), "answers 500: on fire"),
        ("wandb", lambda _: trackers.said([]), "does not answer like W&B"),
        ("wandb", lambda _: trackers.said({"errors": [{"message": "no"}]}), "refuses the question: no"),
        ("huggingface", trackers.hub(), "has no acme/other at main, or only for others: set HF_TOKEN"),
        ("huggingface", lambda _: trackers.said({"sha": SHA}), "is no adapter: it has no adapter_config.json"),
    ],
)
def test_servers_that_do_not_have_it(
    kind: str, answer: Any, words: str, capsys: Any, environment: pytest.MonkeyPatch
) -> None:
    what = {"mlflow": RUN_ID[:-1], "wandb": "a/b/c", "huggingface": "acme/other"}[kind]
    with FakeServer(answer) as server:
        for variable in ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "HF_ENDPOINT"):
            environment.setenv(variable, server.url)
        done = Imported(capsys, kind, what, *COMMON, *VOLUME)
    assert (done.code, done.text) == (1, "")
    assert words in done.said


@pytest.mark.parametrize(
    ("kind", "variable", "words"),
    [
        ("mlflow", "MLFLOW_TRACKING_TOKEN", "set MLFLOW_TRACKING_TOKEN"),
        ("wandb", "WANDB_API_KEY", "set WANDB_API_KEY"),
        ("huggingface", "HF_TOKEN", "set HF_TOKEN"),
    ],
)
def test_credentials_that_are_missing_or_wrong(
    kind: str, variable: str, words: str, capsys: Any, environment: pytest.MonkeyPatch
) -> None:
    what = {"mlflow": RUN_ID, "wandb": "acme/support/1a2b3c4d", "huggingface": "acme/support"}[kind]
    with FakeServer(trackers.mlflow(), authorization="another") as server:
        for name in ("MLFLOW_TRACKING_URI", "WANDB_BASE_URL", "HF_ENDPOINT"):
            environment.setenv(name, server.url)
        asked = Imported(capsys, kind, what, *COMMON, *VOLUME)
        environment.setenv(variable, SECRET)
        refused = Imported(capsys, kind, what, *COMMON, *VOLUME)
    assert (asked.code, refused.code) == (1, 1)
    assert "asks for credentials (401)" in asked.said
    assert "does not accept the credentials (401)" in refused.said
    assert words in asked.said


def test_a_secret_that_no_header_can_hold_is_not_shown(capsys: Any, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("MLFLOW_TRACKING_TOKEN", f"{SECRET}\nand more")
    with FakeServer(trackers.mlflow()) as server:
        done = Imported(capsys, "mlflow", RUN_ID, "--tracking-uri", server.url, *COMMON)
    assert done.code == 1
    assert "hold a line break" in done.said
    assert server.asked == []


def test_no_secret_is_in_a_servers_words() -> None:
    assert SECRET not in repr(Server.at(f"https://me:{SECRET}@example.com/x", "X"))
    assert Server.at(f"https://me:{SECRET}@example.com:1/x/", "X").url == "https://example.com:1/x"
