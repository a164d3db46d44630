"""A collector of OpenTelemetry's spans on loopback, as Envoy sends them: its protocol over gRPC."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from tests.contract.ports import free_port

_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


class Collector:
    """`async with Collector() as collector:`; then it takes spans."""

    def __init__(self) -> None:
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.spans: list[Any] = []
        self.services: set[str] = set()

    async def __aenter__(self) -> Self:
        method = grpc.unary_unary_rpc_method_handler(
            self._export,
            request_deserializer=trace_service_pb2.ExportTraceServiceRequest.FromString,
            response_serializer=trace_service_pb2.ExportTraceServiceResponse.SerializeToString,
        )
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"Export": method}),))
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(0)

    async def _export(self, request: Any, _context: object) -> Any:
        for resource in request.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            # the name that newer versions of the protocol call scope_spans
            self.spans += [span for scope in resource.instrumentation_library_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


def attributes(span: Any) -> dict[str, str]:
    """A span's attributes that are texts."""
    return {a.key: a.value.string_value for a in span.attributes if a.value.string_value}
