"""Percentiles of first tokens over gateways, and pages of engines' metrics."""

from __future__ import annotations

import pytest

from tuneyard.planning.firsttokens import EDGES, added, edge_of, percentile
from tuneyard.systems.engines.loads import EngineCounts, counts_in

PAGE = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="base"} 7.0
vllm:num_requests_running{engine="1",model_name="base"} 5.0
vllm:num_requests_waiting{engine="0",model_name="base"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="base"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="base"} 0.5
vllm:generation_tokens_total{engine="0",model_name="base"} 1000.0
vllm:generation_tokens_created{engine="0",model_name="base"} 1.7e+09
"""


def test_a_page_of_several_cores_adds_up() -> None:
    assert counts_in(PAGE) == EngineCounts(running=12, waiting=2, kv_cache=0.5, tokens=1000)


@pytest.mark.parametrize("page", ["", "tgi_queue_size 3\n", "vllm:num_requests_running 1\n"])
def test_another_engines_page_says_nothing(page: str) -> None:
    assert counts_in(page) is None


def test_numbers_that_are_none_do_not_count() -> None:
    odd = "vllm:num_requests_running 1\nvllm:num_requests_waiting +Inf\nvllm:num_requests_waiting -4\n"
    assert counts_in(odd) is None
    assert counts_in(odd + "vllm:num_requests_waiting 3\n") == EngineCounts(1, 3, 0, 0)


def test_classes_hold_every_time() -> None:
    assert [edge_of(t) for t in (0, 25, 26, 60_000, 1e9)] == [25, 25, 50, 60_000, 60_000]
    assert list(EDGES) == sorted(set(EDGES))


def test_a_percentile_over_several_gateways() -> None:
    assert percentile(added([{100: 5}, {100: 4}]), 95) is None, "too few"
    assert percentile({100: 90, 2000: 10}, 90) == 100
    assert percentile({100: 90, 2000: 10}, 95) == 1750, "in the middle of its class"
    assert percentile(added([{100: 90}, {2000: 10, 7: 1000, 500: -3}]), 95) == 1750, "unknown classes are left out"
    assert percentile({60_000: 20}, 50) == 40_000
