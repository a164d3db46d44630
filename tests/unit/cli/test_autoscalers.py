"""A pool's scaling as an HPA and a ScaledObject, and what is refused because it would not hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tuneyard.cli.autoscalers import SERIES, ScaledPool, hpa, keda, limits, scaled_pools
from tuneyard.cli.errors import UserError
from tuneyard.cli.main import run
from tuneyard.cli.manifestread import read_manifests

MANIFEST = """
apiVersion: tuneyard.dev/v1alpha1
kind: BaseModel
metadata: {name: llama, namespace: models}
spec:
  source: {volume: {name: v, path: p}}
  serving:
    autoscaling:
      minReplicas: 0
      maxReplicas: 9
      targets: {inFlightRequests: 16, ttft: {max: 2s}}
      costCeiling: {perHour: 12, perReplicaHour: 2}
      scaleDown: {stabilizationWindow: 10m, maxStep: 1}
    scaleToZeroAfter: 30m
---
apiVersion: tuneyard.dev/v1alpha1
kind: ModelDeployment
metadata: {name: chat, namespace: models}
spec:
  serving: {autoscaling: {maxReplicas: 4, targets: {kvCacheUtilization: 70}}}
  revisions: [{name: v1, baseModel: llama}]
  traffic: [{revision: v1, weight: 100}]
"""


def pools_of(text: str) -> tuple[list[ScaledPool], list[str]]:
    return scaled_pools(read_manifests([("chat.yaml", text)]))


def test_an_hpa_for_each_pool() -> None:
    (shared, own), notes = pools_of(MANIFEST)
    assert notes == []
    assert hpa(shared) == {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "llama-pool", "namespace": "models"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "llama-pool"},
            "minReplicas": 1,
            "maxReplicas": 6,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {
                            "name": "tuneyard_pool_in_flight_requests",
                            "selector": {"matchLabels": {"pool": "llama"}},
                        },
                        "target": {"type": "AverageValue", "averageValue": "16"},
                    },
                }
            ],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [
                        {"type": "Pods", "value": 4, "periodSeconds": 15},
                        {"type": "Percent", "value": 100, "periodSeconds": 15},
                    ],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": 600,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 600}],
                },
            },
        },
    }
    assert own.name != shared.name
    assert [line.partition(":")[0] for line in limits([shared, own])[1:3]] == ["llama", "llama"]


def test_a_scaled_object_asks_prometheus() -> None:
    (_, own), _ = pools_of(MANIFEST)
    found = keda(own, "http://prometheus:9090")
    (trigger,) = found["spec"]["triggers"]
    assert (found["kind"], found["spec"]["minReplicaCount"], found["spec"]["maxReplicaCount"]) == ("ScaledObject", 1, 4)
    assert (
        trigger["metadata"]["query"] == f'sum(tuneyard:pool_kv_cache_percent{{namespace="models",pool="{own.name}"}})'
    )
    assert trigger["metadata"]["threshold"] == "70"


OWN_IMAGE = MANIFEST.replace("{autoscaling: {maxReplicas: 4, targets: {kvCacheUtilization: 70}}}", "{image: mine}")


def test_a_block_lies_over_that_of_its_base() -> None:
    (shared, own), notes = pools_of(OWN_IMAGE)
    assert (own.settings, notes) == (shared.settings, []), "an image alone changes nothing of how it is scaled"
    other_order = "---".join(reversed(OWN_IMAGE.split("---")))
    assert {p.name for p in pools_of(other_order)[0]} == {shared.name, own.name}
    (only,), _ = pools_of(OWN_IMAGE.replace("{image: mine}", "{replicas: 2}"))
    assert only == shared, "a fixed number is nobody's to change"
    elsewhere = OWN_IMAGE.replace("name: chat, namespace: models", "name: chat, namespace: other")
    assert [p.namespace for p in pools_of(elsewhere)[0]] == ["models"]


def test_a_pool_whose_base_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own,) = (p for p in pools_of(MANIFEST)[0] if p.name != "llama")
    alone = OWN_IMAGE.split("---")[1]
    with pytest.raises(UserError, match=f"export it; pool {own.name} is left out: its base is not in the file"):
        pools_of(alone)
    path = tmp_path / "chat.yaml"
    path.write_text(alone + "---" + MANIFEST.split("---")[1].replace("name: chat", "name: other"))
    assert run(["export", "hpa", str(path)]) == 0
    said = capsys.readouterr()
    assert len(list(yaml.safe_load_all(said.out))) == 1
    assert said.err.startswith(f"note: pool {own.name} is left out")
    assert said.err.count("note:") == 1


def test_a_pool_without_a_deployment_is_left_out() -> None:
    """What scales would look for it for ever."""
    spans = "autoscaling: {maxReplicas: 4, targets: {kvCacheUtilization: 70}}"
    text = MANIFEST.replace(spans, f"{spans}, tensorParallelSize: 2, nodesPerReplica: 2")
    (shared,), (note,) = pools_of(text)
    assert shared.name == "llama"
    assert "is left out: its replicas span nodes" in note
    with pytest.raises(UserError, match="its replicas span nodes"):
        pools_of(MANIFEST.split("---", 1)[0].replace("    autoscaling:", "    nodesPerReplica: 2\n    autoscaling:"))


@pytest.mark.parametrize("targets", ["ttft: {max: 2s}", "waitingRequests: 3", "ttft: {max: 2s}, waitingRequests: 3"])
def test_a_pool_whose_targets_cannot_be_exported_keeps_no_other_back(targets: str) -> None:
    (own,), (note,) = pools_of(MANIFEST.replace("inFlightRequests: 16, ttft: {max: 2s}", targets))
    assert len(hpa(own)["spec"]["metrics"]) == len(keda(own, "http://prometheus:9090")["spec"]["triggers"]) == 1
    assert note.startswith("pool llama is left out: its targets say only when there are too few replicas; add inFlight")


def test_windows_are_no_longer_than_kubernetes_takes() -> None:
    down = "scaleDown: {stabilizationWindow: 10m"
    text = MANIFEST.replace(down, f"scaleUp: {{stabilizationWindow: 2h}}\n      {down.replace('10m', '3h')}")
    shared, _ = pools_of(text)[0]
    behavior = hpa(shared)["spec"]["behavior"]
    assert [behavior[way]["stabilizationWindowSeconds"] for way in ("scaleUp", "scaleDown")] == [3600, 3600]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: ConfigMap", "no serving.autoscaling"),
        ("a: [", "not valid YAML"),
        (
            MANIFEST.partition("---")[0].replace("inFlightRequests: 16, ttft: {max: 2s}", "waitingRequests: 3"),
            "pool llama is left out: its targets say only when there are too few",
        ),
        (
            MANIFEST.replace("maxReplicas: 9", "maxReplicas: many"),
            r"BaseModel llama is one that the API would refuse \(spec.serving.autoscaling.maxReplicas",
        ),
    ],
)
def test_refused_with_what_to_do(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        [hpa(pool) for pool in pools_of(text)[0]]


def test_the_command_writes_yaml_with_its_limits_on_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "base.yaml"
    path.write_text(MANIFEST)
    assert run(["export", "keda", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# apply it together with serving.autoscaling: {external: true}")
    assert [d["kind"] for d in yaml.safe_load_all(said)] == ["ScaledObject", "ScaledObject"]
    assert run(["export", "hpa", str(tmp_path / "none.yaml")]) == 1


def test_what_is_exported_is_recorded() -> None:
    rules = yaml.safe_load((Path(__file__).parents[3] / "charts/tuneyard/files/rules.yaml").read_text())
    recorded = {rule.get("record") for group in rules["groups"] for rule in group["rules"]}
    assert set(SERIES.values()) <= recorded
