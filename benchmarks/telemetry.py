"""What telemetry costs: who records spans during a turn, and a call of which nobody is told."""

from __future__ import annotations

import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, set_span_in_context

from keyrot_middleware.core.model import CallInfo
from keyrot_middleware.drive.guard import fault
from keyrot_middleware.telemetry.base import Observer, watch
from keyrot_middleware.telemetry.logs import LogObserver
from keyrot_middleware.telemetry.metrics import MetricsObserver
from keyrot_middleware.telemetry.otel import OtelObserver

__all__ = ["traced", "two_bare_spans", "untraced", "without_sdk"]

INFO = CallInfo("gemini-2.5-flash", "generateContent", 100, host="127.0.0.1:8080")
NUMBER = 500
"""Calls in a row: what they record has room in the batch processor's queue."""
REPEAT = 50


class _Nowhere(SpanExporter):
    """Drop the spans, as an exporter does when it has sent them."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


_PROVIDER = TracerProvider()
_PROVIDER.add_span_processor(BatchSpanProcessor(_Nowhere()))


@contextmanager
def untraced() -> Iterator[None]:
    """Let the program have no SDK, as most have."""
    with _use(None):
        yield


@contextmanager
def traced() -> Iterator[None]:
    """Record spans with the SDK's batch processor."""
    with _use(_PROVIDER):
        yield


@contextmanager
def _use(provider: Any) -> Iterator[None]:
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    try:
        yield
    finally:
        trace._TRACER_PROVIDER = before


def without_sdk() -> float:
    """Time what is asked of telemetry for a call while no provider is set; microseconds."""
    observers: tuple[Observer, ...] = (
        OtelObserver("default"),
        LogObserver("default"),
        MetricsObserver("default"),
    )
    with untraced():
        assert watch(observers, INFO, fault) is None, "somebody watches"
        return _fastest(lambda: watch(observers, INFO, fault))


def two_bare_spans() -> float:
    """Time a span and a child of it, without a name of ours or an attribute; microseconds."""
    tracer = _PROVIDER.get_tracer("benchmarks")

    def spans() -> None:
        call = tracer.start_span("call", kind=SpanKind.CLIENT)
        attempt = tracer.start_span("attempt", set_span_in_context(call))
        attempt.end()
        call.end()

    return _fastest(spans)


def _fastest(what: Any) -> float:
    flush = _PROVIDER.force_flush
    return min(timeit.repeat(what, flush, number=NUMBER, repeat=REPEAT)) / NUMBER * 1e6
