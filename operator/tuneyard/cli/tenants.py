"""`tuneyard tenants`: who may call what, and what is wrong with it. Reads only, and shows no key."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.text import Text

from tuneyard.api import names
from tuneyard.api.names import LABEL_TENANT
from tuneyard.cli.output import answer
from tuneyard.cli.status import add_cluster_arguments
from tuneyard.cli.statusread import Cluster, explained, open_cluster, pages
from tuneyard.cli.statusrender import duration, table
from tuneyard.cli.tenantsview import TenantsView, TenantView, tenants_view
from tuneyard.planning.limits import Kind
from tuneyard.systems.kube.client import ApiError, Object

NAMESPACE = names.tenants_namespace("tuneyard-system")
_MOST_MODELS = 8
_UNITS = {
    Kind.REQUESTS: "requests/min",
    Kind.CONCURRENT: "at once",
    Kind.TOKENS: "tokens/min",
    Kind.MONTH: "tokens/month",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `tuneyard tenants`."""
    parser.add_argument("-n", "--namespace", default=NAMESPACE, help=f"of tenants (default {NAMESPACE})")
    parser.add_argument("--tokens", action="store_true", help="tenants may come with tokens: none needs a key")
    parser.add_argument("-o", "--output", choices=("json", "yaml"), help="for programs instead of people")
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Show the tenants; 1 where something is wrong with one. Raises UserError."""
    cluster = open_cluster(args.kubeconfig, args.context)
    secrets, policies = (_labelled(cluster, args.namespace, plural) for plural in ("secrets", "configmaps"))
    view = tenants_view(args.namespace, secrets, policies, datetime.now(UTC), tokens=args.tokens)
    answer(view, render, args.output)
    return 1 if view.problems or any(tenant.problems for tenant in view.tenants) else 0


def _labelled(cluster: Cluster, namespace: str, plural: str) -> list[Object]:
    try:
        path = f"/api/v1/namespaces/{namespace}/{plural}"
        return list(pages(cluster, path, {"labelSelector": LABEL_TENANT}))
    except ApiError as error:
        raise explained(error, f"the {plural} of {namespace}", cluster.api.host) from error


def render(view: TenantsView) -> RenderableType:
    """The tenants as a table for a terminal, and below it what is wrong."""
    if not view.tenants and not view.problems:
        return Text(f"no Secret or ConfigMap of {view.namespace} has the label {LABEL_TENANT}")
    limited = ["LIMITS"] if any(tenant.limits for tenant in view.tenants) else []
    rows = table("TENANT", "KEYS", "AGE", "MODELS", "PRIORITY", *limited, "PROBLEMS")
    for tenant in view.tenants:
        keys = "\n".join(f"{key.secret}/{key.entry}" for key in tenant.keys)
        ages = "\n".join(duration(key.age_seconds) for key in tenant.keys)
        wrong = Text(str(len(tenant.problems)), style="red") if tenant.problems else Text("-", style="dim")
        limits = [_limits(tenant)] if limited else []
        rows.add_row(tenant.name, keys or "-", ages or "-", _models(tenant), tenant.priority or "-", *limits, wrong)
    told = [(tenant.name, words) for tenant in view.tenants for words in tenant.problems]
    told += [("", words) for words in view.problems]
    return Group(rows, *(Text(f"{name}: {words}" if name else words, style="red") for name, words in told))


def _limits(tenant: TenantView) -> Text:
    if not tenant.limits:
        return Text("-", style="dim")
    return Text("\n".join(f"{tenant.limits[kind]} {words}" for kind, words in _UNITS.items() if kind in tenant.limits))


def _models(tenant: TenantView) -> Text:
    if not tenant.models:
        return Text("none", style="red")
    more = len(tenant.models) - _MOST_MODELS
    return Text("\n".join(tenant.models[:_MOST_MODELS]) + (f"\nand {more} more" if more > 0 else ""))
