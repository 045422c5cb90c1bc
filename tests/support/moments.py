"""Moments that tests of windows and cooldowns start from."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

NOON = datetime(2026, 1, 1, 12, 30, 30, tzinfo=UTC).timestamp()
MINUTE = NOON - 30
PACIFIC = ZoneInfo("America/Los_Angeles")


def at(*when: int) -> float:
    """Return the epoch seconds of a wall-clock time in the Pacific time zone."""
    return datetime(*when, tzinfo=PACIFIC).timestamp()  # type: ignore[arg-type, misc]
