"""Which provider the program has set, asked for each call: it may be set after install()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from opentelemetry import context
from opentelemetry.context import Context

__all__ = [
    "CurrentProvider",
    "suppressed",
]

# Whether the program asked for silence around a call -------------------------------------------


# The API keeps this key private, yet every instrumentation has to read it; the plain one is older.
_KEY = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
_PLAIN_KEY = "suppress_instrumentation"


def suppressed(here: Context) -> bool:
    """Tell whether nothing may be emitted for a call made in this context."""
    return bool(here.get(_KEY) or here.get(_PLAIN_KEY))


Made = TypeVar("Made")


class CurrentProvider(Generic[Made]):
    """What was made of the current provider; made anew when another one is set."""

    __slots__ = ("_get", "_made", "_make")

    def __init__(self, get: Callable[[], Any], make: Callable[[Any], Made | None]) -> None:
        """Make nothing yet.

        Args:
            get: Returns the provider: OpenTelemetry's `get_tracer_provider`, say.
            make: Makes it; None where the provider records nothing.
        """
        self._get = get
        self._make = make
        self._made: tuple[object, Made | None] = (self, None)  # of no provider so far

    def __call__(self) -> Made | None:
        """Return it."""
        provider = self._get()
        seen, made = self._made
        if provider is not seen:
            made = self._make(provider)
            self._made = provider, made
        return made
