"""What a decision of a state costs, as exact counts, which no load and no clock moves."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import keyrot_middleware
from keyrot_middleware.core.model import (
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Usage,
)
from keyrot_middleware.core.selection import Selector
from keyrot_middleware.core.windows import GUARD_S
from keyrot_middleware.state import open_state

from .servers import Server

_OURS = str(Path(keyrot_middleware.__file__).parent)
INFO = CallInfo("gemini-3.1-flash-lite", "generateContent", 100)
DONE = Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=103))
KEYS, WARM, PAIRS = 8, 100, 21
_NOT_OURS = ("cmdstat_config", "cmdstat_client", "cmdstat_hello", "cmdstat_info")


class SqliteWork(NamedTuple):
    """What a pair does with the file; p50, for now and then a minute or an hour begins."""

    bound: float
    """Values that its reads ask for."""
    writes: float
    """Transactions that change the file."""


class RedisWork(NamedTuple):
    """What a pair does; p50."""

    bytecodes: float
    """Of this package, in the thread of the call."""
    commands: float
    """That the server runs, the script and those in it."""


@contextmanager
def pairs(url: str) -> Iterator[Callable[[], None]]:
    """Give what makes a pair, as a call does it: keys without limits, plain successes.

    A pair is what a call asks of a state: acquire and settle.
    """
    keys = [Candidate(f"key_{n}", f"project_{n}", f"account_{n}") for n in range(KEYS)]
    selector, numbers = Selector(keys), count()

    def pair() -> None:
        draw = next(numbers) * 0.618 % 1
        offer = next(selector.candidate_batches(INFO, {}, time.time(), draw, {}))
        lease = state.acquire(INFO, offer, strategy="spread")
        assert isinstance(lease, Lease), "no key was granted"
        assert not lease.degraded, "the state did not grant it"
        state.settle(lease, DONE)

    with closing(open_state(url, RetryPolicy(), time.time, pool="work")) as state:
        for _ in range(WARM):
            pair()
        yield pair


def redis_work(server: Server) -> RedisWork:
    """Count the work of a pair in Redis."""
    found, commands = list[int](), list[int]()
    with pairs(server.url) as pair:
        _pass_minute_end()
        for _ in range(PAIRS):
            server.execute("CONFIG", "RESETSTAT")
            found.append(bytecodes(pair))
            ran = server.execute("INFO", "commandstats").items()
            commands.append(sum(of["calls"] for name, of in ran if not name.startswith(_NOT_OURS)))
    return RedisWork(median(found), median(commands))


def _pass_minute_end() -> None:
    """Wait for the end of a minute, if it is near: a request counts in two there, which is work."""
    left = 60 - (time.time() - GUARD_S) % 60
    if left < 5:
        time.sleep(left)


def sqlite_work(path: Path) -> SqliteWork:
    """Count the work of a pair in a file."""
    seen, bound, writes = list[tuple[str, int]](), list[int](), list[int]()

    class Seen(sqlite3.Connection):
        def execute(self, sql: str, values: Any = (), /) -> sqlite3.Cursor:
            seen.append((sql.split(maxsplit=1)[0], len(values)))
            return super().execute(sql, values)

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        return real(*args, **options, factory=Seen)

    real = sqlite3.connect
    with mock.patch("sqlite3.connect", connect), pairs(f"sqlite://{path}") as pair:
        for _ in range(PAIRS):
            seen.clear()
            pair()
            bound.append(sum(count for verb, count in seen if verb == "SELECT"))
            writes.append(sum(verb in ("INSERT", "UPDATE", "DELETE") for verb, _ in seen))
    return SqliteWork(median(bound), median(writes))


def bytecodes(work: Callable[[], object]) -> int:
    """Return how many bytecodes of this package a piece of work runs in this thread."""
    found = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal found
        frame.f_trace_opcodes = frame.f_code.co_filename.startswith(_OURS)
        frame.f_trace_lines = False
        found += event == "opcode"
        return trace

    with _tracing(trace):
        work()
    return found


@contextmanager
def _tracing(trace: Any) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
