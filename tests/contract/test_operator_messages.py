"""What the API server itself refuses, before the operator sees it, and whether its words say what to do."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.contract.apiserver import ApiServer
from tests.contract.operator_process import BASE_SPEC, adapter_spec, deployment_spec
from tuneyard.api import names

pytestmark = pytest.mark.apiserver

Object = dict[str, Any]


@pytest.fixture(scope="module")
def namespace(apiserver: ApiServer) -> str:
    return apiserver.namespace("operator-messages")


def manifest(kind: str, name: str, namespace: str, spec: Object) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": names.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def with_volume(volume: Object) -> Object:
    spec = copy.deepcopy(BASE_SPEC)
    spec["serving"]["artifactVolumes"] = [{"name": "models", **volume}]
    return spec


def with_hub(**given: Object) -> Object:
    return {"source": {"huggingFace": {"repo": "acme/models", "revision": "0" * 40, **given}}}


BAD: dict[str, tuple[str, Object, str]] = {
    "weights-under-100": (
        "ModelDeployment",
        deployment_spec("base", {"v0": 90}),
        "traffic weights must sum to 100, they sum to 90",
    ),
    "weights-over-100": (
        "ModelDeployment",
        deployment_spec("base", {"v0": 90, "v1": 20}),
        "traffic weights must sum to 100, they sum to 110",
    ),
    "unknown-revision": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "traffic": [{"revision": "v9", "weight": 100}]},
        'traffic names revision v9, which is not in spec.revisions ["v0"]: add the revision or correct the name',
    ),
    "a-name-that-leads-elsewhere": (
        "BaseModel",
        with_hub(credentials={"name": "../../their-own/secrets/hub"}),
        'spec.source.huggingFace.credentials.name: Invalid value: "../../their-own/secrets/hub"',
    ),
    "mirror-of-an-unknown-revision": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "mirror": {"revision": "v9", "percent": 10}},
        'mirror names revision v9, which is not in spec.revisions ["v0"]: add the revision or correct the name',
    ),
    "mirror-of-all-the-traffic": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "mirror": {"revision": "v0", "percent": 10}},
        "mirror.revision has all the traffic, so that there is nothing to copy: remove spec.mirror",
    ),
    "mirror-of-nothing": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100, "v1": 0}), "mirror": {"revision": "v1", "percent": 0}},
        "spec.mirror.percent: Invalid value: 0: spec.mirror.percent in body should be greater than or equal to 1",
    ),
    "sticky-by-what-gateways-remove": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"stickyBy": {"header": "X-Tuneyard-User"}}},
        "gateways remove this header from every request before it is looked at: name another one",
    ),
    "sticky-by-a-key": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"stickyBy": {"header": "Authorization"}}},
        "this header holds credentials, which stand for no user or session: name x-tenant",
    ),
    "affinity-by-a-key": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"affinity": {"header": "x-api-key"}}},
        "this header holds credentials, which stand for no user or session: name x-tenant",
    ),
    "affinity-of-two-kinds": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"affinity": {"header": "x-session-id", "prefix": {}}}},
        "routing.affinity must be exactly one of header, prefix; found 2",
    ),
    "affinity-of-no-kind": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"affinity": {}}},
        "routing.affinity must be exactly one of header, prefix; found 0",
    ),
    "a-deadline-of-nothing": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"timeout": "0s"}},
        "write 1s to 24h; for no limit leave the field out",
    ),
    "silence-for-days": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"idleTimeout": "25h"}},
        "write 1s to 24h; for no limit leave the field out",
    ),
    "held-for-longer-than-gateways-hold": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "routing": {"coldStart": {"holdTimeout": "10m"}}},
        "coldStart.holdTimeout may be 9m at most: gateways end what is silent for longer",
    ),
    "system-prompt-that-is-a-book": (
        "LoRAAdapter",
        {**adapter_spec("base"), "systemPrompt": {"text": "x" * 8193}},
        "spec.systemPrompt.text: Too long: may not be more than 8192",
    ),
    "system-prompt-applied-in-another-way": (
        "LoRAAdapter",
        {**adapter_spec("base"), "systemPrompt": {"text": "x", "apply": "Never"}},
        'supported values: "IfAbsent", "Always"',
    ),
    "revision-twice": (
        "ModelDeployment",
        {**deployment_spec("base", {"v0": 100}), "revisions": [{"name": "v0", "baseModel": "base"}] * 2},
        "Duplicate value",
    ),
    "two-kinds-of-volume": (
        "BaseModel",
        with_volume({"hostPath": {"path": "/models"}, "persistentVolumeClaim": {"claimName": "models"}}),
        "an artifact volume must be exactly one of hostPath, persistentVolumeClaim; found 2",
    ),
    "no-kind-of-volume": (
        "BaseModel",
        with_volume({}),
        "an artifact volume must be exactly one of hostPath, persistentVolumeClaim; found 0",
    ),
    "no-source": (
        "BaseModel",
        {"source": {}},
        "source must be exactly one of volume, huggingFace, s3, image, build; found 0",
    ),
    "path-that-leaves": (
        "LoRAAdapter",
        adapter_spec("base", "good/../../etc"),
        "source.volume.path may not leave the volume: remove '..'",
    ),
    "digest-in-another-form": (
        "LoRAAdapter",
        {**adapter_spec("base"), "digest": "md5:1"},
        "spec.digest in body should match",
    ),
    "argument-that-is-ours": (
        "BaseModel",
        {**BASE_SPEC, "serving": {**BASE_SPEC["serving"], "extraArgs": ["--host=0.0.0.0"]}},
        "extraArgs may not set what Tuneyard sets",
    ),
    **{
        f"setting-{name}": ("BaseModel", {**BASE_SPEC, "serving": {**BASE_SPEC["serving"], **block}}, words)
        for name, block, words in (
            (
                "in-extra-args",
                {"extraArgs": ["--kv-cache-dtype=fp8"]},
                "extraArgs may not set what has a field of its own",
            ),
            (
                "of-vllm-alone",
                {"extraArgs": ["--data-parallel-size=2"]},
                "extraArgs may not set what Tuneyard tells vLLM",
            ),
            (
                "compile-cache-of-another-engine",
                {"engine": "sglang", "compileCache": {"persistentVolumeClaim": {"claimName": "c"}}},
                "compileCache keeps what vllm compiles",
            ),
            (
                "draft-of-ngram",
                {"speculative": {"method": "NGram", "tokens": 3, "draft": {"volume": "models", "path": "small"}}},
                "speculative.draft is for methods DraftModel, Eagle and Eagle3",
            ),
            (
                "without-a-draft",
                {"speculative": {"method": "Eagle3", "tokens": 3}},
                "speculative.draft is for methods DraftModel, Eagle and Eagle3",
            ),
            (
                "lookup-of-a-draft-model",
                {
                    "speculative": {
                        "method": "DraftModel",
                        "tokens": 3,
                        "promptLookupMax": 4,
                        "draft": {"volume": "models", "path": "small"},
                    }
                },
                "are of method NGram alone",
            ),
            (
                "lookup-upside-down",
                {"speculative": {"method": "NGram", "tokens": 3, "promptLookupMin": 4, "promptLookupMax": 2}},
                "promptLookupMin may not be above promptLookupMax",
            ),
            ("two-compile-caches", {"compileCache": {}}, "a compile cache must be exactly one of hostPath"),
            ("dtype-of-many-words", {"dtype": "--trust-remote-code"}, "serving.dtype in body should match"),
            ("more-than-a-gpu", {"gpuMemoryUtilization": 1.5}, "should be less than or equal to 1"),
        )
    },
    "custom-block-of-another-engine": (
        "BaseModel",
        {**BASE_SPEC, "serving": {**BASE_SPEC["serving"], "engine": "vllm", "custom": {"healthPath": "/up"}}},
        "custom describes the engine custom: remove it, or set engine: custom",
    ),
    "engine-that-nobody-knows": (
        "BaseModel",
        {**BASE_SPEC, "serving": {**BASE_SPEC["serving"], "engine": "triton"}},
        "Unsupported value",
    ),
    "fewer-copies-at-most-than-in-any-case": (
        "BaseModel",
        {**BASE_SPEC, "serving": {**BASE_SPEC["serving"], "lora": {"copies": 3, "maxCopies": 2}}},
        "lora.maxCopies may not be below lora.copies",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_objects_are_refused_in_words(apiserver: ApiServer, namespace: str, case: str) -> None:
    kind, spec, words = BAD[case]
    refused = apiserver.kubectl("apply", "-f", "-", stdin=manifest(kind, case, namespace, spec))
    assert refused.returncode == 1
    assert words in refused.stderr


CHANGED: dict[str, tuple[str, Object, Object, str]] = {
    "revision": (
        "ModelDeployment",
        deployment_spec("base", {"v0": 100}),
        deployment_spec("other", {"v0": 100}),
        "revision v0 is immutable: add a revision under a new name and move traffic to it",
    ),
    "adapter": (
        "LoRAAdapter",
        adapter_spec("base", "one"),
        adapter_spec("base", "two"),
        "a LoRAAdapter is immutable except lineage.evals: create a new LoRAAdapter",
    ),
    "system-prompt": (
        "LoRAAdapter",
        {**adapter_spec("base"), "systemPrompt": {"text": "Be brief."}},
        {**adapter_spec("base"), "systemPrompt": {"text": "Be brief.", "apply": "Always"}},
        "a LoRAAdapter is immutable except lineage.evals: create a new LoRAAdapter",
    ),
    "system-prompt-that-comes-later": (
        "LoRAAdapter",
        adapter_spec("base"),
        {**adapter_spec("base"), "systemPrompt": {"text": "Be brief."}},
        "a LoRAAdapter is immutable except lineage.evals: create a new LoRAAdapter",
    ),
    "base": (
        "BaseModel",
        BASE_SPEC,
        {**BASE_SPEC, "source": {"volume": {"name": "models", "path": "another"}}},
        "a BaseModel is immutable except serving, lineage.evals and how a build's Jobs run",
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_contents_cannot_change_under_an_old_name(apiserver: ApiServer, namespace: str, case: str) -> None:
    kind, before, after, words = CHANGED[case]
    name = f"changed-{case}"
    assert apiserver.kubectl("apply", "-f", "-", stdin=manifest(kind, name, namespace, before)).returncode == 0
    refused = apiserver.kubectl("apply", "-f", "-", stdin=manifest(kind, name, namespace, after))
    assert refused.returncode == 1
    assert words in refused.stderr


def test_a_revision_may_be_added_and_removed_and_weights_moved(apiserver: ApiServer, namespace: str) -> None:
    for weights in ({"v0": 100}, {"v0": 90, "v1": 10}, {"v1": 100}):
        spec = deployment_spec("base", weights)
        applied = apiserver.kubectl("apply", "-f", "-", stdin=manifest("ModelDeployment", "moved", namespace, spec))
        assert applied.returncode == 0, applied.stderr


def test_tenants_may_be_what_stays_together(apiserver: ApiServer, namespace: str) -> None:
    routing = {"stickyBy": {"header": "x-tenant"}, "affinity": {"header": "X-Tenant"}}
    spec = {**deployment_spec("base", {"v0": 100}), "routing": routing}
    applied = apiserver.kubectl("apply", "-f", "-", stdin=manifest("ModelDeployment", "together", namespace, spec))
    assert applied.returncode == 0, applied.stderr


def test_an_unknown_field_is_refused_by_kubectl(apiserver: ApiServer, namespace: str) -> None:
    spec = {**deployment_spec("base", {"v0": 100}), "rollbackWindow": "5m"}
    refused = apiserver.kubectl("apply", "-f", "-", stdin=manifest("ModelDeployment", "unknown", namespace, spec))
    assert refused.returncode == 1
    assert 'unknown field "spec.rollbackWindow"' in refused.stderr


def test_columns_and_short_names_are_there(apiserver: ApiServer, namespace: str) -> None:
    spec = deployment_spec("base", {"v0": 100})
    apiserver.kubectl("apply", "-f", "-", stdin=manifest("ModelDeployment", "shown", namespace, spec))
    for short, header in (
        ("mdep", ["NAME", "READY", "PHASE", "STABLE", "CANDIDATE", "WEIGHT", "TARGET", "REASON", "AGE"]),
        ("lora", ["NAME", "READY", "BASE", "VERSION", "LOADED", "PROGRESS", "RANK", "SIZE", "AGE"]),
        ("bmodel", ["NAME", "READY", "ENGINE", "TP", "REPLICAS", "PROGRESS", "AGE"]),
    ):
        kind, body = {"mdep": ("ModelDeployment", spec), "lora": ("LoRAAdapter", adapter_spec("base"))}.get(
            short, ("BaseModel", BASE_SPEC)
        )
        apiserver.kubectl("apply", "-f", "-", stdin=manifest(kind, "shown", namespace, body))
        shown = apiserver.kubectl("get", short, "shown", "-n", namespace)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.splitlines()[0].split() == header
    listed = json.loads(apiserver.kubectl("get", "tuneyard", "-n", namespace, "-o", "json").stdout)
    assert {item["kind"] for item in listed["items"]} == {"BaseModel", "LoRAAdapter", "ModelDeployment"}
