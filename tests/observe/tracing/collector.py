"""A collector of spans as others have one: OTLP over HTTP, in protobuf."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Collected:
    """A span as it arrived."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    error: str | None
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[str]

    @property
    def traceparent(self) -> tuple[str, str]:
        """Trace and span."""
        return self.trace_id, self.span_id


@dataclass
class Collector:
    """Takes spans at its URL for as long as it is used by `with`."""

    spans: list[Collected] = field(default_factory=list)

    def __enter__(self) -> Collector:
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                spans.extend(_decoded(ExportTraceServiceRequest.FromString(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def named(self, name: str) -> list[Collected]:
        return [span for span in self.spans if span.name == name]

    def children(self, parent: Collected, name: str) -> list[Collected]:
        return [
            span for span in self.named(name) if (span.trace_id, span.parent_id) == (parent.trace_id, parent.span_id)
        ]


def _decoded(request: ExportTraceServiceRequest) -> list[Collected]:
    return [
        Collected(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            start=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            error=span.status.message if span.status.code == 2 else None,
            attributes=_values(span.attributes),
            resource=_values(of_process.resource.attributes),
            events=[event.name for event in span.events],
        )
        for of_process in request.resource_spans
        for scope in of_process.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}
