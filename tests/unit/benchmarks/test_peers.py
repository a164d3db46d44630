"""What is made of the rounds of benchmarks/gateway_vs_peers.py, and how peers are started."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import bare
from benchmarks import gateway_vs_peers as peers
from benchmarks.report import missed
from benchmarks.ways import Round
from cluster import pythons


def ways(gateway: float, router: float, litellm: float) -> peers.Results:
    """One round each, with these rates; latencies go the other way."""
    rates = {peers.DIRECT: 50_000.0, peers.GATEWAY: gateway, peers.WHOLE: gateway / 2}
    rates |= {peers.ROUTER: router, peers.LITELLM: litellm, bare.BARE: 2 * gateway}
    return {name: [Round(1000 / rate, 1.0, rate, 1e6 / rate, 0.0)] for name, rate in rates.items()}


def test_figures_are_of_requests_per_second_of_one_worker() -> None:
    found = peers.figures_of({"1kb": ways(10_000, 8000, 100), "100kb": ways(5000, 6000, 50)})
    assert found["ratio_litellm"] == 100
    assert found["ratio_vllm_router"] == 1.25
    assert (found["ratio_bare_envoy"], found["bare_envoy_requests_per_second_1kb"]) == (0.5, 20_000)
    assert (found["whole_ratio_litellm"], found["whole_ratio_vllm_router"]) == (50, 0.625)
    assert round(found["added_ms_p50_1kb"], 6) == 0.08
    assert round(found["whole_added_ms_p50_1kb"], 6) == 0.18
    assert round(found["litellm_added_ms_p50_100kb"], 6) == 19.98
    assert missed(found, peers.TARGETS) == {}
    slower = peers.figures_of({"1kb": ways(9000, 9900, 100), "100kb": ways(5000, 6000, 50)})
    assert set(missed(slower, peers.TARGETS)) == {"requests_per_second_1kb", "ratio_litellm", "ratio_vllm_router"}


def test_peers_are_given_nothing_but_the_upstream(tmp_path: Path) -> None:
    commands = [
        peers.router(Path("/bin"), 1, 2),
        peers.litellm(Path("/bin"), 1, 2, tmp_path),
    ]
    (parameters,) = (m["litellm_params"] for m in json.loads((tmp_path / "litellm.yaml").read_text())["model_list"])
    told = " ".join(word for command in commands for word in command) + parameters["api_base"]
    assert set(re.findall(r"https?://[^/\s]+", told)) == {"http://127.0.0.1:2"}
    assert not {"PYTHONPATH", "HOME"} & peers._ENVIRONMENT.keys()


def test_versions_are_those_that_were_looked_at() -> None:
    """LiteLLM's name was once taken over; a newer one is taken on purpose, in requirements/peers.in."""
    entries = pythons.read_lock("peers").entries
    wanted = dict(
        re.findall(
            r"^([\w-]+)(?:\[\w+\])?==(\S+)$", pythons.read_lock("peers").path.with_suffix(".in").read_text(), re.M
        )
    )
    assert wanted.keys() == {"litellm", "vllm-router"}
    for name, version in wanted.items():
        assert entries[name].startswith(f"{name}=={version} ")
