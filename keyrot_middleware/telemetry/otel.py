"""Spans: one for the call unless somebody above has one, and one for each attempt inside it.

Nothing is held current while the caller's code runs. The context of the call is captured when
it starts, every span is started with an explicit parent, and an attempt is the current span only
between `attach` and `detach`, around the SDK's own code.
"""

from __future__ import annotations

from opentelemetry import context, trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Tracer,
    TracerProvider,
)

from .._version import __version__
from ..core.model import CallInfo
from . import names
from .base import Watch
from .calltrace import CallTrace
from .provider import CurrentProvider
from .suppress import suppressed

__all__ = ["OtelObserver"]

REFRESH = "refresh secrets"
"""Name of the span of a look-up that no call waited for, and that found something new."""


class OtelObserver:
    """Trace calls, as long as the program has a tracer provider."""

    def __init__(
        self,
        pool_name: str,
        tracer_provider: TracerProvider | None = None,
        *,
        call_spans: bool = True,
    ) -> None:
        """Trace calls of a pool.

        Args:
            pool_name: Seen as `keyrot.pool.name`.
            tracer_provider: None: the global one, whenever it is set.
            call_spans: A span for each call; False: spans for its attempts alone.
        """
        self._pool = pool_name
        self._call_spans = call_spans
        get = trace.get_tracer_provider if tracer_provider is None else lambda: tracer_provider
        self._tracer = CurrentProvider(get, _tracer_of)

    def start(self, info: CallInfo) -> Watch | None:
        """Trace a call, unless nobody records or instrumentation is suppressed."""
        tracer = self._tracer()
        if tracer is None:
            return None
        here = context.get_current()
        if suppressed(here):
            return None
        return CallTrace(tracer, here, info, self._pool, own=self._call_spans)

    def replaced(self, key_id: str) -> None:
        """Record that a key has a new value while no call waits for it: a span of its own."""
        tracer = self._tracer()
        if tracer is None:
            return
        about = {names.POOL: self._pool, names.KEY_ID: key_id}
        with tracer.start_as_current_span(REFRESH, Context(), attributes=about) as span:
            span.add_event(names.EVENT_REPLACED, {names.KEY_ID: key_id})


def _tracer_of(provider: TracerProvider) -> Tracer | None:
    """Give our tracer; None where spans would go nowhere."""
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    tracer = provider.get_tracer(names.INSTRUMENTATION, __version__)
    return None if isinstance(tracer, NoOpTracer) else tracer
