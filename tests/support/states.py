"""States for tests: every backend, one that fails on command, and callers in threads and tasks."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import pytest

from keyrot_middleware.core.model import (
    CallInfo,
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Strategy,
    Unavailable,
    Usage,
    Verdict,
)
from keyrot_middleware.state import FallbackState, MemoryState, State, open_state
from keyrot_middleware.state.fallback import Breaker
from keyrot_middleware.state.redis import RedisState
from keyrot_middleware.state.sqlite import SqliteState
from support.docs_blocks import ROOT, blocks
from support.pool import INFO, key
from support.servers import BINARIES, server, wait_for

SHARED = ("sqlite://", "valkey://")
"""The backends that processes can share."""
URIS = ("memory://", *SHARED, "jar://")
"""Every backend; a new one is one more row here and in `open_at`. `jar` is that of docs/sqlite.md,
which stands for those of other distributions."""
OK = Outcome(LeaseOutcome.SUCCESS)
UNSENT = Outcome(LeaseOutcome.UNSENT)
ABANDONED = Outcome(LeaseOutcome.ABANDONED)
A, B = key("a"), key("b")
HUNG_S = 20.0
"""A call that takes longer hangs, however busy the machine is."""
_pools = count()
_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - waits for no disk
_folder = TemporaryDirectory(prefix="keyrot-", dir=_memory, ignore_cleanup_errors=True)


def open_at(uri: str, clock: Callable[[], float]) -> State:
    """Open the backend *uri*, empty, with *clock* to decide; its server is started if need be."""
    name, pool = uri.partition("://")[0], f"pool-{next(_pools)}"
    if name == "sqlite":
        return SqliteState(Path(_folder.name) / f"{pool}.sqlite3", RetryPolicy(), clock)
    if name == "jar":
        return jar_state()(f"jar://{_folder.name}/{pool}.json", RetryPolicy(), clock, pool=pool)
    if name not in BINARIES:
        return open_state(uri, RetryPolicy(), clock)
    return RedisState(server(name).url, RetryPolicy(), pool=pool, test_clock=clock)


@cache
def jar_state() -> Any:
    """Return the class of the state that docs/sqlite.md shows."""
    names: dict[str, Any] = {}
    exec(jar_module(), names)  # noqa: S102 - the page's code is what is tested
    return names["JarState"]


def jar_module() -> str:
    (block,) = [b for b in blocks(ROOT / "docs" / "sqlite.md") if b.file == "jar_state.py"]
    return block.code


@contextmanager
def opened(url: str | Path, pool: str = "test") -> Iterator[FallbackState]:
    """Open a state, of a URL or of a file, as install() does; close it at the end."""
    at = url if isinstance(url, str) else f"sqlite://{url}"
    made = open_state(at, RetryPolicy(), time.time, pool=pool)
    try:
        yield made  # type: ignore[misc]
    finally:
        made.close()


def used(tokens: int) -> Outcome:
    return Outcome(LeaseOutcome.SUCCESS, None, Usage(input_tokens=tokens))


def failed(scope: Scope, until: float | None = None, **more: Any) -> Outcome:
    return Outcome(LeaseOutcome.FAILURE, Verdict("failure", 429, scope, until, **more))


# One call --------------------------------------------------------------------------------------


def acquire(
    state: State, *keys: Any, info: CallInfo = INFO, strategy: Strategy = "fill"
) -> Lease | Unavailable:
    """Acquire one of *keys*; keys without a group have group 0."""
    ranked = tuple(one if isinstance(one, tuple) else (0, one) for one in keys)
    return state.acquire(info, ranked, strategy=strategy)


def lease_of(state: State, *keys: Any, **more: Any) -> Lease:
    reply = acquire(state, *keys, **more)
    assert isinstance(reply, Lease), reply
    return reply


def refusal(state: State, *keys: Any, **more: Any) -> Unavailable:
    reply = acquire(state, *keys, **more)
    assert isinstance(reply, Unavailable), reply
    return reply


def refused(state: State, *keys: Any, **more: Any) -> dict[str, str]:
    return {name: block.reason for name, block in refusal(state, *keys, **more).blocks.items()}


def settle(
    state: State, one: Lease | Candidate, outcome: Outcome = OK, *names: str, **more: Any
) -> float | None:
    """Settle a lease, or one request with a key, as *outcome*."""
    lease = one if isinstance(one, Lease) else lease_of(state, one, **more)
    return state.settle(lease, outcome, names)


def granted(state: State, one: Candidate, most: int = 1_000, **more: Any) -> int:
    """Return how many leases can be acquired without settling one."""
    held: list[Lease] = []
    while len(held) < most and isinstance(reply := acquire(state, one, **more), Lease):
        held.append(reply)
    return len(held)


# A state that fails ----------------------------------------------------------------------------


class CtrlC:
    """Raises KeyboardInterrupt once, at the nth point where Python handles signals.

    Such points are the start of a Python function and the return of a C function.
    """

    def __init__(self, number: int, *, anywhere: bool = False) -> None:
        """*anywhere*: in frames of a test too, not only in those of the package."""
        self.left, self._anywhere = number, anywhere

    def __enter__(self) -> None:
        sys.setprofile(self._look)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _look(self, frame: FrameType, event: str, _arg: Any) -> None:
        ours = self._anywhere or "keyrot_middleware" in frame.f_code.co_filename
        if ours and event in ("call", "c_return") and self.left > 0:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt


class ConnectionLostError(Exception):
    """The connection is cut."""


class Faulty:
    """A shared state whose methods fail or hang on command; *inner* is how others see it."""

    METHODS = frozenset(
        ["acquire", "settle", "get_blocks", "get_owner", "reset", "configure", "check", "snapshot"]
    )

    def __init__(self, inner: MemoryState) -> None:
        self.inner = inner
        self.failing: frozenset[str] = frozenset()
        self.hangs_s = 0.0
        """How long a failing method takes to fail."""
        self.calls: list[str] = []
        self.threads = set[int]()
        self.gate = threading.Event()
        """Not set: nothing is answered."""
        self.gate.set()

    def cut(self, *methods: str, hangs_s: float = 0.0) -> None:
        self.failing, self.hangs_s = frozenset(methods) or self.METHODS, hangs_s

    def restore(self) -> None:
        self.failing = frozenset()

    def settles_without_io(self, *_: Any) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        method, what = getattr(self.inner, name), name.removeprefix("_")
        return method if what not in self.METHODS else lambda *a, **k: self._do(what, method, a, k)

    def _do(self, name: str, method: Any, args: Any, more: Any) -> Any:
        self.calls.append(name)
        self.threads.add(threading.get_ident())
        self.gate.wait(HUNG_S)
        if name in self.failing:
            time.sleep(self.hangs_s)
            raise ConnectionLostError
        return method(*args, **more)


def degrading(
    clock: Callable[[], float],
    policy: RetryPolicy | None = None,
    *,
    breaker_clock: Callable[[], float] | None = None,
    inner: MemoryState | None = None,
) -> tuple[FallbackState, Faulty]:
    """Make a state over one that can be cut off; both keep the time of *clock*."""
    policy = policy or RetryPolicy()
    shared = Faulty(inner or MemoryState(policy, clock))
    local, breaker = MemoryState(policy, clock), Breaker(breaker_clock or clock)
    return FallbackState(shared, local, "test", clock, breaker), shared  # type: ignore[arg-type]


def warnings_of(caplog: pytest.LogCaptureFixture, about: str = "") -> list[str]:
    """List the warnings that name *about*; those of other tests' states may come late."""
    texts = (r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
    return [text for text in texts if about in text]


# Callers ---------------------------------------------------------------------------------------


class Callers:
    """Threads, and as many tasks, that request a key, keep it for a while, settle, and repeat."""

    def __init__(self, state: State, one: Candidate, threads: int, tasks: int = 0) -> None:
        self.state, self.keys, self.tasks = state, ((0, one),), tasks
        self.leases: list[tuple[str, bool]] = []
        """Those of `thread` and `task`, and whether limits of this process applied."""
        self.errors: list[BaseException] = []
        self.longest_s = 0.0
        self._over = False
        work = [self._calls] * threads + ([self._run_tasks] if tasks else [])
        self._threads = [threading.Thread(target=one) for one in work]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        for thread in self._threads:
            thread.join(HUNG_S)
        assert self.errors == []
        assert self.longest_s < HUNG_S

    def until(self, true: Callable[[], bool]) -> None:
        wait_for(true, 60)

    def count(self, *kinds: str, alone: bool | None = None) -> int:
        found = [how for kind, how in self.leases if not kinds or kind in kinds]
        return sum(alone is None or how == alone for how in found)

    def _ended(self, began: float) -> None:
        self.longest_s = max(self.longest_s, time.monotonic() - began)

    def _calls(self) -> None:
        try:
            while not self._over:
                began = time.monotonic()
                reply = self.state.acquire(INFO, self.keys, strategy="spread")
                self._ended(began)
                time.sleep(0.05)
                if isinstance(reply, Lease):
                    self.leases.append(("thread", reply.degraded))
                    began = time.monotonic()
                    self.state.settle(reply, OK)
                    self._ended(began)
        except BaseException as error:
            self.errors.append(error)

    def _run_tasks(self) -> None:
        async def everyone() -> None:
            await asyncio.gather(*(self._task() for _ in range(self.tasks)))

        asyncio.run(everyone())

    async def _task(self) -> None:
        try:
            while not self._over:
                began = time.monotonic()
                reply = await self.state.do(self.state.acquire, INFO, self.keys, strategy="spread")
                self._ended(began)
                await asyncio.sleep(0.05)
                if isinstance(reply, Lease):
                    self.leases.append(("task", reply.degraded))
                    began = time.monotonic()
                    await self.state.do(self.state.settle, reply, OK)
                    self._ended(began)
        except BaseException as error:
            self.errors.append(error)
