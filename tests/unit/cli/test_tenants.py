"""What `tuneyard tenants` shows, and that no key is in it."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from tuneyard.api.names import LABEL_TENANT
from tuneyard.cli.output import machine_readable
from tuneyard.cli.tenants import render
from tuneyard.cli.tenantsview import TenantsView, tenants_view

NOW = datetime(2026, 3, 11, 12, tzinfo=UTC)
KEYS = [f"sk-{number}-0123456789abcdef" for number in range(4)]


def labelled(name: str, tenant: str, data: dict[str, str], **owned: str) -> dict[str, Any]:
    fields = [{"fieldsV1": {"f:data": {f"f:{entry}": {}}}, "time": time} for entry, time in owned.items()]
    metadata = {"name": name, "labels": {LABEL_TENANT: tenant}, "creationTimestamp": "2026-03-01T12:00:00Z"}
    return {"metadata": {**metadata, "managedFields": fields}, "data": data}


def encoded(**keys: str) -> dict[str, str]:
    return {entry: base64.b64encode(key.encode()).decode() for entry, key in keys.items()}


def everything() -> TenantsView:
    secrets = [
        labelled("acme-keys", "acme", encoded(old=KEYS[0], new=KEYS[1]), new="2026-03-11T10:00:00Z"),
        labelled("beta-keys", "beta", encoded(key=KEYS[2], bad="short")),
        labelled("gamma-keys", "gamma", encoded(key=KEYS[3])),
        labelled("delta-keys", "delta", encoded(key=KEYS[3])),
        labelled("stray", "No Tenant", encoded(key=KEYS[0])),
    ]
    models = ",".join(f"m{number}" for number in range(10))
    policies = [labelled(n, n, {"models": m}) for n, m in (("acme", "chat,team-*"), ("delta", models), ("gamma", "*"))]
    return tenants_view("tuneyard-system", secrets, policies, NOW)


def shown(view: TenantsView) -> str:
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(render(view))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def test_a_table_of_tenants_and_what_is_wrong() -> None:
    words = shown(everything())
    assert [line.split() for line in words.splitlines()[:6]] == [
        ["TENANT", "KEYS", "AGE", "MODELS", "PRIORITY", "PROBLEMS"],
        ["acme", "acme-keys/new", "2h", "chat", "Normal", "-"],
        ["acme-keys/old", "10d", "team-*"],
        ["beta", "beta-keys/key", "10d", "none", "-", "2"],
        ["delta", "delta-keys/key", "10d", "m0", "Normal", "1"],
        ["m1"],
    ]
    assert "and 2 more" in words
    assert "beta: NoPolicy: no ConfigMap with the label tuneyard.dev/tenant=beta lists models" in words
    assert "beta: UnreadableKey: Secret beta-keys: bad cannot be a key" in words
    assert "gamma: SharedKey: one key is that of delta (Secret delta-keys, key), gamma" in words
    assert "InvalidTenant: Secret stray: the label" in words


def test_limits_are_shown_where_somebody_has_some() -> None:
    policies = [
        labelled("a", "acme", {"models": "*", "tokensPerMonth": "5000", "concurrentRequests": "8"}),
        labelled("b", "beta", {"models": "*", "requestsPerMinute": "60"}),
        labelled("c", "free", {"models": "*"}),
    ]
    view = tenants_view("tuneyard-system", [], policies, NOW)
    lines = [line.split() for line in shown(view).splitlines()[:5]]
    assert lines[0] == ["TENANT", "KEYS", "AGE", "MODELS", "PRIORITY", "LIMITS", "PROBLEMS"]
    assert lines[1:3] == [["acme", "-", "-", "*", "Normal", "8", "at", "once", "1"], ["5000", "tokens/month"]]
    assert lines[3:5] == [
        ["beta", "-", "-", "*", "Normal", "60", "requests/min", "1"],
        ["free", "-", "-", "*", "Normal", "-", "1"],
    ]
    assert '"tokensPerMonth": 5000' in machine_readable(view, "json")


def test_no_key_is_shown_in_any_form() -> None:
    view = everything()
    texts = shown(view) + machine_readable(view, "json") + machine_readable(view, "yaml") + repr(view)
    assert not [key for key in (*KEYS, "short", *encoded(**{k: k for k in KEYS}).values()) if key in texts]


def test_nothing_at_all() -> None:
    words = shown(tenants_view("tuneyard-system", [], [], NOW))
    assert words == "no Secret or ConfigMap of tuneyard-system has the label tuneyard.dev/tenant"
