"""Callers without pause over a pool in memory, and a service that counts, in simulated time.

The flow, the pool and its state are the real ones. The event loop's time is a `FakeClock` that
jumps to the next timer whenever no task can run, so three minutes take a second, and a run with
the same arguments gives the same numbers.
"""

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from keyrot_middleware.core.commands import Done, Failed
from keyrot_middleware.core.failures import FailureFacts
from keyrot_middleware.core.model import CallInfo, Lease, Limits, Usage
from keyrot_middleware.testing import FakeClock
from keyrot_middleware.testing.keys import FakeKey, QuotaCounter
from keyrot_middleware.testing.replies import over_quota
from keyrot_middleware.testing.request import FakeRequest, parse_route
from support.pool import Rig, key
from support.replies import MODEL, GoogleError

TOKENS = 100
"""Of each request."""


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait for time, but moves a clock."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        super().__init__(_Selector(clock))

    def time(self) -> float:
        return self._clock.monotonic()


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout > 0:
            self._clock.advance(timeout + 1e-6)  # more than a double can round away
            timeout = 0
        return super().select(timeout)


class Goodput(NamedTuple):
    possible: int
    """Requests that a caller who knows the service's windows could have had served."""
    served: int
    refused: dict[str, int]
    """Answered with 429, by key."""
    failed: int
    """Calls that raised."""
    longest_s: float
    """The longest call."""

    @property
    def share(self) -> float:
        """Return the part of the possible requests that was served."""
        return self.served / self.possible


QUOTA = over_quota().body
assert QUOTA is not None


class _Simulated(Rig):
    def __init__(self, limits: Limits, *, known: bool, keys: int, **policy: Any) -> None:
        configured = limits if known else Limits()
        ids = [f"key_{number}" for number in range(keys)]
        super().__init__(*(key(key_id, configured) for key_id in ids), **policy)
        self.book = QuotaCounter()
        for key_id in ids:
            self.book.limit(key_id, limits)
        self.limits = limits
        self.random = random.Random(1)
        self.pool.random = self.random.random
        self.served_at: list[float] = []
        self.refused: Counter[str] = Counter()

    async def asleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def asend(self, lease: Lease) -> Any:
        """Answer after the latency of both ways, as the windows allow."""
        await asyncio.sleep(self.random.uniform(0.02, 0.2))
        now, project = self.time(), lease.key_id
        exceeded = self.book.charge(project, MODEL, now, tokens=TOKENS)
        if not exceeded:
            self.served_at.append(now)
        await asyncio.sleep(self.random.uniform(0.05, 1.0) if not exceeded else 0.05)
        if not exceeded:
            return Done("answer", Usage(input_tokens=TOKENS))
        self.refused[lease.key_id] += 1
        request = FakeRequest(
            parse_route("POST", f"/v1beta/models/{MODEL}:generateContent"),
            FakeKey(project, "FAKE", project, project, "free", "1"),
            bucket=MODEL,
            now=now,
            limits=self.limits,
            exceeded=tuple(exceeded),
        )
        return Failed(FailureFacts(429, QUOTA(request)), GoogleError("429"))


def simulate(
    limits: Limits,
    *,
    known: bool = True,
    keys: int = 5,
    callers: int = 16,
    start_s: float = 0.0,
    seconds: float = 180.0,
) -> Goodput:
    """Let *callers* call without pause for some minutes.

    Args:
        limits: Of each key.
        known: The pool is configured with them; else it learns them.
        keys: How many keys there are, each of a project of its own.
        callers: How many tasks call.
        start_s: How long after :30 it begins.
        seconds: How long it lasts.
    """
    rig = _Simulated(limits, known=known, keys=keys, max_wait_s=65.0)
    rig.clock.advance(start_s)
    begun = rig.time()
    failed, longest = 0, 0.0

    async def caller() -> None:
        nonlocal failed, longest
        while rig.time() < begun + seconds:
            request = rig.time()
            try:
                await rig.acall(CallInfo(MODEL, "generateContent", tokens=TOKENS, estimate=TOKENS))
            except Exception:
                failed += 1
                await asyncio.sleep(0.1)
            longest = max(longest, rig.time() - request)

    async def everybody() -> None:
        await asyncio.gather(*(caller() for _ in range(callers)))

    _run(rig.clock, everybody)
    return Goodput(
        keys * possible(limits, begun, seconds),
        sum(at < begun + seconds for at in rig.served_at),
        dict(rig.refused),
        failed,
        longest,
    )


def possible(limits: Limits, begun: float, seconds: float) -> int:
    """Count what one key could have had served, by trying every tenth of a second."""
    book = QuotaCounter()
    book.limit("one", limits)
    served = 0
    for tick in range(int(seconds * 10)):
        while not book.charge("one", MODEL, begun + tick / 10, tokens=TOKENS):
            served += 1
    return served


def _run(clock: FakeClock, main: Callable[[], Any]) -> None:
    loop = JumpingLoop(clock)
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
