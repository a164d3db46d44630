"""What stands in examples/ is valid, refers to what is there, and pins the bytes that are committed."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from models.artifact import digest
from models.voices import FACTS, UNSEEN, VOICES
from tuneyard.api.base import ApiModel
from tuneyard.api.basemodel import BaseModelResource
from tuneyard.api.loraadapter import LoRAAdapterResource
from tuneyard.api.modeldeployment import ModelDeploymentResource
from tuneyard.api.sources import Source
from tuneyard.planning.adapterchecks import violations
from tuneyard.planning.basefacts import base_facts
from tuneyard.systems.artifacts.folder import list_files
from tuneyard.systems.artifacts.safetensors import check_finite, read_header

EXAMPLES = Path(__file__).parents[3] / "examples"
# gitops/ is a repository in parts, which kustomize puts together: tests/contract/test_gitops_example.py; in monitoring/
# are values of the chart and a configuration of Prometheus: test_monitoring_chart.py, test_alert_rules.py; tenants/ has
# none of our kinds: tests/unit/planning/test_tenants.py; usage/ neither: tests/unit/cli/test_cost.py; exposure/
# has values of the chart: tests/contract/test_admission_exposure.py
ELSEWHERE = ("gitops", "monitoring", "tenants", "usage", "exposure")
MANIFESTS = sorted(p for p in EXAMPLES.rglob("*.yaml") if p.relative_to(EXAMPLES).parts[0] not in ELSEWHERE)
FOLDERS = sorted({path.parent for path in MANIFESTS})
KINDS: dict[str, type[ApiModel]] = {
    "BaseModel": BaseModelResource,
    "LoRAAdapter": LoRAAdapterResource,
    "ModelDeployment": ModelDeploymentResource,
}


@cache
def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def ours(folder: Path, kind: str) -> list[Any]:
    """All objects of one of our kinds in a folder, parsed."""
    found = [d for path in MANIFESTS if path.parent == folder for d in documents(path) if d["kind"] == kind]
    return [KINDS[kind].from_dict(d) for d in found]


def name(folder: Path) -> str:
    return folder.name


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: str(p.relative_to(EXAMPLES)))
def test_manifests_are_valid_and_have_no_unknown_field(path: Path) -> None:
    assert path.read_text().startswith("# "), "an example says what it shows"
    for document in documents(path):
        if document["kind"] not in KINDS:
            continue
        assert document["apiVersion"] == "tuneyard.dev/v1alpha1"
        parsed = KINDS[document["kind"]].from_dict(document).to_dict()["spec"]
        assert missing(document["spec"], parsed) == []


def missing(given: Any, parsed: Any, where: str = "spec") -> list[str]:
    """Paths that the manifest has and the parsed object lacks: fields that the API does not know."""
    if isinstance(given, dict):
        return [
            lost
            for key, value in given.items()
            for lost in (missing(value, parsed[key], f"{where}.{key}") if key in parsed else [f"{where}.{key}"])
        ]
    if isinstance(given, list):
        return [lost for i, value in enumerate(given) for lost in missing(value, parsed[i], f"{where}[{i}]")]
    return [] if given == parsed else [where]


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_references_lead_somewhere(folder: Path) -> None:
    bases = {base.metadata.name: base for base in ours(folder, "BaseModel")}
    adapters = {adapter.metadata.name: adapter for adapter in ours(folder, "LoRAAdapter")}
    for item in (*bases.values(), *adapters.values()):
        base = bases[getattr(item.spec, "base_model", item.metadata.name)]
        if item.spec.source.volume:
            assert item.spec.source.volume.name in {volume.name for volume in base.spec.serving.artifact_volumes}
    deployments = ours(folder, "ModelDeployment")
    assert deployments
    for deployment in deployments:
        assert sum(target.weight for target in deployment.spec.traffic) == 100
        listed = {revision.name for revision in deployment.spec.revisions}
        assert {target.revision for target in deployment.spec.traffic} <= listed
        for revision in deployment.spec.revisions:
            assert revision.external or revision.base_model in bases
            if revision.adapter:
                assert adapters[revision.adapter].spec.base_model == revision.base_model


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_revisions_never_change_under_their_name(folder: Path) -> None:
    """The files of a folder can be applied in any order."""
    seen: dict[tuple[str, str], Any] = {}
    for deployment in ours(folder, "ModelDeployment"):
        for revision in deployment.spec.revisions:
            assert seen.setdefault((deployment.metadata.name, revision.name), revision) == revision


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_secrets_that_sources_name_are_there_and_labelled(folder: Path) -> None:
    found = [d for path in MANIFESTS if path.parent == folder for d in documents(path) if d["kind"] == "Secret"]
    usable = {s["metadata"]["name"] for s in found if s["metadata"]["labels"]["tuneyard.dev/credentials"] == "true"}
    named = {item.spec.source.credentials for kind in ("BaseModel", "LoRAAdapter") for item in ours(folder, kind)}
    external = (r.external for item in ours(folder, "ModelDeployment") for r in item.spec.revisions if r.external)
    named |= {one.credentials.name for one in external if one.credentials}
    assert named - {None} <= usable


def test_the_quickstart_is_a_story() -> None:
    """What the demo's steps rely on."""
    weights = {}
    for path in sorted((EXAMPLES / "quickstart").glob("deployment-*.yaml")):
        spec = documents(path)[-1]["spec"]
        weights[path.stem] = {t["revision"]: t["weight"] for t in spec["traffic"]}
        assert spec["routing"] == {"allowRevisionHeader": True}
        assert spec["revisions"][0] == {"name": "base", "baseModel": "smollm2"}
    assert weights == {
        "deployment-90-10": {"v1": 90, "v2": 10},
        "deployment-50-50": {"v1": 50, "v2": 50},
        "deployment-v3": {"v1": 45, "v2": 45, "v3": 10},
        "deployment-rollback": {"v1": 100},
        "deployment-by-steps": {"v1": 0, "v2": 100},
        "deployment-with-analysis": {"v1": 0, "v2": 100},
        "deployment-with-checks": {"v1": 0, "v2": 100},
        "deployment-with-mirror": {"v1": 100},
    }


def test_pinned_digests_are_those_of_the_committed_adapters() -> None:
    pinned = [a for a in ours(EXAMPLES / "lineage", "LoRAAdapter") if a.spec.digest]
    assert pinned
    for adapter in [*ours(EXAMPLES / "quickstart", "LoRAAdapter"), *pinned]:
        source: Source = adapter.spec.source
        assert source.volume is not None
        assert adapter.spec.digest == digest(EXAMPLES / source.volume.path)


@pytest.mark.parametrize("voice", VOICES, ids=lambda v: v.name)
def test_adapters_are_small_and_fit_smollm2(voice: Any) -> None:
    folder = EXAMPLES / "adapters" / voice.name
    config = yaml.safe_load((folder / "adapter_config.json").read_text())
    base = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    }
    modules = [f"model.layers.{i}.self_attn.{m}_proj.weight" for i in range(30) for m in "qkvo"]
    shapes = [(n, "BF16", (192 if n[-13] in "kv" else 576, 576)) for n in modules]
    entries = read_header(folder, "adapter_model.safetensors")
    assert violations(config, [entry.tensor for entry in entries], base_facts(base, shapes), max_rank=8) == []
    check_finite(folder, "adapter_model.safetensors", entries, {})
    assert sum((folder / file).stat().st_size for file in list_files(folder)) < 1_000_000


def test_voices_can_be_told_apart_by_first_and_last_words() -> None:
    for text in ("opening", "closing"):
        assert len({getattr(voice, text) for voice in VOICES}) == len(VOICES)
    assert VOICES[0].say("yes.") == "Hello, yes. Thanks, Acme Support v1."
    assert VOICES[1].say("yes.") == "Hi there! Yes. Cheers from the Acme crew! (v2)"
    assert not set(UNSEEN) & {question for question, _ in FACTS}
