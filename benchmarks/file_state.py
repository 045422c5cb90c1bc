"""The state in a file: what a call costs over memory, and what processes that share it get done."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from keyrot_middleware.core.model import (
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Usage,
)
from keyrot_middleware.runtime.driver import complete
from keyrot_middleware.state import State, open_state

from .crew import answer, crew
from .page import Row
from .state import INFO, in_memory, pool_keys

__all__ = ["rows"]

PROCESSES, CALLERS, LOAD_S, WORK_S = 4, 16, 4.0, 0.02
CALLS, LONG_HOLD_S = 2_000, 0.002
CLOSED_S = 2.0
OFFER = tuple((0, key) for key in pool_keys(8, Limits(rpm=10**9, tpm=10**12, rpd=10**9)))
USED = Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=90))


class Load(NamedTuple):
    """What all callers got done."""

    calls_per_s: float
    p99_ms: float
    """Of the time in acquire and settle."""
    alone: int
    """Leases that the file did not grant."""


def rows() -> list[Row]:
    """Measure the state in a file."""
    floor, memory, file = costs()
    over = file - memory
    loads = [
        row
        for who, tasks in (("threads", False), ("tasks", True))
        for row in _load_rows(who, load(0.0, tasks=tasks), load(WORK_S, tasks=tasks))
    ]
    return [
        (
            "acquire and settle, 8 candidates, state in a file, over memory, p50",
            "≤ 6 × two transactions that update one row",
            f"{over:.0f} µs, {over / floor:.1f} × {floor:.0f} µs",
        ),
        *loads,
        (
            f"tasks beside {PROCESSES - 1} such processes: the loop is held for more than "
            f"{LONG_HOLD_S * 1e3:.0f} ms",
            "≤ 0.1 % of acquires and settles",
            f"{long_holds(_open):.2%}; in memory {long_holds(lambda _: in_memory(8)):.2%}",
        ),
        (
            "bytes of the file after 100,000 calls against 1,000, closed",
            "as many",
            f"{bytes_after(100_000):,} against {bytes_after(1_000):,}",
        ),
    ]


def _load_rows(who: str, saturated: Load, working: Load) -> list[Row]:
    return [
        (
            f"{PROCESSES} processes × {CALLERS} {who} over one file, without a pause",
            "≥ 2,000 calls/s, none in-process",
            f"{saturated.calls_per_s:,.0f} calls/s, {saturated.alone} in-process",
        ),
        (
            f"the same {who} with {WORK_S * 1e3:.0f} ms of work in each call",
            "≥ 1,800 calls/s, p99 of acquire and settle ≤ 50 ms",
            f"{working.calls_per_s:,.0f} calls/s, p99 {working.p99_ms:.0f} ms",
        ),
    ]


def bytes_after(calls: int) -> int:
    """Return the size of the file and what belongs to it after so many calls."""
    with _folder() as path:
        state = _open(path)
        for _ in range(calls):
            _call(state)
        state.close()
        time.sleep(CLOSED_S)  # a thread may still shorten the log
        return sum(one.stat().st_size for one in path.parent.iterdir())


def costs() -> tuple[float, float, float]:
    """Measure two transactions that update one row, and a call in memory and in a file; µs, p50."""
    with _folder() as path:
        state, floor = _open(path), _two_updates(path.with_name("floor"))
        memory = in_memory(8)
        taken = _in_turns(floor, lambda: _call(memory), lambda: _call(state))
        state.close()
        return taken


def _in_turns(*works: Callable[[], object]) -> Any:
    times: list[list[float]] = [[] for _ in works]
    for _ in range(CALLS // 50):
        for work, taken in zip(works, times, strict=True):
            for _ in range(50):
                begun = time.perf_counter()
                work()
                taken.append((time.perf_counter() - begun) * 1e6)
    return tuple(statistics.median(taken) for taken in times)


def _two_updates(path: Path) -> Callable[[], None]:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE one (v)")
    db.execute("INSERT INTO one VALUES (0)")

    def update() -> None:
        for _ in range(2):
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE one SET v = v + 1")
            db.execute("COMMIT")

    return update


def load(work_s: float, *, tasks: bool = False) -> Load:
    """Let all callers call for some seconds, each with so much work in a call."""
    with _folder() as path, crew(PROCESSES, _work, str(path), work_s, tasks) as pipes:
        for pipe in pipes:
            answer(pipe)  # it is ready
        for pipe in pipes:
            pipe.send(LOAD_S)
        found = [answer(pipe) for pipe in pipes]
    taken = sorted(seconds for times, _ in found for seconds in times)
    alone = sum(alone for _, alone in found)
    return Load(len(taken) / LOAD_S, taken[len(taken) * 99 // 100] * 1e3, alone)


def _work(pipe: Connection, path: str, work_s: float, tasks: bool) -> None:
    state, times, alone = _open(Path(path)), list[float](), list[int]()
    _call(state)
    pipe.send(None)
    until = time.perf_counter() + pipe.recv()

    async def caller(wait: Callable[[], Awaitable[None]]) -> None:
        while time.perf_counter() < until:
            begun = time.perf_counter()
            ask = partial(state.acquire, INFO, OFFER, strategy="spread")
            lease = _lease(await state.do(ask) if tasks else ask())
            acquired = time.perf_counter()
            await wait()
            worked = time.perf_counter()
            state.settle(lease, USED)
            times.append(acquired - begun + time.perf_counter() - worked)
            alone.extend([1] * lease.degraded)

    async def sleep() -> None:
        time.sleep(work_s)  # noqa: ASYNC251 - in a thread of its own

    async def all_tasks() -> None:
        await asyncio.gather(*(caller(partial(asyncio.sleep, work_s)) for _ in range(CALLERS)))

    if tasks:
        asyncio.run(all_tasks())
    else:
        threads = [threading.Thread(target=complete, args=(caller(sleep),)) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    state.close()
    pipe.send((times, len(alone)))


def long_holds(opened: Callable[[Path], State]) -> float:
    """Return the share of awaited calls of a state that hold the loop for long."""
    with _folder() as path, crew(PROCESSES - 1, _work, str(path), WORK_S, False) as pipes:
        for pipe in pipes:
            answer(pipe)
        for pipe in pipes:
            pipe.send(LOAD_S)
        held = asyncio.run(_holds(opened(path)))
        for pipe in pipes:
            answer(pipe)
    return sum(seconds > LONG_HOLD_S for seconds in held) / len(held)


async def _holds(state: State) -> list[float]:
    """Call in tasks; return how long the longest step of each acquire and settle took."""
    held = list[float]()
    until = time.perf_counter() + 0.8 * LOAD_S

    async def caller() -> None:
        while time.perf_counter() < until:
            lease = _lease(
                await _Timed(state.do(state.acquire, INFO, OFFER, strategy="spread"), held)
            )
            await asyncio.sleep(WORK_S)
            await _Timed(state.do(state.settle, lease, USED), held)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    state.close()
    return held


class _Timed:
    """Awaits a coroutine, and keeps how long its longest step took."""

    def __init__(self, work: Any, held: list[float]) -> None:
        self._work, self._held = work, held

    def __await__(self) -> Any:
        steps, reply, longest = self._work.__await__(), None, 0.0
        while True:
            begun = time.perf_counter()
            try:
                waits_for = steps.send(reply)
            except StopIteration as done:
                self._held.append(max(longest, time.perf_counter() - begun))
                return done.value
            longest = max(longest, time.perf_counter() - begun)
            reply = yield waits_for


def _call(state: State) -> None:
    state.settle(_lease(state.acquire(INFO, OFFER, strategy="spread")), USED)


def _lease(reply: object) -> Lease:
    assert isinstance(reply, Lease)
    return reply


def _open(path: Path) -> State:
    return open_state(f"sqlite://{path}", RetryPolicy(), time.time)


@contextmanager
def _folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="keyrot-bench-", ignore_cleanup_errors=True) as folder:
        yield Path(folder) / "state.sqlite3"


if __name__ == "__main__":
    for row in rows():
        print(" | ".join(row))
