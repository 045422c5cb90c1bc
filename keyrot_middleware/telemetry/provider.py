"""Which provider the program has set, asked for each call: it may be set after install()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

__all__ = ["CurrentProvider"]

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
