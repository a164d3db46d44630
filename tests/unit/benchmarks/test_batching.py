"""The engines of benchmarks/balancing.py, and what is made of their answers."""

from __future__ import annotations

import random

import pytest

from benchmarks import balancing
from benchmarks.balancing import GATEWAYS, LEAST, ORCA, WAYS, WEIGHTED, Answered, Cell, figures_of, resources
from benchmarks.batchengines import load_of, metrics_of
from benchmarks.batching import (
    FULL,
    Engine,
    Load,
    Recent,
    Request,
    Speed,
    Told,
    What,
    asked,
    busy,
    per_second,
    weight_of,
)
from tests.contract.envoy import engine_key, model, revision
from tuneyard.systems.envoy.translate import model_resources

PLAIN = Speed(step=1.0, sequence=0.25, prompt=0.125, chunk=4, places=2, cache=100)
FIRST, LAST = What.FIRST, What.LAST


def engine(*requests: Request, speed: Speed = PLAIN) -> Engine:
    """One to which all these came at 0, with their numbers as keys."""
    one = Engine(speed)
    for key, request in enumerate(requests):
        one.arrive(0.0, key, request)
    return one


def told_by(one: Engine) -> list[Told]:
    """All that it ever tells."""
    found = []
    while one.next_at is not None:
        found += one.advance(one.next_at)
    return found


def test_a_prompt_is_read_in_pieces_and_then_each_step_is_a_token() -> None:
    # 4 and 2 tokens are read in 1.5 and 1.25 s; two more tokens take 1.25 s each
    assert told_by(engine(Request(6, 3))) == [Told(2.75, 0, FIRST), Told(5.25, 0, LAST)]


def test_one_token_is_first_and_last() -> None:
    assert told_by(engine(Request(4, 1))) == [Told(1.5, 0, FIRST), Told(1.5, 0, LAST)]


def test_a_step_takes_longer_with_every_sequence_and_with_what_is_read_beside() -> None:
    one = engine(Request(4, 4))
    one.arrive(0.5, 1, Request(4, 2))
    # 1.5 s; beside a token of the first the second is read in 1.75 s; then both have one in 1.5 s; then one is alone
    assert told_by(one) == [
        Told(1.5, 0, FIRST),
        Told(3.25, 1, FIRST),
        Told(4.75, 1, LAST),
        Told(6.0, 0, LAST),
    ]


def test_who_finds_no_place_waits_in_order() -> None:
    one = engine(Request(4, 2), Request(4, 2), Request(4, 1), Request(4, 1))
    assert one.advance(0.0) == []
    assert one.load() == Load(1, 3, 0.0)  # the step of the first had begun when the others came
    lasts = [told.key for told in told_by(one) if told.what is LAST]
    assert lasts == [0, 1, 2, 3]
    assert one.load() == Load(0, 0, 0.0)


def test_who_finds_no_room_in_the_cache_waits_too() -> None:
    small = Speed(1.0, 0.25, 0.125, chunk=4, places=2, cache=10)
    one = engine(Request(4, 2), Request(6, 1), speed=small)
    told = told_by(one)
    assert [(t.key, t.what) for t in told] == [(0, FIRST), (0, LAST), (1, FIRST), (1, LAST)]
    assert one.gave_way == 0


def test_the_newest_gives_way_where_the_cache_is_full_before_others_and_begins_no_second_time() -> None:
    small = Speed(1.0, 0.25, 0.125, chunk=4, places=2, cache=14)
    one = engine(Request(4, 10), Request(4, 5), Request(9, 1), speed=small)
    told = told_by(one)
    assert one.gave_way == 1
    assert [(t.key, t.what) for t in told] == [
        (0, FIRST),
        (1, FIRST),
        (0, LAST),
        (1, LAST),
        (2, FIRST),
        (2, LAST),
    ]


def test_what_never_fits_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 100"):
        engine(Request(60, 41))


def test_it_does_not_matter_how_often_one_looks() -> None:
    chance = random.Random(3)
    requests = [asked(chance) for _ in range(200)]
    one, another = (engine(*requests, speed=Speed()) for _ in range(2))
    seen = [told for tick in range(2000) for told in one.advance(tick * 0.037)]
    assert seen == another.advance(1999 * 0.037)
    assert sum(told.what is LAST for told in seen) == 200


def test_all_that_is_asked_fits_and_lengths_are_skewed() -> None:
    chance = random.Random(1)
    requests = [asked(chance) for _ in range(5000)]
    assert all(r.prompt >= 1 and r.output >= 1 and r.prompt + r.output <= Speed().cache for r in requests)
    outputs = sorted(r.output for r in requests)
    assert outputs[-50] > 5 * outputs[2500]
    assert sum(outputs) / 5000 > 1.2 * outputs[2500]


@pytest.mark.lasting
def test_a_slower_engine_answers_so_much_less() -> None:
    usual, slow = per_second(Speed()), per_second(Speed().slower(2))
    assert usual == pytest.approx(2 * slow)


def test_load_is_told_as_vllm_does() -> None:
    assert load_of(metrics_of(Load(3, 12, 0.625))) == Load(3, 12, 0.625)
    with pytest.raises(KeyError, match="num_requests_waiting"):
        load_of("vllm:num_requests_running 3\n")


@pytest.mark.parametrize(
    ("load", "use", "weight"),
    [
        (Load(0, 0, 0.0), 0.0, 1000),
        (Load(4, 0, 0.1), 0.25, 750),
        (Load(4, 0, 0.9), 0.9, 100),
        (Load(16, 0, 0.5), 1.0, FULL),
        (Load(16, 16, 0.5), 2.0, FULL),
    ],
)
def test_weight_is_what_is_free(load: Load, use: float, weight: int) -> None:
    assert busy(load, 16) == use
    assert weight_of(use) == weight


def test_recent_forgets() -> None:
    recent = Recent(2.0)
    for number in range(1000):
        recent.seen(number * 0.01, 0.5)
    assert recent.value == pytest.approx(0.5, rel=0.01)
    assert recent.per_second == pytest.approx(100, rel=0.02)
    for number in range(1000):
        recent.seen(10 + number * 0.1, 0.9)
    assert recent.value == pytest.approx(0.9, rel=0.01)
    assert recent.per_second == pytest.approx(10, rel=0.05)


def test_requests_come_at_the_rate_once_the_load_is_there() -> None:
    found = balancing.arrivals(random.Random(1), 60, 50.0, 100.0)
    assert found == sorted(found)
    assert sum(at >= balancing.LEAD for at in found) == pytest.approx(5000, rel=0.05)
    first = sum(at < balancing.FILLED_WITHIN for at in found)
    assert first == pytest.approx(50 + 6 * 16 * 0.6, rel=0.3)


def test_ways_differ_from_the_product_in_nothing_but_how_pods_are_chosen() -> None:
    pods = ["127.0.0.1:1", "127.0.0.1:2"]
    for way in WAYS:
        product = model_resources(model(way, revision("v1", 100, pods)), engine_key)
        built = resources(way, pods, {"127.0.0.1:2": 7})
        assert (built.routes, built.scopes, built.needs) == (product.routes, product.scopes, product.needs)
        ((name, cluster),) = built.clusters.items()
        known = product.clusters[name]
        changed = {field for field in cluster.keys() | known.keys() if cluster.get(field) != known.get(field)}
        weights = [e.get("load_balancing_weight") for e in built.assignments[name]["endpoints"][0]["lb_endpoints"]]
        if way == LEAST:
            assert built == product
        elif way == WEIGHTED:
            assert changed == {"load_balancing_policy", "common_lb_config"}
            assert weights == [100, 7]
        else:
            assert changed == {"load_balancing_policy"}
            assert weights == [None, None]


def test_ratios_are_to_least_request_and_the_worst_counts() -> None:
    def answers(ttft: float) -> list[Answered]:
        return [Answered(ttft, 10 * ttft, balancing.SLOW if number < 10 else 0) for number in range(100)]

    found = {
        Cell(1, 60): {LEAST: answers(100), WEIGHTED: answers(900), ORCA: answers(900)},
        Cell(GATEWAYS, 60): {LEAST: answers(100), WEIGHTED: answers(80), ORCA: answers(100)},
        Cell(GATEWAYS, 95): {LEAST: answers(200), WEIGHTED: answers(180), ORCA: answers(50)},
    }
    figures = figures_of(found)
    assert figures["three_95_least_total_ms_p99"] == 2000
    assert figures["three_60_orca_slow_share"] == 0.1
    assert figures["three_95_orca_ttft_ms_p99_ratio"] == 0.25
    assert (figures["weighted_worst_ratio"], figures["orca_worst_ratio"]) == (0.9, 1.0)
