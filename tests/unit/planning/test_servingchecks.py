"""What keeps a pool from being made or changed."""

from __future__ import annotations

import pytest

from tests.builders import VOLUME, base_model
from tuneyard.api.basemodel import BaseModelSpec
from tuneyard.api.build import BaseSource
from tuneyard.api.reasons import Reason
from tuneyard.api.serving import ArtifactCache, ArtifactVolume, HostPath, Resources, ServingSpec, VolumeClaim
from tuneyard.planning.resolvedserving import resolved_serving
from tuneyard.planning.servingchecks import is_under, violation
from tuneyard.planning.settings import Settings

CLAIM = ArtifactVolume(name="models", persistent_volume_claim=VolumeClaim(claim_name="c"))


@pytest.mark.parametrize(
    ("path", "prefix", "allowed"),
    [
        ("/var/lib/models", "/var/lib/models", True),
        ("/var/lib/models/", "/var/lib/models", True),
        ("/var/lib/models/a/b", "/var/lib/models/", True),
        ("//var//lib/./models/a", "/var/lib/models", True),
        ("/var/lib/models-secret", "/var/lib/models", False),
        ("/var/lib/models/../secrets", "/var/lib/models", False),
        ("/var/lib/models/a/..", "/var/lib/models", False),
        ("/var/lib", "/var/lib/models", False),
        ("var/lib/models", "/var/lib/models", False),
        ("/etc", "", False),
        ("/etc", "etc", False),
        ("/etc", "/", True),
        ("/etc", "/var/..", False),
    ],
)
def test_host_paths_are_compared_part_by_part(path, prefix, allowed):
    assert is_under(path, prefix) is allowed


def found(serving: ServingSpec, *prefixes: str) -> Reason | None:
    problem = violation(base_model(), resolved_serving(serving), Settings(allowed_host_path_prefixes=list(prefixes)))
    return problem.reason if problem else None


@pytest.mark.parametrize(
    ("serving", "reason"),
    [
        (ServingSpec(artifact_volumes=[CLAIM]), None),
        (ServingSpec(artifact_volumes=[CLAIM], cache=ArtifactCache(size_limit="200Gi")), None),
        (ServingSpec(artifact_volumes=[CLAIM], cache=ArtifactCache(size_limit="200 GB")), Reason.INVALID_SPEC),
        (
            ServingSpec(artifact_volumes=[CLAIM], cache=ArtifactCache(host_path=HostPath(path="/etc"))),
            Reason.HOST_PATH_NOT_ALLOWED,
        ),
        (ServingSpec(artifact_volumes=[VOLUME]), Reason.HOST_PATH_NOT_ALLOWED),
        (ServingSpec(), Reason.VOLUME_NOT_DECLARED),
        (ServingSpec(artifact_volumes=[CLAIM], resources=Resources(limits={"memory": "3 GB"})), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], resources=Resources(requests={"cpu": ""})), Reason.INVALID_SPEC),
        (
            ServingSpec(
                artifact_volumes=[CLAIM],
                resources=Resources(
                    limits={"cpu": "1.5", "memory": "3Gi", "nvidia.com/gpu": 2}, requests={"cpu": "500m"}
                ),
            ),
            None,
        ),
        (ServingSpec(artifact_volumes=[CLAIM], node_selector={"a": "not a label"}), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], node_selector={"a": "", "b": "x.y_z-1"}), None),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--api_key=x"]), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--host", "0.0.0.0"]), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["-tp", "2"]), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["-dp=2"]), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--no-enable-lora"]), Reason.INVALID_SPEC),
        # engines take the begin of a name for the whole
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--hos=0.0.0.0"]), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--ap", "mine"]), Reason.INVALID_SPEC),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--model-impl=vllm"]), None),
        (ServingSpec(artifact_volumes=[CLAIM], extra_args=["--max-num-seqs=4"]), None),
        # a base's, under a block whose replicas are on one node
        (ServingSpec(artifact_volumes=[CLAIM], exclusive_topology_key="rack"), None),
    ],
)
def test_violations(serving, reason):
    assert found(serving) == reason


@pytest.mark.parametrize(
    ("engine", "argument", "ours"),
    [
        *(("vllm", flag, True) for flag in ("-dp=2", "--pipeline-parallel-size=2", "--data-par=2", "--config=x")),
        *(
            (engine, flag, False)
            for engine in ("sglang", "tgi")
            for flag in ("--data-parallel-size=2", "-pp", "--dp=2")
        ),
        # a file of arguments could say again what Tuneyard says
        ("sglang", "--config=x", True),
        *(("custom", flag, False) for flag in ("--config", "--api-server-count=2", "-dp")),
        ("custom", "--host=0.0.0.0", True),
        ("sglang", "--tensor-parallel-size=2", True),
    ],
)
def test_arguments_of_vllm_alone_are_other_engines_own(engine, argument, ours):
    """There dataParallelSize and pipelineParallelSize are refused, with the advice to say it in extraArgs."""
    given = {"engine": engine, "image": "i", "extraArgs": [argument]}
    block = ServingSpec.from_dict({**given, "custom": {}} if engine == "custom" else given)
    found = violation(base_model(), resolved_serving(block.over(ServingSpec(artifact_volumes=[CLAIM]))), Settings())
    assert (found is not None) == ours, found
    assert found is None or "Tuneyard sets that itself" in found.message


@pytest.mark.parametrize(
    ("fields", "gpus", "words"),
    [
        ({"tensorParallelSize": 4}, {"nvidia.com/gpu": 1}, "has nvidia.com/gpu: 1, and * needs 4: set it to 4, or"),
        ({"tensorParallelSize": 4}, {"nvidia.com/gpu": "4"}, None),
        ({"tensorParallelSize": 4}, {"nvidia.com/gpu": 8}, None),
        ({"tensorParallelSize": 2, "dataParallelSize": 2}, {"nvidia.com/gpu": "2"}, "needs 4: set it to 4"),
        (
            {"tensorParallelSize": 4, "pipelineParallelSize": 2, "nodesPerReplica": 2},
            {"nvidia.com/gpu": 2},
            "needs 4 on each node: set it to 4",
        ),
        ({"tensorParallelSize": 4, "nodesPerReplica": 2}, {"nvidia.com/gpu": 2}, None),
        ({"tensorParallelSize": 2, "engine": "sglang", "image": "i"}, {"nvidia.com/gpu": 1}, "needs 2"),
        ({"tensorParallelSize": 2, "engine": "tgi", "image": "i"}, {"nvidia.com/gpu": 1}, "needs 2"),
        # builds for CPUs, and devices that are counted by other rules
        ({"tensorParallelSize": 2}, {"memory": "8Gi"}, None),
        ({"tensorParallelSize": 2}, {"nvidia.com/gpu": 0}, None),
        ({"tensorParallelSize": 2}, {"amd.com/gpu": 1}, None),
        ({"tensorParallelSize": 2}, None, None),
    ],
)
def test_each_rank_has_a_gpu(fields, gpus, words):
    """The pod would read the whole base before its engine ends."""
    resources = {} if gpus is None else {"resources": {"limits": gpus}}
    serving = ServingSpec(artifact_volumes=[CLAIM]).over(ServingSpec.from_dict({**fields, **resources}))
    problem = violation(base_model(), resolved_serving(serving), Settings())
    assert (problem and problem.reason) == (words and Reason.INVALID_SPEC)
    assert problem is None or all(part in problem.message for part in words.split("*"))


@pytest.mark.parametrize(
    ("volume", "cache", "allowed"),
    [
        ("/srv/models", "/srv/cache", True),
        ("/srv/models", "/srv/cache/", True),
        ("/srv/models", "/srv/cache/mine", False),
        ("/srv/models", "/srv", False),
        ("/srv/models", "/srv/models", False),
        ("/srv/cache/other-namespace", None, False),
        ("/srv/cache", None, False),
        ("/srv", None, False),
        ("/srv/cache-of-others", None, True),
    ],
)
def test_nobody_looks_into_the_caches_of_others(volume, cache, allowed):
    """An artifact volume shows a folder as it is; of a cache each namespace sees its own part only."""
    settings = Settings(allowed_host_path_prefixes=["/srv"], allowed_cache_host_paths=["/srv/cache"])
    serving = ServingSpec(
        artifact_volumes=[ArtifactVolume(name="models", host_path=HostPath(path=volume))],
        cache=ArtifactCache(host_path=HostPath(path=cache)) if cache else None,
    )
    problem = violation(base_model(), resolved_serving(serving), settings)
    assert (problem.reason if problem else None) == (None if allowed else Reason.HOST_PATH_NOT_ALLOWED)


def test_an_allowed_host_path_passes():
    assert found(ServingSpec(artifact_volumes=[VOLUME]), "/data", "/var/lib") is None


def test_no_prefix_is_allowed_by_default():
    assert Settings().allowed_host_path_prefixes == []


@pytest.mark.parametrize("path", ["../other", "a/../../b", "/etc"])
def test_a_source_stays_on_its_volume_also_when_the_crd_was_not_asked(path):
    base = base_model(path="x")
    unsafe = base.model_copy(
        update={"spec": BaseModelSpec.model_construct(source=_source(base, path), serving=base.spec.serving)}
    )
    problem = violation(unsafe, resolved_serving(ServingSpec(artifact_volumes=[CLAIM])), Settings())
    assert problem is not None
    assert problem.reason is Reason.UNSAFE_PATH


def _source(base, path):
    return BaseSource.model_construct(volume=base.spec.source.volume.model_copy(update={"path": path}))


def test_a_source_of_a_kind_of_the_future_is_said_so():
    base = base_model().model_copy(update={"spec": BaseModelSpec.model_construct(source=BaseSource())})
    problem = violation(base, resolved_serving(ServingSpec(artifact_volumes=[CLAIM])), Settings())
    assert problem is not None
    assert problem.reason is Reason.INVALID_SPEC
