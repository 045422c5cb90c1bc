"""The cost of the state in Redis: over two bare scripts, by the number of keys, memory of a key."""

from __future__ import annotations

import asyncio
import inspect
import statistics
import time
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio
from support.servers import Server

from keyrot_middleware.core.model import (
    NO_LIMITS,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Usage,
)
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.state import State, open_state

from .state import INFO, acquire_times, pool_keys, use_each

__all__ = ["over_two_scripts", "redis_acquire_times", "redis_memory_per_key"]

DONE = Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=INFO.tokens + 3))
LIMITS = Limits(rpm=1_000_000, tpm=1_000_000_000, rpd=1_000_000_000)
ROUNDS, EACH = 10, 50
PAUSE_S = 0.001
"""About as long as a call of the benchmark server takes: its core may be idle before a request."""


def over_two_scripts(server: Server) -> dict[str, tuple[float, float]]:
    """Time acquire and settle of 8 candidates, with the fallback, and two bare EVALSHA, in turns.

    Returns:
        By kind, sync and async: the two times, microseconds (p50).
    """
    selector = Selector(pool_keys(8, LIMITS))
    state = _open(server, "over")
    client, aclient = (made.from_url(server.url) for made in (redis.Redis, redis.asyncio.Redis))
    digest = client.script_load("return 1")
    taken: dict[str, list[float]] = {}

    async def timed(name: str, *steps: Callable[[Any], Any]) -> None:
        reply, seconds = None, 0.0
        for step in steps:
            await asyncio.sleep(PAUSE_S)
            begun = time.perf_counter()
            reply = step(reply)
            reply = await reply if inspect.isawaitable(reply) else reply
            seconds += time.perf_counter() - begun
            assert isinstance(reply, Lease | None) or "bare" in name
        taken.setdefault(name, []).append(seconds * 1e6)

    async def measure() -> None:
        await aclient.evalsha(digest, 0)
        for number in range(ROUNDS * EACH):
            draw = number * 0.618 % 1
            offer = next(selector.candidate_batches(INFO, {}, time.time(), draw, {}))
            await timed("bare sync", *[lambda _: client.evalsha(digest, 0)] * 2)
            await timed("bare async", *[lambda _: aclient.evalsha(digest, 0)] * 2)
            await timed(
                "sync",
                lambda _, offer=offer: state.acquire(INFO, offer, strategy="spread"),
                lambda lease: state.settle(lease, DONE),
            )
            await timed(
                "async",
                lambda _, offer=offer: state.do(state.acquire, INFO, offer, strategy="spread"),
                lambda lease: state.do(state.settle, lease, DONE),
            )
        await aclient.aclose()

    asyncio.run(measure())
    state.close()
    client.close()
    p50 = {name: statistics.median(values) for name, values in taken.items()}
    return {kind: (p50[kind], p50[f"bare {kind}"]) for kind in ("sync", "async")}


def redis_acquire_times(server: Server) -> dict[int, float]:
    """Time choosing, reserving and settling in Redis; microseconds (p50) per number of keys."""
    return acquire_times(lambda keys: _open(server, f"acquire-{keys}"))


def redis_memory_per_key(server: Server, limits: Limits = NO_LIMITS, count: int = 2_000) -> float:
    """Measure bytes of Redis memory per key with *limits*, when each was used with one model.

    Every key has a project and an account of its own: the most expensive case.
    The scripts and the connection are loaded before, so that they are not counted.
    """
    keys = pool_keys(count, limits)
    warm = _open(server, "memory-warm")
    use_each(Selector(keys[:1]), warm)
    state = _open(server, f"memory-{limits.max_concurrency}")
    before = _used_memory(server)
    use_each(Selector(keys), state)
    known = state.snapshot(keys)  # also reads the answer to the last settle
    assert all(health.success_count for health in known.values()), "a key was not used"
    after = _used_memory(server)
    state.close()
    warm.close()
    return (after - before) / count


def _used_memory(server: Server) -> int:
    """Return how many bytes the server's records, buffers and scripts take."""
    return int(server.execute("INFO", "memory")["used_memory"])


def _open(server: Server, pool: str) -> State:
    """Open a state as calls have it; one request to the server opens its connection."""
    state = open_state(server.strict_url, RetryPolicy(), time.time, pool=f"bench-{pool}")
    assert not state.degraded, "the server does not serve"
    return state
