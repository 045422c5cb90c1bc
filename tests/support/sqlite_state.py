"""Processes that share a file: what each of them does, for `multiprocessing`."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keyrot_middleware.core.model import Candidate, Lease, Limits, RetryPolicy
from keyrot_middleware.state import State, open_state
from support.pool import INFO, key
from support.sync_async import OK

__all__ = ["ONE", "TWENTY", "acquire", "grant", "hurry", "opened", "run", "url_of"]

TWENTY = key("twenty", Limits(rpm=10_000, rpd=20))
"""Not by the minute, which may end during a test."""
ONE = key("one", Limits(max_concurrency=1))


def url_of(path: Path) -> str:
    """Return the URL of a file."""
    return f"sqlite://{path}"


def opened(path: Path) -> State:
    """Open the state as install() does."""
    return open_state(url_of(path), RetryPolicy(), time.time)


def acquire(state: State, one: Candidate) -> Lease | None:
    """Acquire a lease of one key; None if it is not available."""
    reply = state.acquire(INFO, ((0, one),), spread=False)
    return reply if isinstance(reply, Lease) else None


def grant(state: State, count: int) -> int:
    """Return how many of *count* requests are granted by the shared state."""
    granted = 0
    for _ in range(count):
        lease = acquire(state, TWENTY)
        if lease is not None and not lease.degraded:
            granted += 1
            state.settle(lease, OK)
    return granted


def hurry(path: Path, count: int, start: Any, results: Any) -> None:
    """Send *count* requests as soon as all processes are here; report how many were granted."""
    state = opened(path)
    start.wait(60)
    results.put(grant(state, count))
    state.close()


def run(count: int, work: Callable[..., None], *args: Any, method: str = "spawn") -> list[Any]:
    """Run *work* in so many processes that begin together; return what they report."""
    context = multiprocessing.get_context(method)
    start, results = context.Barrier(count), context.Queue()
    workers = [
        context.Process(target=work, args=(*args, start, results), daemon=True)
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    return found
