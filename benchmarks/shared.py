"""The cost of a state in Redis: time of an acquire, memory of a key."""

from __future__ import annotations

import time

from keyrot_middleware.core.model import NO_LIMITS, Limits, RetryPolicy
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.state import State, open_state

from .state import acquire_times, pool_keys, use_each
from .valkey import used_memory

__all__ = ["redis_acquire_times", "redis_memory_per_key"]


def redis_acquire_times(url: str) -> dict[int, float]:
    """Time choosing, reserving and settling in Redis; microseconds (p50) per number of keys."""
    return acquire_times(lambda keys: _open(url, f"acquire-{keys}"))


def redis_memory_per_key(url: str, limits: Limits = NO_LIMITS, count: int = 2_000) -> float:
    """Measure bytes of Redis memory per key with *limits*, when each was used with one model.

    Every key has a project and an account of its own: the most expensive case.
    The scripts and the connection are loaded before, so that they are not counted.
    """
    keys = pool_keys(count, limits)
    warm = _open(url, "memory-warm")
    use_each(Selector(keys[:1]), warm)
    state = _open(url, f"memory-{limits.max_concurrency}")
    before = used_memory(url)
    use_each(Selector(keys), state)
    known = state.snapshot(keys)  # also reads the answer to the last settle
    assert all(health.success_count for health in known.values()), "a key was not used"
    after = used_memory(url)
    state.close()
    warm.close()
    return (after - before) / count


def _open(url: str, pool: str) -> State:
    """Open a state as calls have it; one request to the server opens its connection."""
    state = open_state(url, RetryPolicy(), time.time, pool=pool)
    assert not state.degraded, "the server does not serve"
    return state
