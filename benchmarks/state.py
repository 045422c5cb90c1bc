"""The effect of the number of keys: time of an acquire, memory of a key."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc
from collections.abc import Callable

from keyrot_middleware.core.model import (
    NO_LIMITS,
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
)
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.state import MemoryState, State

INFO = CallInfo("gemini-3.1-flash-lite", "generateContent", 100)


Open = Callable[[int], State]
"""Open an empty state for a pool of so many keys."""


def in_memory(_keys: int) -> State:
    """Open a state in memory."""
    return MemoryState(RetryPolicy(), time.time)


def pool_keys(count: int, limits: Limits = NO_LIMITS) -> list[Candidate]:
    return [Candidate(f"key_{n}", f"project_{n}", f"account_{n}", limits) for n in range(count)]


def use_each(selector: Selector, state: State) -> None:
    """Use every key about once."""
    for step in range(len(selector.keys)):
        state.settle(
            acquire_lease(selector, state, step / len(selector.keys)), Outcome(LeaseOutcome.SUCCESS)
        )


def acquire_lease(selector: Selector, state: State, draw: float) -> Lease:
    """Acquire as a call does, from a batch of up to eight candidates."""
    for candidates in selector.candidate_batches(INFO, {}, time.time(), draw, {}):
        reply = state.acquire(INFO, candidates, strategy="spread")
        if isinstance(reply, Lease):
            return reply
    raise AssertionError("no key was free")


def acquire_times(
    opened: Open = in_memory, counts: tuple[int, ...] = (10, 10_000), rounds: int = 40
) -> dict[int, float]:
    """Time choosing, reserving and settling, in turns; microseconds (p50) per number of keys."""
    pools = {n: (Selector(pool_keys(n)), opened(n)) for n in counts}
    for selector, state in pools.values():
        use_each(selector, state)
    taken: dict[int, list[float]] = {n: [] for n in counts}
    for round_ in range(rounds):
        for n, (selector, state) in pools.items():
            for step in range(50):
                draw = (round_ * 50 + step) * 0.618 % 1
                begun = time.perf_counter()
                lease = acquire_lease(selector, state, draw)
                state.settle(lease, Outcome(LeaseOutcome.SUCCESS))
                taken[n].append((time.perf_counter() - begun) * 1e6)
    for _, state in pools.values():
        state.close()
    return {n: statistics.median(values) for n, values in taken.items()}


def memory_per_key(count: int = 10_000) -> float:
    """Measure bytes per key of selector and state, when every key was used with one model."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    selector, state = Selector(pool_keys(count)), in_memory(count)
    use_each(selector, state)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / count
