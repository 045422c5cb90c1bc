"""A state over a real server: opened as install() does, but with a shorter pause, and one lease."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from keyrot_middleware.core.model import Lease, RetryPolicy
from keyrot_middleware.state import FallbackState, State, open_shared
from keyrot_middleware.state.circuit_breaker import CircuitBreaker
from keyrot_middleware.state.fallback import LocalWindows
from support.pool import INFO, key
from support.sync_async import OK

__all__ = ["POLICY", "SHORT_S", "A", "B", "accept_loss", "acquire_lease", "opened"]

SHORT_S = 0.3
"""Seconds between two checks, where a test would otherwise only wait for the pause."""
A, B = key("a"), key("b")
POLICY = RetryPolicy()


@contextmanager
def opened(url: str, pause_s: float = SHORT_S) -> Iterator[FallbackState]:
    """Open a state, and close it at the end."""
    shared = open_shared(url, POLICY, time.time)
    assert shared is not None
    made = FallbackState(
        shared, LocalWindows(POLICY, time.time), CircuitBreaker(time.monotonic, pause_s), "test"
    )
    try:
        yield made
    finally:
        made.close()


def accept_loss(state: State) -> None:
    """Let a shared state lease keys again that has lost its data, without reporting any usage."""
    loss = state.take_loss()
    assert loss is not None
    state.accept_loss(loss)


def acquire_lease(state: FallbackState, *keys: object) -> Lease:
    """Acquire a lease; fail if no key is available."""
    reply = state.acquire(INFO, tuple((0, one) for one in keys or (A,)), spread=False)  # type: ignore[misc]
    assert isinstance(reply, Lease)
    state.settle(reply, OK)
    return reply
