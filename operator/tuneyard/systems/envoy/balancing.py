"""Which revision a user gets, and which pod a request: Envoy's hashing, as far as a model asks for it.

Rules:
- both hash on their own: the route's list of weights by the user (`use_hash_policy`), the cluster by session or prefix
  (its own `hash_policy`, in place of the route's). So neither takes the other's place;
- Envoy takes the entry of the list in which (hash modulo the sum of weights) falls: the list has an entry for every
  run of places (planning/stickiness.py), and may name a cluster more than once;
- Maglev, not a ring: Envoy's ring has a fixed size, so that every pod has fewer entries of it when there is one more,
  and the keys of those move too (simulated, the fifth pod: 29 % of the keys instead of 20 %). Maglev's table moves 1/n
  and a little more, and shares keys evenly. TABLE places are 6 KB for 8 pods and some tenths of a millisecond to build,
  for every cluster that has it, whenever its pods change;
- bounded load: a pod that has more than BOUND percent of its share of the cluster's requests under way is passed over,
  in an order that follows from the key too. Only what this gateway has sent to this revision counts, and only once it
  has a connection;
- a retry asks another pod as it does otherwise; the key is still there then, since it is no header of ours.
What does not ask for it has the least of two choices, and no hash is computed.
"""

from __future__ import annotations

from tuneyard.api import names
from tuneyard.api.routing import Affinity
from tuneyard.systems.envoy.documents import Json, extension

TABLE = 16_381
"""A prime, as Maglev needs it."""
BOUND = 150
PREFIX_STATE = "tuneyard.prefix"
"""Where the script `rewrite` leaves what a prompt begins with (lua/prefix.lua)."""


def balanced(affinity: Affinity | None) -> Json:
    """How a cluster chooses among its pods."""
    if affinity is None:
        return extension("least_request", "load_balancing_policies.least_request.v3.LeastRequest", choice_count=2)
    by: Json = {"filter_state": {"key": PREFIX_STATE}} if affinity.header is None else _header(affinity.header)
    return extension(
        "maglev",
        "load_balancing_policies.maglev.v3.Maglev",
        table_size=TABLE,
        consistent_hashing_lb_config={"hash_balance_factor": BOUND, "hash_policy": [by]},
    )


def balancing_mark(affinity: Affinity | None) -> str:
    """How it chooses, at the end of a cluster's name; nothing for the usual way."""
    return "" if affinity is None else f"+{names.short_hash(affinity.header or '', length=4)}"


def contents_in(last: str) -> str:
    """The contents that are the last part of a cluster's name, without that mark."""
    return last.partition("+")[0]


def by_prefix(affinity: Affinity | None) -> bool:
    """Whether `rewrite` has to look at the prompt."""
    return affinity is not None and affinity.header is None


def from_users(header: str) -> Json:
    """Matches requests that say whose they are: an empty header would be one user more."""
    return {"name": header, "string_match": {"safe_regex": {"regex": ".+"}}}


def hashed_by(header: str) -> list[Json]:
    """A route's hash policy."""
    return [_header(header)]


def _header(name: str) -> Json:
    return {"header": {"header_name": name}}
