"""What the number of keys costs: time of an acquire, memory of a key."""

from __future__ import annotations

import gc
import statistics
import time
import tracemalloc

from keyrot_middleware.core.model import CallInfo, Candidate, Kind, Lease, Outcome
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.core.roster import Roster
from keyrot_middleware.state.memory import MemoryState

INFO = CallInfo("gemini-2.5-flash", "generateContent", 100)


def _keys(count: int) -> list[Candidate]:
    return [Candidate(f"key_{n}", f"project_{n}", f"account_{n}") for n in range(count)]


def _borrow(roster: Roster, state: MemoryState, draw: float) -> Lease:
    for shortlist in roster.shortlists(INFO, {}, time.time(), draw):
        reply = state.acquire(INFO, shortlist, spread=True)
        if isinstance(reply, Lease):
            return reply
    raise AssertionError("no key was free")


def acquire_times(counts: tuple[int, ...] = (10, 10_000), rounds: int = 40) -> dict[int, float]:
    """Time choosing, reserving and settling, in turns; microseconds (p50) per number of keys."""
    pools = {n: (Roster(_keys(n)), MemoryState(RetryPolicy(), time.time)) for n in counts}
    for roster, state in pools.values():  # every key was used once
        for step in range(len(roster.keys)):
            state.settle(_borrow(roster, state, step / len(roster.keys)), Outcome(Kind.SUCCESS))
    taken: dict[int, list[float]] = {n: [] for n in counts}
    for round_ in range(rounds):
        for n, (roster, state) in pools.items():
            for step in range(50):
                draw = (round_ * 50 + step) * 0.618 % 1
                begun = time.perf_counter()
                lease = _borrow(roster, state, draw)
                state.settle(lease, Outcome(Kind.SUCCESS))
                taken[n].append((time.perf_counter() - begun) * 1e6)
    return {n: statistics.median(values) for n, values in taken.items()}


def memory_per_key(count: int = 10_000) -> float:
    """Measure bytes per key of roster and state, when every key was used with one model."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    roster, state = Roster(_keys(count)), MemoryState(RetryPolicy(), time.time)
    for step in range(count):
        state.settle(_borrow(roster, state, step / count), Outcome(Kind.SUCCESS))
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / count
