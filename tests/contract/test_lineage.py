"""Lineage on a real API server: what of it may change, what is refused and in which words, and what it may hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.apiserver import ROOT, ApiServer
from tests.fakes import trackers
from tests.fakes.trackers import FakeServer
from tests.unit.cli.test_importing_values import AMBIGUOUS
from tuneyard.api.lineage import MAX_EVALS, MAX_HYPERPARAMETERS, VALUE_LENGTH
from tuneyard.cli import main
from tuneyard.systems.kube.client import ApiError

pytestmark = pytest.mark.apiserver

EXAMPLE = Path(__file__).parents[2] / "examples" / "lineage"
SPECS: dict[str, dict[str, Any]] = {
    "loraadapters": {"baseModel": "base", "source": {"volume": {"name": "models", "path": "x"}}},
    "basemodels": {"source": {"volume": {"name": "models", "path": "x"}}},
}
LINEAGE: dict[str, Any] = {
    "version": "v3",
    "dataset": "tickets",
    "datasetHash": "sha256:9f1c",
    "hyperparameters": {"lr": "2e-4", "r": "16"},
    "parent": "llama",
    "run": "https://mlflow.example.com/#/runs/1",
    "commit": "4f7a1c9",
    "trainedBy": "pipeline",
    "trainedAt": "2026-05-30T10:00:00Z",
    "evals": [{"name": "task", "score": 0.82}, {"name": "suite", "passed": True}],
}
FIXED = "lineage is immutable except evals"
GROWS = "lineage.evals is append only"


class Kept:
    """One object of a kind, in a namespace of its own."""

    def __init__(self, server: ApiServer, plural: str) -> None:
        self.api = server.api()
        self.plural = plural
        self.namespace = server.namespace(f"lineage-{plural}-{len(server.writes())}")
        self.path = f"/apis/tuneyard.dev/v1alpha1/namespaces/{self.namespace}/{plural}"

    def create(self, name: str, lineage: dict[str, Any] | None) -> dict[str, Any]:
        kind = "LoRAAdapter" if self.plural == "loraadapters" else "BaseModel"
        spec = {**SPECS[self.plural], **({} if lineage is None else {"lineage": lineage})}
        body = {
            "apiVersion": "tuneyard.dev/v1alpha1",
            "kind": kind,
            "metadata": {"name": name},
            "spec": spec,
        }
        return self.api.request("POST", self.path, body=body)

    def replace(self, stored: dict[str, Any], lineage: dict[str, Any] | None) -> dict[str, Any]:
        spec = {k: v for k, v in stored["spec"].items() if k != "lineage"}
        changed = {**stored, "spec": {**spec, **({} if lineage is None else {"lineage": lineage})}}
        return self.api.request("PUT", f"{self.path}/{stored['metadata']['name']}", body=changed)

    def refused(self, act: Callable[..., object], *arguments: object) -> str:
        with pytest.raises(ApiError) as error:
            act(*arguments)
        assert error.value.status == 422, str(error.value)
        return error.value.message


@pytest.fixture(params=["loraadapters", "basemodels"])
def kept(request: Any, apiserver: ApiServer) -> Kept:
    return Kept(apiserver, request.param)


CHANGES: dict[str, Any] = {
    "version": "v4",
    "dataset": "others",
    "datasetHash": "sha256:0000",
    "hyperparameters": {"lr": "3e-4", "r": "16"},
    "parent": "another",
    "run": "https://mlflow.example.com/#/runs/2",
    "commit": "0000000",
    "trainedBy": "somebody",
    "trainedAt": "2027-05-30T10:00:00Z",
}


def test_nothing_of_it_changes(kept: Kept) -> None:
    stored = kept.create("a", LINEAGE)
    assert CHANGES.keys() == LINEAGE.keys() - {"evals"}
    for field, value in CHANGES.items():
        without = {k: v for k, v in LINEAGE.items() if k != field}
        assert FIXED in kept.refused(kept.replace, stored, {**LINEAGE, field: value}), field
        assert FIXED in kept.refused(kept.replace, stored, without), field
    added = {k: v for k, v in LINEAGE.items() if k != "version"}
    other = kept.create("b", added)
    assert FIXED in kept.refused(kept.replace, other, LINEAGE)
    assert "lineage cannot be removed" in kept.refused(kept.replace, stored, None)


def test_evals_only_grow(kept: Kept) -> None:
    stored = kept.create("a", LINEAGE)
    first, second = LINEAGE["evals"]
    third = {"name": "later", "score": 1, "dataset": "d", "evaluatedAt": "2026-06-07T02:00:00Z"}
    for fewer in ([first], [second, third], []):
        assert GROWS in kept.refused(kept.replace, stored, {**LINEAGE, "evals": fewer})
    without = {k: v for k, v in LINEAGE.items() if k != "evals"}
    assert GROWS in kept.refused(kept.replace, stored, without)
    for other in ({"name": "task", "score": 0.99}, {"name": "task", "passed": True}, {**first, "dataset": "d"}):
        said = kept.refused(kept.replace, stored, {**LINEAGE, "evals": [other, second]})
        assert "lineage.evals entry task is immutable: leave it as it is and add the new result under another" in said
    grown = kept.replace(stored, {**LINEAGE, "evals": [third, second, first]})
    assert [e["name"] for e in grown["spec"]["lineage"]["evals"]] == ["later", "suite", "task"]
    assert "must say score or passed" in kept.refused(kept.create, "b", {"evals": [{"name": "x"}]})


def test_evals_may_come_to_what_had_no_lineage(kept: Kept) -> None:
    stored = kept.create("a", None)
    assert FIXED in kept.refused(kept.replace, stored, {"version": "v1", "evals": LINEAGE["evals"]})
    stored = kept.replace(stored, {"evals": LINEAGE["evals"]})
    assert "lineage cannot be removed" in kept.refused(kept.replace, stored, None)


def test_the_largest_lineage_is_checked_within_the_cost_limit(kept: Kept) -> None:
    largest = {
        **LINEAGE,
        "hyperparameters": {f"{n:03}".rjust(200, "k"): "v" * VALUE_LENGTH for n in range(MAX_HYPERPARAMETERS)},
        "evals": [{"name": f"{n:03}".rjust(128, "e"), "score": n / 7, "dataset": "d" * 256} for n in range(MAX_EVALS)],
    }
    stored = kept.create("a", {**largest, "evals": largest["evals"][1:]})
    stored = kept.replace(stored, largest)
    more = [*largest["evals"], {"name": "one too many", "score": 1}]
    assert "at most 64 items" in kept.refused(kept.replace, stored, {**largest, "evals": more})


def test_imported_manifests_are_taken_as_they_were_meant(apiserver: ApiServer, monkeypatch: Any, capsys: Any) -> None:
    """By kubectl's reader of YAML, which follows other rules than Python's."""
    namespace = apiserver.namespace("imported")
    params = [{"key": f"k{n}", "value": value} for n, value in enumerate(AMBIGUOUS)]
    run = {**trackers.MLFLOW_RUN, "data": {**trackers.MLFLOW_RUN["data"], "params": params}}
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with FakeServer(trackers.mlflow(run)) as server, FakeServer(trackers.hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = str(ROOT / "examples" / "adapters" / "acme-support-v1")
        for arguments in (
            ("mlflow", trackers.RUN_ID, "--tracking-uri", server.url, "--name", "mlflow-1.5"),
            ("huggingface", "acme/support", "--name", "hub-v2", "--credentials", "reader"),
            ("dir", folder, "--source", "volume:models/x", "--name", "dir-v1"),
        ):
            assert main.run(["import", *arguments, "--base-model", "llama"]) == 0
            done = apiserver.kubectl(
                "create", "-n", namespace, "--validate=strict", "-f", "-", stdin=capsys.readouterr()[0]
            )
            assert done.returncode == 0, done.stderr
    stored = json.loads(apiserver.kubectl("get", "lora", "-n", namespace, "mlflow-1.5", "-o", "json").stdout)
    lineage = stored["spec"]["lineage"]
    assert lineage["version"] == "1.5"
    assert [lineage["hyperparameters"][f"k{n}"] for n in range(len(AMBIGUOUS))] == list(AMBIGUOUS)


def shown_by_the_command(apiserver: ApiServer, namespace: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tuneyard", "lineage", "mdep/acme-support", "-n", namespace, "-o", "json"]
    done = subprocess.run(
        [*command, "--kubeconfig", str(apiserver.kubeconfig())],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    view: dict[str, Any] = json.loads(done.stdout)
    return view


def test_a_pipeline_adds_its_own_entry_by_server_side_apply(apiserver: ApiServer) -> None:
    namespace = apiserver.namespace("examples-lineage")
    record, more = str(EXAMPLE / "acme-support.yaml"), str(EXAMPLE / "more-evals.yaml")
    git, nightly = ("--server-side",), ("--server-side", "--field-manager=nightly-evals")
    # whoever keeps the record in Git applies it again, and takes nothing away
    for how, file in ((git, record), (nightly, more), (git, record)):
        done = apiserver.kubectl("apply", "-n", namespace, "--validate=strict", *how, "-f", file)
        assert done.returncode == 0, done.stderr
    # without --server-side kubectl would send the list of the file in place of the one that is there
    refused = apiserver.kubectl("apply", "-n", namespace, "-f", record)
    assert GROWS in refused.stderr
    shown = apiserver.kubectl("get", "lora", "-n", namespace, "acme-support-v3")
    assert "BASE      VERSION" in shown.stdout.splitlines()[0]
    assert shown.stdout.splitlines()[1].split()[:3] == ["acme-support-v3", "smollm2", "v3"]
    view = shown_by_the_command(apiserver, namespace)
    (revision,) = view["revisions"]
    assert (revision["name"], revision["specWeight"], revision["base"]["name"]) == ("v3", 100, "smollm2")
    assert revision["adapter"]["lineage"]["hyperparameters"]["learning_rate"] == "3e-3"
    names = apiserver.kubectl(
        "get", "lora", "-n", namespace, "acme-support-v3", "-o", "jsonpath={.spec.lineage.evals[*].name}"
    )
    assert names.stdout.split() == ["target_task", "regression_suite", "target_task_2026-06-07"]
