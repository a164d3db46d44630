"""What `tuneyard tenants` shows: who may call what, from the objects that gateways read. Pure; no key is in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from tuneyard.api.base import ApiModel
from tuneyard.planning.tenants import Tenants

Json = Mapping[str, Any]


class KeyView(ApiModel):
    """One key of a tenant."""

    secret: str
    entry: str
    age_seconds: int | None = None
    """Since whoever owns the entry last wrote it; of one that nobody owns, since its Secret was made."""


class TenantView(ApiModel):
    """One tenant."""

    name: str
    keys: list[KeyView]
    models: list[str] | None = None
    """Names and patterns; None where it has no policy."""
    priority: str | None = None
    """Of its requests where pools are full; None where it has no policy."""
    limits: dict[str, int] = {}
    """By their names in the policy."""
    problems: list[str] = []


class TenantsView(ApiModel):
    """All of them."""

    namespace: str
    tenants: list[TenantView]
    problems: list[str] = []
    """Of objects that name no tenant."""


def tenants_view(
    namespace: str, secrets: Iterable[Json], policies: Iterable[Json], now: datetime, *, tokens: bool = False
) -> TenantsView:
    """The tenants of a namespace, by name; `tokens`: none needs a key."""
    tenants, by_name = Tenants(tokens=tokens), dict[str, Json]()
    for secret in secrets:
        tenants.put("secret", secret)
        by_name[secret["metadata"]["name"]] = secret
    for policy in policies:
        tenants.put("policy", policy)
    problems = tenants.problems()

    def told(tenant: str) -> list[str]:
        return [f"{found.problem}: {found.words}" for found in problems if found.tenant == tenant]

    def view(name: str) -> TenantView:
        policy = tenants.policy(name)
        keys = [
            KeyView(secret=secret, entry=entry, age_seconds=_age(by_name[secret], entry, now))
            for secret, entry in tenants.entries_of(name)
        ]
        return TenantView(
            name=name,
            keys=keys,
            models=list(policy.models) if policy is not None else None,
            priority=policy.priority if policy is not None else None,
            limits={str(kind): limit for kind, limit in tenants.limits(name).items()},
            problems=told(name),
        )

    found = [view(name) for name in sorted(tenants.names())]
    return TenantsView(namespace=namespace, tenants=found, problems=told(""))


def _age(secret: Json, entry: str, now: datetime) -> int | None:
    metadata = secret["metadata"]
    written = [
        str(owner["time"])
        for owner in metadata.get("managedFields") or ()
        if f"f:{entry}" in (owner.get("fieldsV1") or {}).get("f:data", {}) and owner.get("time")
    ]
    text = max(written, default=metadata.get("creationTimestamp"))
    return max(0, int((now - datetime.fromisoformat(text)).total_seconds())) if text else None
