"""The program's OpenTelemetry: its provider, and its suppression."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from opentelemetry import context
from opentelemetry.context import Context
from opentelemetry.trace import format_trace_id, get_current_span

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
