"""A clock that a test advances, so that a minute or a Pacific day passes at once."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Anything with the time in epoch seconds."""

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""


class SystemClock:
    """The system clock."""

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""
        return time.time()


class FakeClock:
    """A clock that only moves when advanced; safe for threads and tasks.

    Args:
        start: An aware `datetime`, or epoch seconds; by default 12:30:30 UTC on a winter day,
            30 s into a minute and far from the Pacific midnight.

    Raises:
        ValueError: If `start` is a `datetime` without a zone.
    """

    def __init__(self, start: datetime | float = 1_767_270_630.0) -> None:
        if isinstance(start, datetime) and start.tzinfo is None:
            raise ValueError("FakeClock(start=…) needs a datetime with a zone, e.g. tzinfo=UTC")
        self._origin = start.timestamp() if isinstance(start, datetime) else float(start)
        self._now = self._origin
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"FakeClock({self.time()!r})"

    def time(self) -> float:
        """Return the seconds since 1970-01-01 UTC."""
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        """Return the seconds since this clock was made."""
        return self.time() - self._origin

    def advance(self, seconds: float) -> None:
        """Advance the clock.

        Raises:
            ValueError: If `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"a clock only goes forward: advance({seconds}) is negative")
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` instead of waiting; by nothing if negative."""
        self.advance(max(0.0, seconds))

    async def asleep(self, seconds: float) -> None:
        """Advance the clock by `seconds` instead of waiting, and let other tasks run once."""
        self.sleep(seconds)
        await asyncio.sleep(0)
