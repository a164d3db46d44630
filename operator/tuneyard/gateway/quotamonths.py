"""What tenants have used in a month, where it outlives all gateways: one ConfigMap of the gateways' own namespace.

Rules:
- an entry per tenant, "2026-11 1234": the owner writes it, once a minute at most and only where it has changed. A fleet
  that ends all at once forgets what came after that;
- the chart makes the ConfigMap, empty, and gateways may change this one and no other: nothing that says who may do what
  is in it. The files of usage could not do it: they end with their pods;
- while it cannot be read or written, gateways go on with what they know, and try again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tuneyard.planning.limits import month_number, month_text
from tuneyard.systems.kube.client import MERGE, Api, ApiError

NAME = "tuneyard-tenant-months"
EVERY = 60.0

_log = logging.getLogger(__name__)


class Months:
    """The ConfigMap. Blocks: for threads."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api, self._path = api, f"/api/v1/namespaces/{namespace}/configmaps/{NAME}"

    def read(self) -> dict[str, tuple[int, int]] | None:
        """By tenant: month and tokens; None where it cannot be read."""
        try:
            data = self._api.request("GET", self._path).get("data") or {}
        except (ApiError, OSError) as error:
            _log.warning("what tenants have used this month cannot be read from ConfigMap %s: %s", NAME, error)
            return None
        found = {}
        for tenant, text in data.items():
            month, _, tokens = str(text).partition(" ")
            try:
                found[str(tenant)] = month_number(month), int(tokens)
            except ValueError:
                _log.error("ConfigMap %s: the entry of %s is none and is left aside", NAME, tenant)
        return found

    def write(self, totals: Mapping[str, tuple[int, int]]) -> bool:
        """Set these entries; returns whether they are written."""
        data = {tenant: f"{month_text(month)} {tokens}" for tenant, (month, tokens) in totals.items()}
        try:
            self._api.request("PATCH", self._path, body={"data": data}, content_type=MERGE)
        except (ApiError, OSError) as error:
            _log.warning("what tenants have used this month cannot be written to ConfigMap %s: %s", NAME, error)
            return False
        return True
