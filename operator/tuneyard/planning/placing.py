"""Which pods of a pool hold which adapters, where not every pod holds all of them.

Rendezvous hashing: adapter and pod give a score that nothing else enters, so that a pod that comes or goes changes
nobody's order but by itself. On top of it:
- a copy that is there stays; only what is missing is placed, on the best pods that have room. So a lost pod moves its
  share and nothing else, and removing an adapter moves nobody;
- a pod holds at most `room` copies, and gets at most a quarter more than the average of those that are to stay there
  (bounded loads): the next one in the adapter's order takes what is over;
- a pod that is new gets, at once and never again, adapters of which it is among the best, from pods that are fuller;
- pods of an older template are about to go: their copies serve on and count for nothing else. While pods are replaced
  one by one, each new one gets an even part of all copies, and each copy goes to a new pod once; a copy more comes only
  where no pod would serve the adapter at all;
- a pod that does not serve (it starts, or was lost) keeps its copies in the plan, and others serve in its place;
- a hot adapter gets more copies, on pods that serve and as far as room is free after all that, the best ones first;
  they count for nothing else, and go before anybody lacks a place. Growing moves nobody's copy, a hot one's neither;
- a copy too many goes only when as many as are wanted are seen loaded elsewhere: nothing that serves is taken away for
  something that does not yet. Until it has gone it takes its place, so that no pod is asked to hold more than it can.

`spread` is one step of that, from the plan and the pods as they are; it is taken whenever something changes, and comes
to rest when nothing is left to move.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tuneyard.api.names import short_hash

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Host:
    """A pod that may hold adapters; it is not leaving."""

    name: str
    stays: bool = True
    """Made from the newest template; one of an older template is about to be replaced."""
    serves: bool = True
    """Its engine is ready, or was until a few seconds ago."""
    fresh: bool = False
    """The plan until now was made without it."""
    loaded: frozenset[str] = frozenset()
    """Adapters that it offers."""


@dataclass(frozen=True)
class Wish:
    """What is to be spread."""

    adapters: Sequence[str]
    """Those that are wanted; where room is short, the first ones get it."""
    idle: Sequence[str]
    """Those that nobody refers to any more: they stay where they are while nobody else needs the room."""
    copies: int
    """Pods per adapter."""
    room: int
    """Adapters per pod."""
    pods: int
    """Pods that the pool should have."""
    more: Mapping[str, int] = field(default_factory=dict)
    """Pods for those of the adapters that should have more than `copies`."""


def spread(wish: Wish, hosts: Sequence[Host], held: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """The pods of each adapter from now on, sorted; `held`: those that it has in the plan until now."""
    board = _Board(wish, hosts)
    for adapter in wish.adapters:
        board.keep(adapter, held.get(adapter, ()))
    for adapter in sorted(wish.adapters, key=board.serving_copies):
        board.fill(adapter)
    if not board.rolling:
        board.make_room(wish.adapters)
    if not board.rolling and any(h.fresh for h in hosts):
        for adapter in wish.adapters:
            board.balance(adapter)
    hot = [adapter for adapter in wish.adapters if adapter in wish.more] if wish.more else []
    for adapter in hot:
        board.keep_grown(adapter, wish.more[adapter], held.get(adapter, ()))
    for adapter in hot:
        board.grow(adapter, wish.more[adapter])
    for adapter in wish.idle:
        board.keep_idle(adapter, held.get(adapter, ()))
    return board.result()


class _Ranks:
    """Scores of adapters on a fixed list of pods."""

    def __init__(self, pods: Sequence[str]) -> None:
        self._seeds = [int(short_hash("pod", pod, length=16), 16) for pod in pods]

    def of(self, adapter: str) -> list[int]:
        """Indexes of the pods, the adapter's best one first."""
        own = int(short_hash("adapter", adapter, length=16), 16)
        scores = [_mixed(own ^ seed) for seed in self._seeds]
        return sorted(range(len(scores)), key=scores.__getitem__, reverse=True)


def _mixed(value: int) -> int:
    """64 bits of which each depends on all of the value's (the finalizer of MurmurHash3): five times a hash's speed."""
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & _MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & _MASK
    return value ^ (value >> 33)


class _Board:
    """Copies on hosts while a step is worked out. Hosts are known by their index."""

    def __init__(self, wish: Wish, hosts: Sequence[Host]) -> None:
        self._hosts = sorted(hosts, key=lambda h: h.name)
        self._index = {host.name: number for number, host in enumerate(self._hosts)}
        self._ranks = _Ranks([h.name for h in self._hosts])
        self._orders: dict[str, list[int]] = {}
        self._offered: dict[str, set[int]] = {}
        for number, host in enumerate(self._hosts):
            for adapter in host.loaded:
                self._offered.setdefault(adapter, set()).add(number)
        self._room = wish.room
        self._places: dict[str, set[int]] = {}
        self._due: dict[str, set[int]] = {}
        """The copies that are to stay, of each adapter."""
        self._load = [0] * len(hosts)
        self._due_load = [0] * len(hosts)
        staying = sum(h.stays for h in hosts)
        self.rolling = staying < len(hosts)
        self._copies = min(wish.copies, staying)
        self._serving = min(wish.copies, sum(h.serves for h in hosts))
        average = len(wish.adapters) * wish.copies / max(1, wish.pods, staying)
        self._most_due = min(wish.room, math.ceil(average * (1.0 if self.rolling else 1.25)))
        self._uneven = 1 + int(average / 8)
        """How many copies more a pod must have before one moves to a better pod."""

    def _order(self, adapter: str) -> list[int]:
        """Hosts, the adapter's best one first; most adapters of a pool at rest are never asked for it."""
        order = self._orders.get(adapter)
        if order is None:
            order = self._orders[adapter] = self._ranks.of(adapter)
        return order

    def _there(self, adapter: str, held: Collection[str]) -> set[int]:
        """Where the plan has it or a pod offers it: a plan that was lost, or is read late, must not take that away."""
        return {self._index[name] for name in held if name in self._index} | self._offered.get(adapter, set())

    def keep(self, adapter: str, held: Collection[str]) -> None:
        """Keep what is there: the best copies, and others as long as they are needed."""
        there = self._there(adapter, held)
        order = self._order(adapter) if len(there) > self._copies else sorted(there)
        staying = [h for h in order if h in there and self._hosts[h].stays and self._load[h] < self._room]
        due = self._due[adapter] = set(staying[: self._copies])
        self._places[adapter] = set()
        for host in due:
            self._due_load[host] += 1
            self._put(adapter, host)
        loaded = sum(adapter in self._hosts[h].loaded for h in due)
        serving = sum(self._hosts[h].serves for h in due)
        others = [h for h in order if h in there and h not in due and (not self._hosts[h].stays or h in staying)]
        for host in sorted(others, key=lambda h: adapter not in self._hosts[h].loaded):
            known = self._hosts[host]
            offers = adapter in known.loaded
            if (offers and loaded < max(1, self._copies)) or (known.serves and serving < self._serving):
                loaded += offers
                serving += known.serves
                self._put(adapter, host)

    def serving_copies(self, adapter: str) -> int:
        """How many pods serve it."""
        return sum(self._hosts[h].serves and adapter in self._hosts[h].loaded for h in self._places[adapter])

    def fill(self, adapter: str) -> None:
        """Add the copies that are missing."""
        due, places = self._due[adapter], self._places[adapter]
        for host in self._order(adapter) if len(due) < self._copies else ():
            if len(due) >= self._copies:
                break
            if self._hosts[host].stays and host not in due and self._due_load[host] < self._most_due:
                self._add_due(adapter, host)
        needed = min(1, self._serving) if self.rolling else self._serving
        serving = sum(self._hosts[h].serves for h in places)
        if serving >= needed:
            return
        for host in sorted(self._order(adapter), key=lambda h: not self._hosts[h].stays):
            if serving >= needed:
                break
            if self._hosts[host].serves and host not in places and self._load[host] < self._room:
                self._put(adapter, host)
                serving += 1

    def make_room(self, adapters: Sequence[str]) -> None:
        """For those that lack a copy because the only pods with room have them: others move there in their favour.

        That happens with the last places of a pool, and never to an adapter with one copy.
        """
        for adapter in adapters:
            places = self._places[adapter]
            if len(places) >= self._copies or not any(self._load[h] < self._room for h in places):
                continue
            found = next((move for other in adapters if (move := self._move_for(places, other))), None)
            if found:
                other, full, free = found
                self._places[other].remove(full)
                self._load[full] -= 1
                self._put(other, free)
                self._put(adapter, full)

    def _move_for(self, places: set[int], other: str) -> tuple[str, int, int] | None:
        """(other, from a full pod that is not among the places, to one of the places that has room), if it may move."""
        theirs = self._places[other]
        free = next((h for h in sorted(places - theirs) if self._load[h] < self._room), None)
        if free is None or len(theirs) < 2:
            return None
        offering = {h for h in theirs if other in self._hosts[h].loaded}
        full = (h for h in sorted(theirs - places) if self._hosts[h].stays and not (offering and offering <= {h}))
        return next(((other, h, free) for h in full), None)

    def balance(self, adapter: str) -> None:
        """One copy to a better pod that is new and has much less to hold; the worse one goes once that one serves."""
        due, best = self._due[adapter], self._order(adapter)[: self._copies]
        if len(due) < self._copies or not due <= self._places[adapter]:
            return
        worse = [h for h in self._order(adapter) if h in due and h not in best]
        better = [h for h in best if self._hosts[h].fresh and h not in due and self._due_load[h] < self._most_due]
        if not worse or not better or self._due_load[worse[-1]] - self._due_load[better[0]] <= self._uneven:
            return
        if self._add_due(adapter, better[0]):
            due.remove(worse[-1])
            self._due_load[worse[-1]] -= 1

    def keep_grown(self, adapter: str, copies: int, held: Collection[str]) -> None:
        """Keep copies until so many pods offer it, as far as there is room.

        Which of its copies are those that are to stay changes as it grows, so that the others may be older than
        anybody's growth: all of them are kept before anybody grows into the room.
        """
        places, there = self._places[adapter], self._there(adapter, held)
        serving = sum(self._hosts[h].serves for h in places)
        offering = sum(adapter in self._hosts[h].loaded for h in places)
        free = [h for h in self._order(adapter) if h in there and h not in places and self._load[h] < self._room]
        for host in sorted(free, key=lambda h: adapter not in self._hosts[h].loaded):
            known = self._hosts[host]
            offers = adapter in known.loaded
            if (offers and offering < copies) or serving < copies:
                self._put(adapter, host)
                serving += known.serves
                offering += offers

    def grow(self, adapter: str, copies: int) -> None:
        """Add copies until so many pods are to offer it, as far as there is room."""
        places = self._places[adapter]
        serving = sum(self._hosts[h].serves for h in places)
        for host in self._order(adapter):
            known = self._hosts[host]
            if (
                serving < copies
                and host not in places
                and known.stays
                and known.serves
                and self._load[host] < self._room
            ):
                self._put(adapter, host)
                serving += 1

    def keep_idle(self, adapter: str, held: Collection[str]) -> None:
        """Keep what is there, as far as there is room."""
        self._places[adapter] = set()
        for host in sorted(self._there(adapter, held)):
            if self._load[host] < self._room:
                self._put(adapter, host)

    def result(self) -> dict[str, tuple[str, ...]]:
        """The names of the pods by adapter."""
        return {adapter: self._named(places) for adapter, places in self._places.items()}

    def _named(self, places: Iterable[int]) -> tuple[str, ...]:
        return tuple(self._hosts[h].name for h in sorted(places))

    def _add_due(self, adapter: str, host: int) -> bool:
        """Make a copy one that is to stay; False: the pod has no room for it."""
        if host not in self._places[adapter]:
            if self._load[host] >= self._room:
                return False
            self._put(adapter, host)
        self._due[adapter].add(host)
        self._due_load[host] += 1
        return True

    def _put(self, adapter: str, host: int) -> None:
        self._places[adapter].add(host)
        self._load[host] += 1
