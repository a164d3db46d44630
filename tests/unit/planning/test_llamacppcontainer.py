"""What llama.cpp's server is started with."""

from __future__ import annotations

import pytest

from tests.builders import base_model, deployment, revision
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.llamacppcontainer import arguments
from tuneyard.planning.pools import pools_of


def given(max_model_len: int | None, *extra_args: str) -> list[str]:
    """From the context on."""
    serving = ServingSpec(engine="llamaCpp", max_model_len=max_model_len, extra_args=list(extra_args))
    (pool,) = pools_of(base_model(serving=serving), [deployment(revisions=[revision("v1")])])
    found = arguments(pool)
    return found[found.index("--no-webui") + 1 :]


@pytest.mark.parametrize(
    ("extra_args", "whole"),
    [
        ([], 4096),
        (["--parallel", "8"], 8192),
        (["-np", "1"], 1024),
        (["--parallel", "8", "--threads", "2", "-np", "2"], 2048),
        (["--parallel", "8", "--parallel", "-1"], 4096),
        (["--parallel", "many"], 4096),
        (["--parallel"], 4096),
        (["--alias", "8"], 4096),
    ],
)
def test_each_request_has_the_context_that_was_asked_for(extra_args: list[str], whole: int) -> None:
    assert given(1024, *extra_args) == ["--ctx-size", str(whole), "--parallel", "4", *extra_args]


def test_without_one_the_server_gives_each_request_the_models_own() -> None:
    assert given(None, "--parallel", "8") == ["--parallel", "4", "--parallel", "8"]
