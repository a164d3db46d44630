"""How long a request may be on the real llama.cpp, started as a pool's container starts it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from tests.builders import base_model, deployment, revision
from tests.contract.llamaservers import llama_server, smollm2_file
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.llamacppcontainer import arguments
from tuneyard.planning.pools import pools_of

pytestmark = [pytest.mark.slow, pytest.mark.engine, pytest.mark.timeout(1800)]

OWN = 8192
"""SmolLM2's context."""


@pytest.mark.parametrize(
    ("max_model_len", "extra_args", "expected"),
    [
        (None, [], (4, OWN)),
        (None, ["--parallel", "2"], (2, OWN)),
        (1024, [], (4, 1024)),
        (1024, ["--parallel", "8"], (8, 1024)),
        (1024, ["-np", "2"], (2, 1024)),
    ],
)
def test_every_request_has_the_context_that_its_pool_says(
    tmp_path: Path, max_model_len: int | None, extra_args: list[str], expected: tuple[int, int]
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(smollm2_file())
    serving = ServingSpec(engine="llamaCpp", max_model_len=max_model_len, extra_args=extra_args)
    (pool,) = pools_of(base_model(serving=serving), [deployment(revisions=[revision("v1")])])
    with (
        llama_server(model, tmp_path / "log", *arguments(pool)) as url,
        urllib.request.urlopen(f"{url}/props", timeout=30) as response,
    ):
        said = json.load(response)
    assert (said["total_slots"], said["default_generation_settings"]["n_ctx"]) == expected
