"""FakeClock: a clock that a test moves."""

from __future__ import annotations

import asyncio

from keyrot_middleware.testing import FakeClock


def test_every_way_of_waiting_moves_the_clock() -> None:
    """advance, sleep and asleep move it by their seconds, and monotonic counts from the start."""
    clock = FakeClock(100.0)
    clock.advance(1)
    clock.sleep(2)
    clock.sleep(-5)
    asyncio.run(clock.asleep(3))
    assert (clock.time(), clock.monotonic()) == (106.0, 6.0)
