"""What this gateway routes now, for Prometheus: weight and pods of each revision, and what nobody may serve.

Rules: the text of a model is made when its routes change and not when it is read; a request costs nothing; a model that
is not routed any more has no series. The operator tells the same of all gateways, as it last wrote it: these are right
also while no operator runs, and show a gateway that is behind.
"""

from __future__ import annotations

from collections.abc import Iterator

from tuneyard.planning.routes import ModelRoutes

WEIGHT = "tuneyard_gateway_revision_weight"
ENDPOINTS = "tuneyard_gateway_revision_endpoints"
UNSERVED = "tuneyard_gateway_unserved_percent"
_HELP = {
    WEIGHT: "Percent of a deployment's requests that this gateway gives a revision.",
    ENDPOINTS: "Pods that this gateway may send them to.",
    UNSERVED: "Percent of a deployment's requests that this gateway has nobody for.",
}


class RouteMetrics:
    """One instance per process."""

    def __init__(self) -> None:
        self._lines: dict[str, tuple[str, dict[str, str]]] = {}
        """By deployment: under which model it is routed, its lines by metric."""
        self._deployment: dict[str, str] = {}
        """By model."""

    def routed(self, model: str, routes: ModelRoutes | None) -> None:
        """A model is routed like this from now on, None: not any more."""
        before = self._deployment.pop(model, None)
        if before is not None and before in self._lines and self._lines[before][0] == model:
            del self._lines[before]
        if routes is None:
            return
        of = f'namespace="{routes.namespace}",deployment="{routes.deployment}"'
        # by deployment: one that changes its model's name is routed under two for a while, and a series may come once
        self._deployment[model] = of
        self._lines[of] = (
            model,
            {
                WEIGHT: "".join(f'{WEIGHT}{{{of},revision="{r.name}"}} {r.weight}\n' for r in routes.revisions),
                ENDPOINTS: "".join(
                    f'{ENDPOINTS}{{{of},revision="{r.name}"}} {len(r.endpoints)}\n' for r in routes.revisions
                ),
                UNSERVED: f"{UNSERVED}{{{of}}} {routes.unserved}\n",
            },
        )

    def page(self) -> Iterator[str]:
        """All series as Prometheus reads them."""
        for metric, words in _HELP.items():
            yield f"# HELP {metric} {words}\n# TYPE {metric} gauge\n"
            yield from (lines[metric] for _, lines in self._lines.values())
