from __future__ import annotations

import itertools

from tests.builders import deployment
from tuneyard.planning.modelnames import owners


def test_the_oldest_owns_a_name_whatever_the_order() -> None:
    claims = [
        deployment("b", model_name="chat", created=1),
        deployment("a", model_name="chat", created=2),
        deployment("chat", created=3),
        deployment("other", created=0),
    ]
    for order in itertools.permutations(claims):
        assert owners(order) == {"chat": ("team", "b"), "other": ("team", "other")}


def test_ties_go_by_namespace_and_name_and_the_unstored_come_last() -> None:
    first = deployment("a", model_name="chat", created=1, namespace="z")
    second = deployment("b", model_name="chat", created=1, namespace="a")
    unstored = deployment("c", model_name="chat", namespace="a", creation_timestamp="")
    assert owners([first, second, unstored])["chat"] == ("a", "b")
    assert owners([first, unstored])["chat"] == ("z", "a")
    assert owners([]) == {}
