"""What a gateway's Envoy refuses before its memory ends: clients decide how many bodies of 8 MiB come at once.

Rules:
- a body costs almost three times its size while it is rewritten and kept for another try (22 MB of heap for 8 MiB,
  measured), so a few dozen large ones would have the kernel end Envoy, and with it everybody's streams;
- the heap may have HEAP_SHARE of the container's limit, from which what its request log may hold in memory is taken
  first (gateway/options.py); the rest is for the program itself, for the scripts' copies,
  which are not counted as heap, and for what arrives before the next look (measured: 80 such bodies at once, on
  loopback, stay below 800 MiB of 1 GiB);
- above STOP of that, new requests get 503 with retry-after, running ones go on. Those that have been let in already
  still grow: above ABORT, requests that are still arriving get the same 503, or are reset (HTTP/2);
- free memory is given back, otherwise the heap would stay large and everything refused.
"""

from __future__ import annotations

from typing import Any

from tuneyard.systems.envoy.documents import Json, extension

MAX_CONNECTIONS = 50_000
HEAP_SHARE = 0.5
SHRINK, STOP, ABORT = 0.6, 0.75, 0.95

_HEAP = "envoy.resource_monitors.fixed_heap"
_LARGE = 20
"""Streams of HTTP/2 that hold at least 2^20 bytes can be reset."""


def _action(name: str, threshold: Json, **more: Any) -> Json:
    return {"name": f"envoy.overload_actions.{name}", "triggers": [{"name": _HEAP, **threshold}], **more}


def _above(value: float) -> Json:
    return {"threshold": {"value": value}}


def overload_manager(memory: int) -> Json:
    """The overload manager for a container that may use so many bytes for itself; 0: nobody says how many."""
    connections = extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        max_active_downstream_connections=MAX_CONNECTIONS,
    )
    if not memory:
        return {"resource_monitors": [connections]}
    most = int(memory * HEAP_SHARE)
    heap = extension(_HEAP, "resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=most)
    shrinking = {
        "@type": "type.googleapis.com/envoy.config.overload.v3.ShrinkHeapConfig",
        "timer_interval": "1s",
        "max_unfreed_memory_bytes": most // 10,
    }
    return {
        # large bodies come within a second
        "refresh_interval": "0.1s",
        "resource_monitors": [connections, heap],
        "actions": [
            _action("shrink_heap", _above(SHRINK), typed_config=shrinking),
            _action("stop_accepting_requests", _above(STOP)),
            _action("reset_high_memory_stream", {"scaled": {"scaling_threshold": ABORT, "saturation_threshold": 1.0}}),
        ],
        "loadshed_points": [
            {
                "name": "envoy.load_shed_points.http1_server_abort_dispatch",
                "triggers": [{"name": _HEAP, **_above(ABORT)}],
            }
        ],
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": _LARGE},
    }
