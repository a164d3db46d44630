"""Who may call what: tenants, their keys (from Secrets) and their policies (from ConfigMaps).

Rules:
- the label tuneyard.dev/tenant says whose a Secret or a ConfigMap is; each entry of such a Secret is one key, such a
  ConfigMap is the tenant's policy;
- a key that two tenants have belongs to neither: who would be meant nobody can say;
- a tenant without a policy may call nothing. Of several policies the oldest counts;
- a policy that cannot be read leaves its last readable form in place: a typo is no outage. An entry that is no key is
  left out, the others of its Secret count; what has lost its label or got an impossible one belongs to nobody;
- every method that takes an object in returns the keys that may mean something else now, so that a change touches few;
- no key is in a repr, an exception or a problem: those name objects and entries.
No input or output here; the gateway process and `tuneyard tenants` use it alike.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from tuneyard.api.names import LABEL_TENANT
from tuneyard.planning.limits import Kind as Limit
from tuneyard.planning.limits import Limits, limits_of
from tuneyard.planning.priorities import PRIORITY, Priority, priority_of

Json = Mapping[str, Any]
Kind = Literal["secret", "policy"]
"""A Secret with keys, or a ConfigMap with a policy."""

SHORTEST_KEY, LONGEST_KEY = 16, 512
"""Characters. A shorter one can be guessed."""
LONGEST_POLICY = 16 * 1024
"""Characters of `models`: Envoy holds it once for each of the tenant's keys."""
NAME_MARK = "   "
"""Before a tenant's name where it stands among keys, for those who come with a token. No key holds a space."""
MODELS = "models"
"""The entry of a policy that lists models."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KEY = re.compile(rf"[!-~]{{{SHORTEST_KEY},{LONGEST_KEY}}}")
_PATTERN = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._:/*-]{0,252}")


class Problem(StrEnum):
    """What is wrong with tenants."""

    SHARED_KEY = "SharedKey"
    """Several tenants have one key: it is refused for all of them."""
    NO_POLICY = "NoPolicy"
    """A tenant has keys and no policy: it may call nothing."""
    NO_KEY = "NoKey"
    """A tenant has a policy and no key."""
    UNREADABLE_KEY = "UnreadableKey"
    """An entry of a Secret is no key."""
    UNREADABLE_POLICY = "UnreadablePolicy"
    """A policy cannot be read; its last readable form counts."""
    SECOND_POLICY = "SecondPolicy"
    """A tenant has several policies: the oldest counts."""
    INVALID_TENANT = "InvalidTenant"
    """The label is no name of a tenant."""


@dataclass(frozen=True, order=True)
class Found:
    """One thing that is wrong."""

    problem: Problem
    tenant: str
    """Empty where none can be named."""
    words: str


@dataclass(frozen=True)
class Policy:
    """What a tenant may do."""

    models: tuple[str, ...] = ()
    """Names of models; `*` stands for any characters."""
    priority: Priority = Priority.NORMAL
    limits: Limits = field(default_factory=dict)
    """How much it may ask for."""

    @property
    def exact(self) -> tuple[str, ...]:
        """Those that name one model."""
        return tuple(m for m in self.models if "*" not in m)

    @property
    def globs(self) -> tuple[str, ...]:
        """The others."""
        return tuple(m for m in self.models if "*" in m)

    def allows(self, model: str) -> bool:
        """Whether the model may be called. Gateways decide it by lua/tenants.lua."""
        return any(_fits(pattern, model) for pattern in self.models)


def _fits(pattern: str, model: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), model) is not None


@dataclass(frozen=True)
class Caller:
    """Whom a key stands for."""

    tenant: str
    policy: Policy | None
    """None: it may call nothing."""


@dataclass(frozen=True)
class _Keys:
    """A Secret of a tenant."""

    tenant: str
    keys: Mapping[str, str] = field(repr=False)
    """By entry."""


@dataclass(frozen=True)
class _Policies:
    """A ConfigMap of a tenant."""

    tenant: str
    created: str
    policy: Policy


def policy_of(data: Json) -> Policy:
    """The policy that a ConfigMap's data are; ValueError says what is wrong with them."""
    unknown = sorted(set(data) - {MODELS, PRIORITY, *Limit})
    if unknown:
        raise ValueError(
            f"unknown entries {', '.join(unknown)}: a policy has {MODELS}, and may have {PRIORITY}, {', '.join(Limit)}"
        )
    if not isinstance(data.get(MODELS), str):
        raise ValueError(f"it has no {MODELS}: list names of models, or * for all")
    text = data[MODELS]
    if len(text) > LONGEST_POLICY:
        raise ValueError(f"{MODELS} has more than {LONGEST_POLICY} characters: use names with *")
    models = [word for word in re.split(r"[\s,]+", text) if word]
    wrong = [word for word in models if not _PATTERN.fullmatch(word)]
    if wrong:
        raise ValueError(f"{wrong[0][:64]!r} is no name of a model, and no pattern of one")
    return Policy(tuple(dict.fromkeys(models)), priority_of(data), limits_of(data))


def tenant_of(raw: Json) -> str | None:
    """The tenant that an object's label names, None where there is no such name."""
    label = str((_metadata(raw).get("labels") or {}).get(LABEL_TENANT, ""))
    return label if _NAME.fullmatch(label) else None


def _metadata(raw: Json) -> Json:
    found: Json = raw.get("metadata") or {}
    return found


def _key_of(value: object) -> str | None:
    """The key that an entry of a Secret holds, without the space around it that files end in; None: it is none."""
    try:
        key = base64.b64decode(str(value), validate=True).decode("ascii").strip()
    except (binascii.Error, ValueError):
        return None
    return key if _KEY.fullmatch(key) else None


class Tenants:
    """All tenants, fed object by object."""

    def __init__(self, *, tokens: bool = False) -> None:
        """`tokens`: tenants may come without a key; then their names stand among the keys."""
        self._tokens = tokens
        self._secrets: dict[str, _Keys] = {}
        self._policies: dict[str, _Policies] = {}
        self._secrets_of: dict[str, set[str]] = {}
        self._policies_of: dict[str, set[str]] = {}
        self._owners: dict[str, set[tuple[str, str, str]]] = {}
        """By key: tenant, Secret and entry of each place where it stands."""
        self._shared: set[str] = set()
        """Keys of several tenants."""
        self._wrong: dict[tuple[Kind, str], list[Found]] = {}
        """What is wrong with single objects."""

    # -- changes -------------------------------------------------------------------------------------------------

    def put(self, kind: Kind, raw: Json) -> set[str]:
        """An object appeared or changed."""
        return self._put_secret(raw) if kind == "secret" else self._put_policy(raw)

    def remove(self, kind: Kind, name: str) -> set[str]:
        """An object is gone."""
        self._wrong.pop((kind, name), None)
        return self._set_secret(name, None) if kind == "secret" else self._set_policy(name, None)

    def forget_others(self, kind: Kind, listed: Iterable[str]) -> set[str]:
        """A list came: what is known of the kind and not listed is gone."""
        known = set(self._secrets if kind == "secret" else self._policies)
        known |= {name for one, name in self._wrong if one == kind}
        return set[str]().union(*(self.remove(kind, name) for name in sorted(known - set(listed))))

    def _put_secret(self, raw: Json) -> set[str]:
        name, tenant = str(_metadata(raw)["name"]), tenant_of(raw)
        self._wrong.pop(("secret", name), None)
        if tenant is None:
            self._wrong["secret", name] = [_invalid_tenant("Secret", name)]
            return self._set_secret(name, None)
        read = {str(entry): _key_of(value) for entry, value in (raw.get("data") or {}).items()}
        no_keys = sorted(entry for entry, key in read.items() if key is None)
        if no_keys:
            what = f"{SHORTEST_KEY} to {LONGEST_KEY} visible ASCII characters"
            words = f"Secret {name}: {', '.join(no_keys)} cannot be a key, which is {what}"
            self._wrong["secret", name] = [Found(Problem.UNREADABLE_KEY, tenant, words)]
        return self._set_secret(name, _Keys(tenant, {entry: key for entry, key in read.items() if key is not None}))

    def _put_policy(self, raw: Json) -> set[str]:
        name, tenant = str(_metadata(raw)["name"]), tenant_of(raw)
        self._wrong.pop(("policy", name), None)
        if tenant is None:
            self._wrong["policy", name] = [_invalid_tenant("ConfigMap", name)]
            return self._set_policy(name, None)
        try:
            policy = policy_of(raw.get("data") or {})
        except ValueError as error:
            before = self._policies.get(name)
            kept = before is not None and before.tenant == tenant
            words = f"ConfigMap {name}: {error}; " + (
                "its last readable form counts" if kept else "it has no readable form that could count instead"
            )
            self._wrong["policy", name] = [Found(Problem.UNREADABLE_POLICY, tenant, words)]
            return set() if kept else self._set_policy(name, None)
        return self._set_policy(name, _Policies(tenant, str(_metadata(raw).get("creationTimestamp", "")), policy))

    def _set_secret(self, name: str, after: _Keys | None) -> set[str]:
        before = self._secrets.pop(name, None)
        touched: set[str] = set()
        if before is not None:
            _discard(self._secrets_of, before.tenant, name)
            touched |= self._claim(before, name, gone=True)
        if after is not None:
            self._secrets[name] = after
            self._secrets_of.setdefault(after.tenant, set()).add(name)
            touched |= self._claim(after, name, gone=False)
        return touched

    def _claim(self, secret: _Keys, name: str, *, gone: bool) -> set[str]:
        for entry, key in secret.keys.items():
            owners = self._owners.setdefault(key, set())
            (owners.discard if gone else owners.add)((secret.tenant, name, entry))
            if not owners:
                del self._owners[key]
            (self._shared.add if len({o[0] for o in owners}) > 1 else self._shared.discard)(key)
        return set(secret.keys.values())

    def _set_policy(self, name: str, after: _Policies | None) -> set[str]:
        before = self._policies.pop(name, None)
        if before is not None:
            _discard(self._policies_of, before.tenant, name)
        if after is not None:
            self._policies[name] = after
            self._policies_of.setdefault(after.tenant, set()).add(name)
        if before == after:
            return set()
        return set[str]().union(*(self.keys_of(one.tenant) for one in (before, after) if one is not None))

    # -- answers -------------------------------------------------------------------------------------------------

    def caller(self, key: str) -> Caller | None:
        """Whom a key, or a marked name, stands for; None: for nobody."""
        if key.startswith(NAME_MARK):
            policy = self.policy(key.removeprefix(NAME_MARK))
            return Caller(key.removeprefix(NAME_MARK), policy) if policy is not None else None
        tenants = {tenant for tenant, _, _ in self._owners.get(key, ())}
        if len(tenants) != 1:
            return None
        (tenant,) = tenants
        return Caller(tenant, self.policy(tenant))

    def policy(self, tenant: str) -> Policy | None:
        """The policy that counts, None where there is none."""
        names = self._ordered(tenant)
        return self._policies[names[0]].policy if names else None

    def limits(self, tenant: str) -> Limits:
        """How much a tenant may ask for; empty where nothing limits it."""
        policy = self.policy(tenant)
        return policy.limits if policy is not None else {}

    def limited(self) -> dict[str, Limits]:
        """The tenants that have limits, and theirs."""
        found = {tenant: self.limits(tenant) for tenant in self._policies_of}
        return {tenant: limits for tenant, limits in found.items() if limits}

    def _ordered(self, tenant: str) -> list[str]:
        """The tenant's policies, the one that counts first."""
        found = self._policies_of.get(tenant, ())
        return sorted(found, key=lambda name: (self._policies[name].created, name))

    def holds(self, kind: Kind, name: str) -> bool:
        """Whether something that the object says counts, be it of an earlier form."""
        return name in (self._secrets if kind == "secret" else self._policies)

    def readable(self, kind: Kind, name: str) -> bool:
        """Whether all of the object's newest form counts."""
        return (kind, name) not in self._wrong

    def names(self) -> set[str]:
        """All tenants."""
        return self._secrets_of.keys() | self._policies_of.keys() | {f.tenant for f in self._all_wrong() if f.tenant}

    def keys_of(self, tenant: str) -> set[str]:
        """The keys in a tenant's Secrets, and its marked name where tenants come with tokens."""
        keys = {key for name in self._secrets_of.get(tenant, ()) for key in self._secrets[name].keys.values()}
        return keys | {NAME_MARK + tenant} if self._tokens else keys

    @property
    def keys(self) -> int:
        """How many keys stand for somebody."""
        return len(self._owners) - len(self._shared)

    def entries_of(self, tenant: str) -> list[tuple[str, str]]:
        """Secret and entry of each of a tenant's keys."""
        return sorted((name, entry) for name in self._secrets_of.get(tenant, ()) for entry in self._secrets[name].keys)

    def problems(self) -> list[Found]:
        """Everything that is wrong, in a stable order."""
        found = list(self._all_wrong())
        for key in self._shared:
            owners = sorted(self._owners[key])
            places = ", ".join(f"{tenant} (Secret {name}, {entry})" for tenant, name, entry in owners)
            words = f"one key is that of {places}: it is refused for all of them"
            found += [Found(Problem.SHARED_KEY, tenant, words) for tenant in sorted({o[0] for o in owners})]
        with_keys = {secret.tenant for secret in self._secrets.values() if secret.keys}
        for tenant in with_keys - self._policies_of.keys():
            words = f"no ConfigMap with the label {LABEL_TENANT}={tenant} lists models: it may call none"
            found.append(Found(Problem.NO_POLICY, tenant, words))
        for tenant in () if self._tokens else self._policies_of.keys() - with_keys:
            words = f"no Secret with the label {LABEL_TENANT}={tenant} holds a key"
            found.append(Found(Problem.NO_KEY, tenant, words))
        for tenant, names in self._policies_of.items():
            if len(names) > 1:
                first, *others = self._ordered(tenant)
                words = f"ConfigMap {first} counts, the oldest; not {', '.join(others)}"
                found.append(Found(Problem.SECOND_POLICY, tenant, words))
        return sorted(found)

    def _all_wrong(self) -> Iterable[Found]:
        return (one for found in self._wrong.values() for one in found)


def _invalid_tenant(kind: str, name: str) -> Found:
    words = f"{kind} {name}: the label {LABEL_TENANT} must be a DNS label (a-z, 0-9, -), at most 63 characters"
    return Found(Problem.INVALID_TENANT, "", words)


def _discard(index: dict[str, set[str]], key: str, name: str) -> None:
    index[key].discard(name)
    if not index[key]:
        del index[key]
