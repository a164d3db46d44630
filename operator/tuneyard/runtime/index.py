"""Which objects belong to which group, so that a change finds whom it concerns without looking at everything.

Not a copy of anything: it holds keys only, and what is true is asked of the informers. It also remembers the groups
that an object was in before, because who is affected by a change includes those it no longer names.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

_Member = TypeVar("_Member", bound=Hashable)
_Group = TypeVar("_Group", bound=Hashable)


class Index(Generic[_Member, _Group]):
    """Members and the groups each is in; safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._members: defaultdict[_Group, set[_Member]] = defaultdict(set)
        self._groups: dict[_Member, frozenset[_Group]] = {}

    def put(self, member: _Member, groups: Iterable[_Group]) -> frozenset[_Group]:
        """The member is in just these groups from now on (none: it is gone); returns old and new ones together."""
        new = frozenset(groups)
        with self._lock:
            old = self._groups.pop(member, frozenset())
            for group in old - new:
                self._members[group].discard(member)
                if not self._members[group]:
                    del self._members[group]
            for group in new - old:
                self._members[group].add(member)
            if new:
                self._groups[member] = new
            return old | new

    def of(self, *groups: _Group) -> set[_Member]:
        """The members of any of these groups."""
        with self._lock:
            return set().union(*(self._members.get(group, ()) for group in groups))
