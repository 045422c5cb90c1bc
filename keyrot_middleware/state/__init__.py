"""Where the pool's memory lives: `open_state(uri)`."""

from __future__ import annotations

from collections.abc import Callable

from ..core.policy import RetryPolicy
from ..errors import ConfigError, MissingExtraError
from .base import State
from .memory import MemoryState

__all__ = ["MemoryState", "State", "open_state"]


def open_state(
    uri: str, policy: RetryPolicy, clock: Callable[[], float], pool: str = "default"
) -> State:
    """Open the backend that *uri* names.

    Args:
        uri: `memory://`, or one of `redis://`, `rediss://`, `unix://`, `redis+cluster://`,
            `redis+sentinel://` (docs/redis.md).
        policy: For the lengths of exponential cooldowns.
        clock: Tells epoch seconds, for backends without a clock of their own.
        pool: The pool's name, which keeps its records apart from another's on the same server.

    Raises:
        ConfigError: No backend has that scheme, or the URL is wrong.
        MissingExtraError: The library that it needs is not installed.
    """
    scheme = uri.partition("://")[0]
    if scheme == "memory":
        return MemoryState(policy, clock)
    if scheme.partition("+")[0] in ("redis", "rediss", "unix"):
        return _open_redis(uri, policy, clock, pool)
    raise ConfigError(
        f"KEYROT_STATE_URL: no state backend for {scheme!r}://; allowed: memory://, redis://, "
        "rediss://, unix://, redis+cluster://, redis+sentinel://"
    )


def _open_redis(uri: str, policy: RetryPolicy, clock: Callable[[], float], pool: str) -> State:
    try:
        from .redis import RedisState  # noqa: PLC0415 - only who asks for it needs the extra
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "redis":
            raise
        wanted_by = f"KEYROT_STATE_URL={uri.partition('://')[0]}://…"
        raise MissingExtraError(wanted_by=wanted_by, package="redis", extra="redis") from None
    return RedisState(uri, policy, clock, pool=pool)
