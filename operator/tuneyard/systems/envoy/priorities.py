"""How Envoy learns whose requests a full pool refuses.

Rules:
- the table of keys says a tenant's priority (caller_text), `extract` puts it into a header, and `rewrite`, which knows
  the pool that was chosen, asks the gateway process a few times a second (lua/priority.lua);
- Envoy's own circuit breakers could do it for a cluster, which is one revision of one adapter and not a pool; they
  count each priority apart, so that a pool full of low ones would not be full for others; and there are two.
Where priorities are not in use the header is never set, and nobody asks.
"""

from __future__ import annotations

from collections.abc import Iterable

from tuneyard.planning.priorities import Priority
from tuneyard.systems.envoy.documents import script

FULL_PATH = "/full"
"""Where the gateway process says on its Unix socket which pools are full for whom."""
_FLAGS = {Priority.HIGH: ";h", Priority.NORMAL: "", Priority.LOW: ";l"}


def flag(priority: Priority) -> str:
    """How a table of keys says it, behind the tenant's name."""
    return _FLAGS[priority]


def full_text(refused: Iterable[tuple[str, Priority]]) -> str:
    """What the script is told: a line for each pool and priority that is refused there."""
    return "\n" + "".join(f"{pool} {priority}\n" for pool, priority in refused)


def priority_switch(used: bool) -> str:
    """What stands before `extract`."""
    return f"local PRIORITIES = {str(used).lower()}\n"


def priority_script(used: bool) -> str:
    """What stands before `rewrite`."""
    return priority_switch(used) + (script("priority") if used else "local is_full\n")
