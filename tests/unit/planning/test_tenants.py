"""Whose a key is and what its tenant may call, from Secrets and ConfigMaps in every state."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuneyard.api.names import LABEL_TENANT
from tuneyard.planning.limits import Kind as Limit
from tuneyard.planning.tenants import NAME_MARK, Caller, Kind, Policy, Problem, Tenants, policy_of

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"
ALL = Policy(("*",))
EXAMPLES = Path(__file__).parents[3] / "examples"


def secret(name: str, tenant: str, **keys: str) -> dict[str, Any]:
    data = {entry: base64.b64encode(key.encode()).decode() for entry, key in keys.items()}
    return {"metadata": {"name": name, "labels": {LABEL_TENANT: tenant}}, "data": data}


def policy(name: str, tenant: str, models: str = "*", *, created: str = "2026-01-01", **data: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {LABEL_TENANT: tenant}, "creationTimestamp": created}
    return {"metadata": metadata, "data": {"models": models, **data}}


def tenants_of(*objects: dict[str, Any]) -> Tenants:
    tenants = Tenants()
    for one in objects:
        tenants.put("policy" if "models" in one["data"] else "secret", one)
    return tenants


def kinds(tenants: Tenants) -> list[tuple[Problem, str]]:
    return [(found.problem, found.tenant) for found in tenants.problems()]


@pytest.mark.parametrize(
    ("text", "allowed", "refused"),
    [
        ("chat", ["chat"], ["chat2", "cha", "Chat", ""]),
        ("chat, support", ["chat", "support"], ["chat, support", "chat,support"]),
        ("team-*", ["team-", "team-a", "team-a/b"], ["team", "xteam-a"]),
        ("*", ["a", "a/b.c:d"], []),
        ("*-v2", ["a-v2", "-v2"], ["a-v2x", "-v", "v2"]),
        ("a*b*c", ["abc", "a1b2c", "abbcc"], ["ab", "acb", "abcd"]),
        ("a*a", ["aa", "aba"], ["a"]),
        ("\n chat ,\n\tteam-*\n", ["chat", "team-x"], ["team"]),
        ("", [], ["chat", ""]),
    ],
)
def test_what_a_policy_allows(text: str, allowed: list[str], refused: list[str]) -> None:
    read = policy_of({"models": text})
    assert [m for m in [*allowed, *refused] if read.allows(m)] == allowed


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "it has no models"),
        ({"model": "*"}, "unknown entries model"),
        ({"models": "*", "requestsPerHour": "1"}, "unknown entries requestsPerHour"),
        ({"models": 'a"b'}, "no name of a model"),
        ({"models": "-a"}, "no name of a model"),
        ({"models": "a" * 254}, "no name of a model"),
        ({"models": "a," * 9000}, "more than 16384"),
        ({"models": 7}, "it has no models"),
    ],
)
def test_what_is_no_policy(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy_of(data)


def test_a_key_stands_for_its_tenant() -> None:
    tenants = tenants_of(secret("acme-keys", "acme", old=KEY, new=OTHER + "\n"), policy("acme", "acme", "chat"))
    assert tenants.caller(KEY) == tenants.caller(OTHER) == Caller("acme", Policy(("chat",)))
    assert tenants.caller("sk-unknown-unknown") is None
    assert (tenants.names(), tenants.keys, kinds(tenants)) == ({"acme"}, 2, [])
    assert tenants.entries_of("acme") == [("acme-keys", "new"), ("acme-keys", "old")]


def test_a_key_of_two_tenants_belongs_to_neither() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY), policy("a", "acme"), policy("b", "beta"))
    assert tenants.put("secret", secret("b", "beta", k=KEY)) == {KEY}
    assert (tenants.caller(KEY), tenants.keys) == (None, 0)
    assert kinds(tenants) == [(Problem.SHARED_KEY, "acme"), (Problem.SHARED_KEY, "beta")]
    words = tenants.problems()[0].words
    assert "acme (Secret a, k), beta (Secret b, k)" in words and KEY not in words
    assert tenants.remove("secret", "b") == {KEY}
    assert tenants.caller(KEY) == Caller("acme", ALL)


def test_one_tenant_may_have_a_key_twice() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY), secret("b", "acme", x=KEY), policy("a", "acme"))
    assert (tenants.caller(KEY), kinds(tenants)) == (Caller("acme", ALL), [])
    tenants.remove("secret", "a")
    assert tenants.caller(KEY) == Caller("acme", ALL)


def test_without_a_policy_nothing_is_allowed() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY))
    assert (tenants.caller(KEY), kinds(tenants)) == (Caller("acme", None), [(Problem.NO_POLICY, "acme")])
    assert tenants.put("policy", policy("p", "acme")) == {KEY}
    assert tenants.caller(KEY) == Caller("acme", ALL)
    assert tenants.remove("policy", "p") == {KEY}
    assert tenants.caller(KEY) == Caller("acme", None)


def test_a_policy_that_cannot_be_read_keeps_its_last_form() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY), policy("p", "acme", "chat"))
    broken = policy("p", "acme", "chat", typo="1")
    assert tenants.put("policy", broken) == set()
    assert tenants.caller(KEY) == Caller("acme", Policy(("chat",)))
    assert kinds(tenants) == [(Problem.UNREADABLE_POLICY, "acme")]
    assert "its last readable form counts" in tenants.problems()[0].words
    # not where it was another tenant's
    assert tenants.put("policy", policy("p", "beta", "chat", typo="1")) == {KEY}
    assert tenants.caller(KEY) == Caller("acme", None)
    assert tenants_of(secret("a", "acme", k=KEY), broken).caller(KEY) == Caller("acme", None)


def test_the_oldest_policy_counts() -> None:
    tenants = tenants_of(
        secret("a", "acme", k=KEY), policy("b", "acme", "two", created="2026-02"), policy("z", "acme", "one")
    )
    assert tenants.policy("acme") == Policy(("one",))
    assert kinds(tenants) == [(Problem.SECOND_POLICY, "acme")]
    assert tenants.remove("policy", "z") == {KEY}
    assert tenants.policy("acme") == Policy(("two",))


@pytest.mark.parametrize("value", ["short", "with space in it....", "ünïcode-ünïcode-ünïcode", "", "x" * 513])
def test_what_is_no_key(value: str) -> None:
    tenants = tenants_of(secret("a", "acme", bad=value, good=KEY), policy("p", "acme"))
    assert tenants.caller(value) is None
    assert tenants.caller(KEY) is not None
    (found,) = tenants.problems()
    assert found.problem == Problem.UNREADABLE_KEY and "Secret a: bad" in found.words
    assert not value or value not in found.words


def test_an_impossible_tenant_has_nothing() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY), policy("p", "acme"))
    assert tenants.put("secret", secret("a", "Not_A_Label", k=KEY)) == {KEY}
    assert tenants.caller(KEY) is None
    assert (Problem.INVALID_TENANT, "") in kinds(tenants)
    tenants.remove("secret", "a")
    assert kinds(tenants) == [(Problem.NO_KEY, "acme")]


def test_what_a_list_does_not_have_is_gone() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY), secret("b", "beta", k=OTHER), policy("p", "acme", typo="1"))
    assert tenants.forget_others("secret", ["b"]) == {KEY}
    assert tenants.forget_others("policy", []) == set()
    assert (tenants.names(), kinds(tenants)) == ({"beta"}, [(Problem.NO_POLICY, "beta")])


def test_the_example_lets_nobody_in_as_it_stands() -> None:
    """It can be read, but for its key, which is too short to be one."""
    tenants = Tenants()
    for raw in yaml.safe_load_all((EXAMPLES / "tenants" / "tenants.yaml").read_text()):
        if raw["kind"] == "Secret":  # the API server makes the one of the other
            raw["data"] = {e: base64.b64encode(k.encode()).decode() for e, k in raw["stringData"].items()}
        tenants.put("secret" if raw["kind"] == "Secret" else "policy", raw)
    assert kinds(tenants) == [
        (Problem.NO_KEY, "acme"),
        (Problem.NO_KEY, "platform"),
        (Problem.UNREADABLE_KEY, "acme"),
    ]
    limits = {
        Limit.REQUESTS: 600,
        Limit.CONCURRENT: 20,
        Limit.TOKENS: 200_000,
        Limit.MONTH: 500_000_000,
    }
    assert tenants.policy("acme") == Policy(("acme-*", "shared-chat"), limits=limits)
    assert tenants.policy("platform") == ALL


def test_no_key_is_in_a_repr() -> None:
    tenants = tenants_of(secret("a", "acme", k=KEY), secret("b", "beta", k=KEY))
    assert KEY not in repr(tenants) + repr(tenants._secrets) + repr(tenants.problems())


NAMES, VALUES = st.sampled_from(["a", "b", "c"]), st.sampled_from([KEY, OTHER, "sk-aaaaaaaaaaaaaaaaaa"])
CHANGES = st.tuples(
    st.sampled_from(["secret", "policy"]),
    NAMES,
    st.sampled_from(["acme", "beta", "No Label"]),
    st.dictionaries(st.sampled_from(["k1", "k2"]), VALUES),
    st.sampled_from(["*", "chat", '"']),
    st.booleans(),
)


@pytest.mark.lasting
@given(st.lists(CHANGES, max_size=12))
def test_whatever_changes_it_says_whose_keys(changes: list[Any]) -> None:
    """What is told of each change is enough: whoever asks again for those keys alone knows all that one knows who asks
    for every key; and what is known does not depend on the way there, but for policies that cannot be read."""
    tenants, told = Tenants(), dict[str, Caller | None]()
    present: dict[tuple[Kind, str], dict[str, Any]] = {}
    for kind, name, tenant, keys, models, gone in changes:
        raw = secret(name, tenant, **keys) if kind == "secret" else policy(name, tenant, models)
        if gone:
            touched = tenants.remove(kind, name)
            present.pop((kind, name), None)
        else:
            touched = tenants.put(kind, raw)
            if tenants.readable(kind, name) or not tenants.holds(kind, name):
                present[kind, name] = raw
        told |= {key: tenants.caller(key) for key in touched}
    fresh = Tenants()
    for (kind, _), raw in present.items():
        fresh.put(kind, raw)
    for key in (KEY, OTHER, "sk-aaaaaaaaaaaaaaaaaa"):
        assert told.get(key) == tenants.caller(key) == fresh.caller(key)
    assert tenants.keys == fresh.keys and tenants.names() >= fresh.names()


def test_where_tenants_come_with_tokens_their_names_stand_among_the_keys() -> None:
    """And nobody needs a key. What changes is told by the same name."""
    tenants, name = Tenants(tokens=True), NAME_MARK + "acme"
    assert tenants.put("policy", policy("acme", "acme")) == {name}
    assert tenants.caller(name) == Caller("acme", ALL)
    assert kinds(tenants) == []
    assert tenants.put("secret", secret("keys", "acme", a=KEY)) == {KEY}
    assert tenants.put("policy", policy("acme", "acme", "chat")) == {KEY, name}
    assert tenants.keys == 1
    assert tenants.remove("policy", "acme") == {KEY, name}
    assert tenants.caller(name) is None
    assert kinds(tenants) == [(Problem.NO_POLICY, "acme")]
    # no key of a Secret can be a name
    assert tenants.put("secret", secret("keys", "acme", a="   somebody-else-0123")) == {KEY, "somebody-else-0123"}


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "", " 5", "5 ", "many", "1" * 16, "٣"])
def test_a_limit_is_a_positive_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match=r"tokensPerMonth is .*: a positive whole number"):
        policy_of({"models": "*", "tokensPerMonth": text})


def test_limits_follow_the_policy_and_one_that_cannot_be_read_leaves_the_last() -> None:
    tenants = tenants_of(secret("keys", "acme", a=KEY), policy("p", "acme"), policy("q", "beta"))
    assert tenants.limited() == {}
    assert tenants.put("policy", policy("p", "acme", requestsPerMinute="60", tokensPerMinute="1000")) == {KEY}
    limits = {Limit.REQUESTS: 60, Limit.TOKENS: 1000}
    assert tenants.limited() == {"acme": limits}
    assert tenants.caller(KEY) == Caller("acme", Policy(("*",), limits=limits))
    assert tenants.put("policy", policy("p", "acme", requestsPerMinute="none")) == set()
    assert tenants.limits("acme") == limits
    assert "requestsPerMinute is 'none'" in next(f.words for f in tenants.problems() if f.tenant == "acme")
    assert tenants.put("policy", policy("p", "acme")) == {KEY}
    assert tenants.limits("acme") == tenants.limits("nobody") == {}
