"""The program's OpenTelemetry: its provider, its suppression, and an export where it has none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import ProxyTracerProvider, format_trace_id, get_current_span

from ..core.model import CallInfo
from ..errors import MissingExtraError
from ..locks import Lock

# The API keeps this key private, yet every instrumentation has to read it; the plain one is older.
_KEY = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
_PLAIN_KEY = "suppress_instrumentation"


def is_suppressed(ctx: Context) -> bool:
    """Return whether instrumentation is suppressed for calls made in this context."""
    return bool(ctx.get(_KEY) or ctx.get(_PLAIN_KEY))


def current_trace_id() -> str:
    """Return the trace of the current span, 32 hexadecimal digits; empty if it is not sampled."""
    span = get_current_span().get_span_context()
    return format_trace_id(span.trace_id) if span.is_valid and span.trace_flags.sampled else ""


@contextmanager
def suppress_instrumentation() -> Iterator[None]:
    """Have no instrumentation trace the requests made inside: their URLs may hold secrets."""
    token = context.attach(context.set_value(_PLAIN_KEY, True, context.set_value(_KEY, True)))
    try:
        yield
    finally:
        context.detach(token)


T = TypeVar("T")
LOOK_S = 0.1
"""How often to ask whether there is a provider now: OpenTelemetry looks at the environment."""


class CurrentProvider(Generic[T]):
    """An object made from the current provider, which the program may set after install()."""

    __slots__ = ("_cached", "_create", "_get_provider", "_look_at")

    def __init__(self, get_provider: Callable[[], Any], create: Callable[[Any], T | None]) -> None:
        """Create nothing yet.

        Args:
            get_provider: Returns the provider, as OpenTelemetry's `get_tracer_provider` does.
            create: Creates the object; None if the provider records nothing.
        """
        self._get_provider = get_provider
        self._create = create
        self._cached: tuple[object, T | None] = (self, None)  # self: no provider seen yet
        self._look_at = 0.0

    def __call__(self) -> T | None:
        """Return the object; create it anew when another provider is set."""
        seen, created = self._cached
        if created is None and seen is not self:
            now = time.monotonic()
            if now < self._look_at:
                return None
            self._look_at = now + LOOK_S
        provider = self._get_provider()
        if provider is not seen:
            created = self._create(provider)
            self._cached = provider, created
        return created


class OtlpExport:
    """Sets a tracer provider up, unless the program has one; as an observer at the first call.

    The standard OTEL_* variables control endpoint and sampling. Spans are flushed when the program
    ends. OpenTelemetry accepts the first provider that is set and refuses all others, so under
    `keyrot run`, which begins before the program, ours must not come first.
    """

    def __init__(self) -> None:
        """Import what is needed.

        Raises:
            MissingExtraError: The extra `otlp` is not installed.
        """
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
        self._sdk = TracerProvider, BatchSpanProcessor, OTLPSpanExporter
        self._lock = Lock()

    def observe(self, info: CallInfo) -> None:
        """Set the provider up; the call is not observed."""
        if not _has_provider():
            self.set_up()

    def set_up(self) -> None:
        """Set the provider up, once."""
        with self._lock:
            if not _has_provider():
                make_provider, batch, exporter = self._sdk
                provider = make_provider()
                provider.add_span_processor(batch(exporter()))
                trace.set_tracer_provider(provider)


def _has_provider() -> bool:
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider)
