"""`KEYROT_TRACING=otlp`: a tracer provider and OTLP/HTTP exporter, if the program has none."""

from __future__ import annotations

from opentelemetry import trace

from ..errors import MissingExtraError

__all__ = ["export_spans"]


def export_spans() -> bool:
    """Set a provider up; the standard OTEL_* variables say where spans go and what is sampled.

    Spans are flushed when the program ends. A provider that the program has set stays.

    Returns:
        Whether a provider was set.

    Raises:
        MissingExtraError: The extra `otlp` is not installed.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
            OTLPSpanExporter,
        )
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as missing:
        raise MissingExtraError(
            wanted_by="KEYROT_TRACING=otlp", package=str(missing.name), extra="otlp"
        ) from None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return True
