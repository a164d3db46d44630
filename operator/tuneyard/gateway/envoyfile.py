"""The file that a gateway pod's Envoy starts with, from the settings and the pod's environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tuneyard.gateway.options import options
from tuneyard.systems.envoy.accesslogs import stdout_log
from tuneyard.systems.envoy.bootstrap import NO_TENANTS, bootstrap
from tuneyard.systems.envoy.tenancy import tenant_script
from tuneyard.systems.envoy.tls import sources
from tuneyard.systems.kube.settings import ConfigurationError, load_settings


def write_bootstrap(config: Path, path: Path) -> int:
    """Write Envoy's bootstrap for this pod (JSON, which is YAML too); returns the exit status."""
    try:
        settings, given = load_settings(config), options(os.environ)
    except (ConfigurationError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    tokens = None if given.tokens is None else given.tokens.accepted
    document = bootstrap(
        given.name,
        ads_socket=str(given.ads_socket),
        port=given.port,
        admin_socket=str(given.admin_socket),
        holding_socket=str(given.holding_socket),
        mirror_socket=str(given.mirror_socket),
        hold_seconds=given.hold.seconds,
        listen=given.listen,
        memory=given.memory,
        traces=settings.tracing,
        requests=str(given.request_log),
        access_log=stdout_log(given.access_log),
        count_usage=given.usage,
        tenants=tenant_script(tokens, priorities=given.priorities is not None) if given.keys else NO_TENANTS,
        tls=given.tls,
        tokens=tokens,
        priorities=given.priorities is not None,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    for source, content in ({} if given.tls is None else sources(given.tls)).items():
        Path(source).write_text(json.dumps(content, indent=1))
    path.write_text(json.dumps(document, indent=1))
    return 0
