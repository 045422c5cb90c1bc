"""A state over a real server: opened as install() does, and one lease."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from keyrot_middleware.core.model import Lease, RetryPolicy
from keyrot_middleware.state import FallbackState, open_state
from support.pool import INFO, key
from support.sync_async import OK

__all__ = ["POLICY", "A", "B", "acquire_lease", "opened"]

A, B = key("a"), key("b")
POLICY = RetryPolicy()


@contextmanager
def opened(url: str) -> Iterator[FallbackState]:
    """Open a state, and close it at the end."""
    made = open_state(url, POLICY, time.time, pool="test")
    assert isinstance(made, FallbackState)
    try:
        yield made
    finally:
        made.close()


def acquire_lease(state: FallbackState, *keys: object) -> Lease:
    """Acquire a lease; fail if no key is available."""
    reply = state.acquire(INFO, tuple((0, one) for one in keys or (A,)), spread=False)  # type: ignore[misc]
    assert isinstance(reply, Lease)
    state.settle(reply, OK)
    return reply
