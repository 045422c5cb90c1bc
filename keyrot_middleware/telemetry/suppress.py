"""Whether the program asked for silence around a call."""

from __future__ import annotations

from opentelemetry import context
from opentelemetry.context import Context

__all__ = ["suppressed"]

# The API keeps this key private, yet every instrumentation has to read it; the plain one is older.
_KEY = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
_PLAIN_KEY = "suppress_instrumentation"


def suppressed(here: Context) -> bool:
    """Tell whether nothing may be emitted for a call made in this context."""
    return bool(here.get(_KEY) or here.get(_PLAIN_KEY))
