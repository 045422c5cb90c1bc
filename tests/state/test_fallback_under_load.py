"""Many callers at once while the shared state fails and recovers: no call fails or waits long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.concurrent_callers import HUNG_S
from support.faulty_state import Faulty, degrading
from support.pool import INFO, key
from support.sync_async import OK

from keyrot_middleware.core.model import Lease, Limits
from keyrot_middleware.state import FallbackState
from keyrot_middleware.testing import FakeClock

CALLERS = 64
LAST_S = 3.0
PAUSE_S = 0.01
GIVE_UP_S = 60.0
"""A busy machine may take so long to use the limits to their end."""
KEYS = tuple((0, key(f"k{n}", Limits(rpm=500 * (n + 1)))) for n in range(4))
LIMITS = {one.key_id: one.limits.rpm for _, one in KEYS}
EVERY = 250
"""The shared state fails, or recovers, each time after so many leases."""


class Tally:
    """What the callers saw; it cuts and restores the shared state while they run."""

    def __init__(self, shared: Faulty) -> None:
        self._shared = shared
        self.leases: Counter[str] = Counter()
        self.alone = 0
        self.longest_s = 0.0

    def note(self, reply: object, seconds: float) -> None:
        """Record one call."""
        self.longest_s = max(self.longest_s, seconds)
        if isinstance(reply, Lease):
            self.leases[reply.key_id] += 1
            self.alone += reply.degraded
            if self.leases.total() % EVERY == 0:
                self._flip()

    def _flip(self) -> None:
        """Let each call hang for 0.2 s, then restore, and so on."""
        if self._shared.failing:
            self._shared.restore()
        else:
            self._shared.cut("acquire", "settle", "snapshot", "check", hangs_s=0.2)

    def is_over(self, until: float) -> bool:
        """Return whether *until* has passed and every limit is used up, or never will be."""
        late = time.perf_counter() - until
        return late >= 0 and (self.leases.total() >= sum(LIMITS.values()) or late >= GIVE_UP_S)


def under_threads(state: FallbackState, tally: Tally, until: float) -> None:
    """Call from so many threads; a request takes 10 ms."""
    lock = threading.Lock()

    def caller() -> None:
        while not tally.is_over(until):
            began = time.perf_counter()
            reply = state.acquire(INFO, KEYS, spread=True)
            if isinstance(reply, Lease):
                state.settle(reply, OK)
            acquire_s = time.perf_counter() - began
            time.sleep(PAUSE_S)
            with lock:
                tally.note(reply, acquire_s)

    with ThreadPoolExecutor(CALLERS) as threads:
        for future in [threads.submit(caller) for _ in range(CALLERS)]:
            future.result()


def under_tasks(state: FallbackState, tally: Tally, until: float) -> None:
    """Call from so many tasks."""

    async def caller() -> None:
        while not tally.is_over(until):
            began = time.perf_counter()
            reply = await state.aacquire(INFO, KEYS, spread=True)
            if isinstance(reply, Lease):
                await state.asettle(reply, OK)
            acquire_s = time.perf_counter() - began
            await asyncio.sleep(PAUSE_S)
            tally.note(reply, acquire_s)

    async def everyone() -> None:
        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    asyncio.run(everyone())


@pytest.mark.parametrize("under", [under_threads, under_tasks], ids=["threads", "tasks"])
def test_no_call_fails_waits_or_exceeds_a_limit(
    clock: FakeClock, under: Callable[[FallbackState, Tally, float], None]
) -> None:
    """No call hangs with the shared state, nothing is raised, and each limit is used to its end."""
    ticks = time.monotonic  # a pause is 2 s: too long for a test, so its clock runs faster
    state, shared = degrading(clock.time, breaker_clock=lambda: ticks() * 40)
    tally = Tally(shared)
    under(state, tally, time.perf_counter() + LAST_S)
    assert tally.longest_s < HUNG_S
    assert dict(tally.leases) == LIMITS
    assert 0 < tally.alone < sum(LIMITS.values())
