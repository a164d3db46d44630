"""What an alert is, and what several of them look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OF = "namespace, deployment"
DENIED = 'envoy_http_rbac_denied{envoy_http_conn_manager_prefix="gateway",envoy_rbac_http_prefix=""}'
"""Requests whose script failed; those with a prefix refuse clients at the port for gates."""


@dataclass(frozen=True)
class Alert:
    """One alert with its runbook."""

    name: str
    expr: str
    wait: str
    """How long it has to be the case; empty: once is enough."""
    severity: Literal["critical", "warning", "info"]
    summary: str
    means: str
    look: str
    do: str


def happened(counter: str, by: str, within: str) -> str:
    """A counter has risen, also from nothing: what never happened has no series, and its first rise no increase."""
    return f"sum by ({by}) (({counter} unless {counter} offset {within}) or increase({counter}[{within}])) > 0"
