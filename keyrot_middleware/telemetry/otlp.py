"""`KEYROT_TRACING=otlp`: a tracer provider with an OTLP/HTTP exporter, if the program has none."""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry import trace

from ..core.model import CallInfo
from ..errors import MissingExtraError

__all__ = ["DeferredOtlpExport", "set_up_otlp_export"]


def set_up_otlp_export() -> bool:
    """Set a provider up; the standard OTEL_* variables control endpoint and sampling.

    Spans are flushed when the program ends. A provider set by the program stays.

    Returns:
        Whether a provider was set.

    Raises:
        MissingExtraError: The extra `otlp` is not installed.
    """
    if _has_provider():
        return False
    exporter, provider_type, batch = _import_sdk()
    provider = provider_type()
    provider.add_span_processor(batch(exporter()))
    trace.set_tracer_provider(provider)
    return True


class DeferredOtlpExport:
    """Sets the provider up at the first call, unless the program has one by then.

    For `keyrot run`, which installs the pool before the program starts: OpenTelemetry accepts the
    first provider that is set and refuses all others, so ours must not come first.
    """

    def __init__(self) -> None:
        """Check that the provider can be set up.

        Raises:
            MissingExtraError: The extra `otlp` is not installed.
        """
        _import_sdk()
        self._lock = threading.Lock()
        self._done = False

    def observe(self, info: CallInfo) -> None:
        """Set the provider up once; the call is not observed."""
        if self._done:
            return
        with self._lock:
            if not self._done:
                self._done = True
                set_up_otlp_export()


def _import_sdk() -> tuple[Any, Any, Any]:
    """Import exporter, provider and processor, which the extra `otlp` installs."""
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
    return OTLPSpanExporter, TracerProvider, BatchSpanProcessor


def _has_provider() -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
