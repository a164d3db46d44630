"""The load reports of Envoy (LRS): how many requests each cluster got, and how many are under way.

What Envoy 1.40 does, as seen:
- it names all clusters in every report, one without numbers when none of its requests began or is under way;
- counts are of attempts, whatever became of them, summed over the endpoints that the cluster has at that moment: what
  an endpoint was sent in the last interval before it goes is not told;
- of a cluster that is new, what is sent before its first interval begins is not counted (up to INTERVAL), but what is
  still under way then is told;
- after a connection ends it waits 5 s before the next one; what it counted meanwhile comes with the first report.

It costs requests nothing: hosts count anyway, and a report walks the clusters once, on Envoy's main thread. Its admin
page of statistics, which knows the same, renders every statistic of every cluster for that.

All methods belong to the event loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import grpc
from envoy.service.load_stats.v3 import lrs_pb2, lrs_pb2_grpc

INTERVAL = 1.0
"""Seconds between two reports."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """What a cluster did in one interval."""

    begun: int
    under_way: int
    """At the end of the interval."""


class LoadReports:
    """Hears Envoy's reports; of several Envoys, the one that connected last counts."""

    def __init__(self, begin: Callable[[], None], reported: Callable[[Mapping[str, Load]], None]) -> None:
        """`begin`: nothing is known of what went on before; `reported`: the loads of the last interval, by cluster."""
        self._begin = begin
        self._reported = reported
        self._streams_seen = 0

    def join(self, server: grpc.aio.Server) -> None:
        """Make this a service of the server."""
        lrs_pb2_grpc.add_LoadReportingServiceServicer_to_server(_Servicer(self.serve), server)

    async def serve(
        self, requests: AsyncIterator[lrs_pb2.LoadStatsRequest]
    ) -> AsyncIterator[lrs_pb2.LoadStatsResponse]:
        """One stream, until Envoy ends it. The first request says who asks; it is answered by what is wanted."""
        await anext(requests)
        self._streams_seen += 1
        number = self._streams_seen
        self._begin()
        _log.info("Envoy tells its loads (stream %d)", number)
        wanted = lrs_pb2.LoadStatsResponse(send_all_clusters=True)
        wanted.load_reporting_interval.FromMilliseconds(round(INTERVAL * 1000))
        yield wanted
        async for request in requests:
            if number == self._streams_seen:
                self._reported(loads_of(request))


def loads_of(request: lrs_pb2.LoadStatsRequest) -> dict[str, Load]:
    """The loads that a report tells of, by cluster; one that is missing has none."""
    found = {}
    for cluster in request.cluster_stats:
        parts = cluster.upstream_locality_stats
        load = Load(sum(p.total_issued_requests for p in parts), sum(p.total_requests_in_progress for p in parts))
        if load.begun or load.under_way:
            found[cluster.cluster_name] = load
    return found


class _Servicer(lrs_pb2_grpc.LoadReportingServiceServicer):  # type: ignore[misc]
    """Names the method as gRPC does."""

    def __init__(self, serve: Callable[..., AsyncIterator[lrs_pb2.LoadStatsResponse]]) -> None:
        self._serve = serve

    async def StreamLoadStats(  # noqa: N802
        self, request_iterator: AsyncIterator[lrs_pb2.LoadStatsRequest], _context: object
    ) -> AsyncIterator[lrs_pb2.LoadStatsResponse]:
        """Envoy's stream."""
        async for response in self._serve(request_iterator):
            yield response
