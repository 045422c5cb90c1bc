"""FakeClock: a clock that a test moves."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from keyrot_middleware.testing import FakeClock


def test_a_clock_starts_at_the_given_time() -> None:
    """An aware datetime and epoch seconds are both accepted."""
    assert FakeClock(datetime(2026, 3, 8, tzinfo=UTC)).time() == 1_772_928_000.0
    assert FakeClock(12.5).time() == 12.5


def test_every_way_of_waiting_moves_the_clock() -> None:
    """advance, sleep and asleep move it by their seconds, and monotonic counts from the start."""
    clock = FakeClock(100.0)
    clock.advance(1)
    clock.sleep(2)
    clock.sleep(-5)
    asyncio.run(clock.asleep(3))
    assert (clock.time(), clock.monotonic()) == (106.0, 6.0)


def test_a_clock_does_not_go_back() -> None:
    """Moving it backward is an error."""
    with pytest.raises(ValueError, match="forward"):
        FakeClock().advance(-1)
