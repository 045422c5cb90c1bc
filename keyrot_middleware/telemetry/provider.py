"""Which provider the program has set, asked for each call: it may be set after install().

While none is set, the API's `get_tracer_provider()` and `get_meter_provider()` look into the
environment every time, which takes a microsecond: more than all the rest of a call that nobody
watches. So the variables behind them are asked whether anything has changed; the functions only
where it has, once at the beginning, and in a version of the API that has other variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from opentelemetry import metrics, trace

__all__ = ["METERS", "TRACERS", "Global", "InForce"]

Made = TypeVar("Made")


class Global(NamedTuple):
    """The API's provider of one kind."""

    holder: Any
    """The module that has it."""
    variable: str
    """None while none is set."""
    ask: Callable[[], Any]
    """The API's own way; loads one that the environment names."""


TRACERS = Global(trace, "_TRACER_PROVIDER", trace.get_tracer_provider)
METERS = Global(
    getattr(metrics, "_internal", metrics), "_METER_PROVIDER", metrics.get_meter_provider
)


class InForce(Generic[Made]):
    """What was made of the provider in force; made anew when another one is."""

    __slots__ = ("_given", "_global", "_made", "_make")

    def __init__(
        self, given: object | None, one: Global, make: Callable[[Any], Made | None]
    ) -> None:
        """Make nothing yet.

        Args:
            given: A provider, of which it is always made; None: the global one.
            one: Where that is.
            make: Makes it; None where the provider records nothing.
        """
        self._given = given
        self._global = one
        self._make = make
        self._made: tuple[object, Made | None] = (self, None)  # of no provider so far

    def __call__(self) -> Made | None:
        """Give it."""
        provider, (holder, variable, ask) = self._given, self._global
        if provider is None:
            try:
                provider = getattr(holder, variable)
            except AttributeError:
                provider = ask()
        seen, made = self._made
        if provider is not seen:
            made = self._make(self._given if self._given is not None else ask())
            self._made = provider, made
        return made
