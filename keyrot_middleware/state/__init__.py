"""The state of a pool: `open_state(uri)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

from ..core.model import RetryPolicy
from ..errors import ConfigError, MissingExtraError
from ..settings import STATE_SCHEMES
from .base import State
from .memory import FallbackState, MemoryState

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
    """Open the backend of *uri* for calls; an unreachable server is no error.

    Args:
        uri: `memory://`, `sqlite` or `sqlite:///path` (docs/sqlite.md), or one of `redis://`,
            `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://` (docs/redis.md).
        policy: For the lengths of exponential cooldowns.
        clock: Returns epoch seconds, for backends without a clock of their own.
        pool: The pool's name, which separates its records from those of others on the server.
        share: The part of each limit that this process may use while the server is unreachable.
        variable: The setting that has *uri*, for messages.

    Raises:
        ConfigError: No backend has that scheme, or the URL is wrong.
        MissingExtraError: A required library is not installed.
    """
    shared = open_shared(uri, policy, clock, pool=pool, variable=variable)
    if shared is None:
        return MemoryState(policy, clock, pool=pool)
    state = FallbackState(shared, MemoryState(policy, clock, share), pool, clock)
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
    """Open a shared state without fallback, which raises errors; None for memory://.

    Raises:
        ConfigError: No backend has that scheme, or the URL is wrong.
        MissingExtraError: A required library is not installed.
    """
    scheme = uri.partition("://")[0]
    if scheme == "memory":
        return None
    if scheme == "sqlite":
        sqlite = _import_sqlite(variable)
        path = sqlite.path_of_url(uri, pool, variable)
        file: State = sqlite.SqliteState(path, policy, clock, pool=pool)
        return file
    if scheme in STATE_SCHEMES:
        redis = _import_redis(f"{variable}={scheme}://…")
        state: State = redis.RedisState(uri, policy, clock, pool=pool, variable=variable)
        return state
    allowed = ", ".join(f"{name}://" for name in STATE_SCHEMES)
    raise ConfigError(f"{variable}: no state backend for {scheme!r}://; allowed: {allowed}")


def _import_sqlite(variable: str) -> ModuleType:
    """Import the SQLite backend.

    Raises:
        ConfigError: This Python was built without SQLite.
    """
    try:
        return import_module(".sqlite", __package__)
    except ImportError as error:
        if error.name not in ("sqlite3", "_sqlite3"):
            raise
        raise ConfigError(f"{variable}: this Python was built without SQLite") from None


def _import_redis(wanted_by: str) -> ModuleType:
    """Import the Redis backend and check that redis-py can be used.

    Raises:
        MissingExtraError: redis-py is not installed.
        ConfigError: It is too old, or broken.
    """
    try:
        return import_module(".redis", __package__)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "redis":
            raise
        if isinstance(error, ModuleNotFoundError) and sys.modules.get("redis") is None:
            raise MissingExtraError(wanted_by=wanted_by, package="redis", extra="redis") from None
        version = getattr(sys.modules.get("redis"), "__version__", "of unknown version")
        raise ConfigError(
            f"{wanted_by} cannot use the installed redis {version} ({error}); "
            "run: pip install --upgrade 'keyrot-middleware[redis]'"
        ) from error
