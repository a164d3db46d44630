"""The dashboards, one file each."""

from __future__ import annotations

from monitoring.dashboards.cost import COST
from monitoring.dashboards.deployment import DEPLOYMENT
from monitoring.dashboards.gateways import GATEWAYS
from monitoring.dashboards.overview import OVERVIEW
from monitoring.dashboards.pools import POOLS

DASHBOARDS = (OVERVIEW, DEPLOYMENT, POOLS, GATEWAYS, COST)
