"""Which objects belong to which group, so that a change finds whom it concerns without looking at everything.

Not a copy of anything: it holds keys only, and what is true is asked of the informers. It also remembers the groups
that an object was in before, because who is affected by a change includes those it no longer names.
Invariant: a group's members are one sorted tuple that is replaced and never changed, so readers need no lock.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Hashable, Iterable
from typing import Any, Generic, TypeVar

_Member = TypeVar("_Member", bound=tuple[Any, ...])
_Group = TypeVar("_Group", bound=Hashable)


class Index(Generic[_Member, _Group]):
    """Members and the groups each is in; safe to use from many threads."""

    def __init__(self) -> None:
        self._writing = threading.Lock()
        self._members: dict[_Group, tuple[_Member, ...]] = {}
        self._groups: dict[_Member, frozenset[_Group]] = {}

    def put(self, member: _Member, groups: Iterable[_Group]) -> frozenset[_Group]:
        """The member is in just these groups from now on (none: it is gone); returns old and new ones together."""
        new = frozenset(groups)
        with self._writing:
            old = self._groups.pop(member, frozenset())
            for group in old - new:
                left = tuple(m for m in self._members[group] if m != member)
                if left:
                    self._members[group] = left
                else:
                    del self._members[group]
            for group in new - old:
                members = list(self._members.get(group, ()))
                bisect.insort(members, member)
                self._members[group] = tuple(members)
            if new:
                self._groups[member] = new
            return old | new

    def of(self, *groups: _Group) -> tuple[_Member, ...]:
        """The members of any of these groups, sorted, each once."""
        found = [members for members in map(self._members.get, groups) if members]
        if len(found) < 2:
            return found[0] if found else ()
        return tuple(sorted(set().union(*found)))
