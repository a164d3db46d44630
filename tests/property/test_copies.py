"""At the edge of a pool's room an adapter that comes and goes moves itself and nobody else.

`Toy` (test_placing.py) is the pool; here its number of copies is the one that pools.py finds for its adapters.
"""

from __future__ import annotations

from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.property.test_placing import EXAMPLES, Toy, named, pods
from tuneyard.api.documents import PoolPlan
from tuneyard.api.serving import LoRASettings, ServingSpec
from tuneyard.planning.pools import capacity, copies
from tuneyard.planning.resolvedserving import Serving, resolved_serving


class Edge:
    """A pool of which the operator says how many copies there are."""

    def __init__(self, serving: Serving, adapters: int) -> None:
        self.serving = serving
        self.plan: PoolPlan | None = None
        number = serving.replicas
        self.toy = Toy(named(adapters), 1, serving.lora.max_cpu_loras, pods(range(number)), number)
        self.settle()

    @property
    def copies(self) -> int:
        return self.toy.copies

    def settle(self) -> int:
        """The operator's next plans, until nothing moves; returns how many copies pods had to load."""
        before = self.toy.loads
        found = copies(self.serving, len(self.toy.adapters), self.plan, len(self.toy.idle))
        self.plan = PoolPlan(pool="p", base_model="b", copies=found)
        self.toy.copies = self.serving.replicas if found is None else found
        self.toy.settle()
        return self.toy.loads - before

    def leave(self, adapter: str) -> int:
        """Nobody refers to it any more."""
        self.toy.adapters.remove(adapter)
        self.toy.idle.append(adapter)
        return self.settle()

    def expire(self) -> int:
        """What nobody refers to has had its time."""
        self.toy.idle.clear()
        return self.settle()

    def come(self, adapter: str) -> int | None:
        """Somebody refers to it, if it has a place still or there is one."""
        known = adapter in self.toy.idle
        if not known and len(self.toy.adapters) >= capacity(self.serving):
            return None
        self.toy.idle = [a for a in self.toy.idle if a != adapter]
        self.toy.adapters.append(adapter)
        return self.settle()


@st.composite
def edges(draw: st.DrawFn) -> Edge:
    """Pools with one adapter more than some number of copies has room for; or about as many."""
    number, room = draw(st.integers(2, 6)), draw(st.integers(2, 12))
    asked = draw(st.one_of(st.none(), st.integers(1, number)))
    serving = resolved_serving(
        ServingSpec(replicas=number, lora=LoRASettings(max_cpu_loras=room, copies=asked), resources=None)
    )
    level = draw(st.integers(1, number))
    count = number * room // level + draw(st.integers(-2, 2))
    assume(1 < count <= number * room)
    return Edge(serving, count)


@settings(max_examples=EXAMPLES, deadline=None)
@given(edges(), st.integers(1, 4))
def test_who_goes_and_is_back_in_time_moves_nobody(edge: Edge, times: int) -> None:
    for _ in range(times):
        adapter, before = edge.toy.adapters[0], edge.copies
        assert edge.leave(adapter) == 0
        assert edge.come(adapter) is not None
        assert edge.copies == before


@settings(max_examples=EXAMPLES, deadline=None)
@given(edges(), st.integers(2, 5))
def test_however_often_one_comes_and_goes_the_others_move_once_at_most(edge: Edge, times: int) -> None:
    adapter, levels = edge.toy.adapters[0], [edge.copies]
    for _ in range(times):
        edge.leave(adapter)
        edge.expire()
        levels.append(edge.copies)
        loads = edge.come(adapter)
        if loads is None:
            break
        levels.append(edge.copies)
        assert loads <= edge.copies, "its own copies"
    changes = [b for a, b in pairwise(levels) if a != b]
    assert len(changes) <= 1
    assert levels == sorted(levels), "what it gains is not taken away for it"
