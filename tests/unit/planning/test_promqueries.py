"""What Prometheus is asked: names in queries, when nothing is asked, and which answers say something."""

from __future__ import annotations

import math

import pytest

from tests.toyworld.rollouts import WHOLE, later
from tests.unit.planning.test_promchecks import checked_world, evaluate
from tests.unit.planning.test_rollout_analysis import GOOD, judged_world, look
from tuneyard.planning.promqueries import Evaluation, filled_in, under_way

NAMES = {"candidate": "v2", "stable": "v1", "deployment": "chat", "namespace": "models"}


@pytest.mark.parametrize(
    ("query", "sent"),
    [
        ('up{revision="$candidate"}', 'up{revision="v2"}'),
        ('a{r="$candidate"} / a{r="$stable"}', 'a{r="v2"} / a{r="v1"}'),
        ('a{d="$namespace/$deployment"}', 'a{d="models/chat"}'),
        ("$candidates $candidate_x $stable2", "$candidates $candidate_x $stable2"),
        ('a{r=~"$candidate$"}', 'a{r=~"v2$"}'),
        ('label_replace(a, "b", "$1", "c", "(.*)$")', 'label_replace(a, "b", "$1", "c", "(.*)$")'),
        ("$__interval ${candidate} $Candidate", "$__interval ${candidate} $Candidate"),
        ("$$candidate", "$v2"),
    ],
)
def test_names_take_the_place_of_whole_words(query: str, sent: str):
    assert filled_in(query, **NAMES) == sent


def test_no_name_ends_the_string_that_it_stands_in():
    assert filled_in('a{r="$candidate"}', **{**NAMES, "candidate": 'x"} or b{c="\\'}) == 'a{r="x\\"} or b{c=\\"\\\\"}'


@pytest.mark.parametrize(
    ("value", "says"), [(0.0, 0.0), (-1.5, -1.5), (math.nan, None), (math.inf, None), (None, None)]
)
def test_only_finite_numbers_say_something(value: float | None, says: float | None):
    evaluation = Evaluation("q", 1.0, value, "" if value is not None else "no answer")
    assert evaluation.number == says
    assert says is not None or evaluation.words


def test_what_is_asked_of_a_candidate_with_traffic():
    world = checked_world(
        {"name": "drift", "query": 'drift{r="$candidate",d="$deployment"}', "max": 1, "interval": "1m"}
    )
    (query,) = under_way(world.now)
    assert (query.check, query.text, query.interval) == ("drift", 'drift{r="v2",d="chat"}', 60)


def test_nothing_is_asked_without_a_candidate_that_is_judged():
    world = checked_world()
    assert under_way(world.now)
    world.ready["v2"] = False
    world.settle()
    assert under_way(world.now) == (), "no traffic"
    world.ready["v2"] = True
    world.settle()
    world.command("abort", "v2")
    world.settle()
    assert under_way(world.now) == (), "rejected"
    assert under_way(judged_world().now) == (), "no checks"


def test_what_has_been_stable_before_is_asked_nothing_on_its_way_back():
    world = checked_world()
    world.command("promote", "v2")
    world.settle()
    assert world.status.stable == "v2" and under_way(world.now) == ()
    world.spec({"v1": 50, "v2": 50})
    world.settle()
    assert world.weights == {"v1": 50, "v2": 50}
    assert under_way(world.now) == ()


def test_manual_rollouts_are_asked_nothing():
    world = checked_world()
    evaluate(world, 0.1)
    look(world, GOOD)
    world.spec(WHOLE, mode="Manual")
    later(world, 1)
    assert under_way(world.now) == ()
