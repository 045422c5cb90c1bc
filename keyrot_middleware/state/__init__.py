"""Where the pool's memory lives: `open_state(uri)`."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..core.model import RetryPolicy
from ..errors import ConfigError
from ..settings import STATE_SCHEMES
from .base import State
from .circuit_breaker import CircuitBreaker
from .fallback import FallbackState, LocalWindows
from .library import load_redis
from .memory import MemoryState

__all__ = ["FallbackState", "MemoryState", "State", "open_shared", "open_state"]


def open_state(
    uri: str,
    policy: RetryPolicy,
    clock: Callable[[], float],
    *,
    pool: str = "default",
    share: float = 1.0,
    variable: str = "KEYROT_STATE_URL",
) -> State:
    """Open the backend that *uri* names, as calls use it: one that is out of reach is no error.

    Args:
        uri: `memory://`, or one of `redis://`, `rediss://`, `unix://`, `redis+cluster://`,
            `redis+sentinel://` (docs/redis.md).
        policy: For the lengths of exponential cooldowns.
        clock: Tells epoch seconds, for backends without a clock of their own.
        pool: The pool's name, which keeps its records apart from another's on the same server.
        share: Of each limit, what this process may use while a shared state is out of reach.
        variable: Where *uri* stands, for messages.

    Raises:
        ConfigError: No backend has that scheme, or the URL is wrong.
        MissingExtraError: A library that it needs is not installed.
    """
    shared = open_shared(uri, policy, clock, pool=pool, variable=variable)
    if shared is None:
        return MemoryState(policy, clock)
    state = FallbackState(
        shared, LocalWindows(policy, clock, share), CircuitBreaker(time.monotonic), pool
    )
    state.check()
    return state


def open_shared(
    uri: str,
    policy: RetryPolicy,
    clock: Callable[[], float],
    *,
    pool: str = "default",
    variable: str = "KEYROT_STATE_URL",
) -> State | None:
    """Open a shared state bare, which raises whatever stands in its way; None for memory://.

    Raises:
        ConfigError: No backend has that scheme, or the URL is wrong.
        MissingExtraError: A library that it needs is not installed.
    """
    scheme = uri.partition("://")[0]
    if scheme == "memory":
        return None
    if scheme in STATE_SCHEMES:
        redis = load_redis(f"{variable}={scheme}://…")
        redis.check_place(uri, variable)
        state: State = redis.RedisState(uri, policy, clock, pool=pool)
        return state
    allowed = ", ".join(f"{name}://" for name in STATE_SCHEMES)
    raise ConfigError(f"{variable}: no state backend for {scheme!r}://; allowed: {allowed}")
