"""`KEYROT_TRACING=otlp`: a tracer provider and OTLP/HTTP exporter, if the program has none."""

from __future__ import annotations

import threading
from typing import Any

from opentelemetry import trace

from ..core.model import CallInfo
from ..errors import MissingExtraError

__all__ = ["DeferredOtlpExport", "set_up_otlp_export"]


def set_up_otlp_export() -> bool:
    """Set a provider up; the standard OTEL_* variables say where spans go and what is sampled.

    Spans are flushed when the program ends. A provider that the program has set stays.

    Returns:
        Whether a provider was set.

    Raises:
        MissingExtraError: The extra `otlp` is not installed.
    """
    if _is_set():
        return False
    exporter, provider_type, batch = _sdk()
    provider = provider_type()
    provider.add_span_processor(batch(exporter()))
    trace.set_tracer_provider(provider)
    return True


class DeferredOtlpExport:
    """Set the provider up when the first call comes, unless the program has one by then.

    For a pool that is put in place before the program itself begins (`keyrot run`): OpenTelemetry
    takes the first provider that is set and refuses all others, so we must not be first.
    """

    def __init__(self) -> None:
        """Be ready to set it up.

        Raises:
            MissingExtraError: The extra `otlp` is not installed.
        """
        _sdk()
        self._lock = threading.Lock()
        self._done = False

    def observe(self, info: CallInfo) -> None:
        """Set it up once, and watch nothing."""
        if self._done:
            return
        with self._lock:
            done, self._done = self._done, True
            if not done:
                set_up_otlp_export()


def _sdk() -> tuple[Any, Any, Any]:
    """Import what the extra `otlp` brings: exporter, provider, processor."""
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


def _is_set() -> bool:
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
