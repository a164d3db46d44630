"""What gateways are told of keys, table by table, and the options that switch them on."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tuneyard.gateway.options import options
from tuneyard.gateway.tenancy import KeyTables
from tuneyard.planning.limits import Kind
from tuneyard.planning.priorities import Priority
from tuneyard.planning.tenants import Caller, Policy
from tuneyard.systems.envoy.tenancy import SHARDS, caller_text, gate_caller, shard_of


@pytest.mark.parametrize(
    ("caller", "text"),
    [
        (Caller("acme", None), "acme"),
        (Caller("acme", Policy(())), "acme ,, "),
        (Caller("acme", Policy(("chat", "team-*", "a/b"))), "acme ,chat,a/b, team-*"),
        (Caller("acme", Policy(("*",))), "acme ,, *"),
        (Caller("acme", Policy(("*",), limits={Kind.MONTH: 5})), "acme! ,, *"),
        (Caller("acme", Policy(("*",), Priority.LOW, {Kind.MONTH: 5})), "acme;l! ,, *"),
    ],
)
def test_what_a_table_says(caller: Caller, text: str) -> None:
    assert caller_text(caller) == text


def test_a_gate_may_call_its_model() -> None:
    assert gate_caller("chat") == caller_text(Caller("tuneyard/gate", Policy(("chat",))))


def test_a_change_is_one_table() -> None:
    tables, one, two = KeyTables(), "sk-0123456789abcdef", "sk-another-0123-bcdef0"
    assert shard_of(one) != shard_of(two)
    tables.set(one, "acme")
    tables.set(two, "acme")
    assert tables.changed() == {shard_of(one): {one: "acme"}, shard_of(two): {two: "acme"}}
    tables.set(one, "acme")
    tables.set("sk-never-there-0000000", None)
    assert tables.changed() == {}
    tables.set(one, "acme ,chat, ")
    assert tables.changed() == {shard_of(one): {one: "acme ,chat, "}}
    tables.set(one, None)
    assert tables.changed() == {shard_of(one): {}}, "an empty one is to be withdrawn"


@pytest.mark.parametrize(
    "digits", ["0123456789abcdef", "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"]
)
@pytest.mark.lasting
def test_keys_of_any_alphabet_come_to_all_tables_alike(digits: str) -> None:
    """By their last four characters, of which each combination is as likely."""
    chance, count = random.Random(0), Counter[str]()
    for _ in range(60 * SHARDS):
        count[shard_of(f"sk-012345678{''.join(chance.choices(digits, k=4))}")] += 1
    assert len(count) == SHARDS
    assert max(count.values()) < 3 * count.total() / SHARDS


@pytest.mark.parametrize(("mode", "keys"), [("", False), ("None", False), ("ApiKeys", True)])
def test_what_clients_need(mode: str, keys: bool) -> None:
    assert options({"TUNEYARD_AUTH": mode}).keys is keys


@pytest.mark.parametrize("mode", ["apikeys", "none", "JWT"])
def test_an_unknown_mode_is_no_open_door(mode: str) -> None:
    with pytest.raises(ValueError, match=f"TUNEYARD_AUTH is None, ApiKeys, .*, not {mode}"):
        options({"TUNEYARD_AUTH": mode})
