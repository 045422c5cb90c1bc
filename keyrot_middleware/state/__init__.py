"""The state of a pool: `open_state(uri)`.

`__all__` is what the author of another state needs (docs/sqlite.md); the rest is the pool's.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ..core.model import RetryPolicy
from ..errors import ConfigError, MissingExtraError, how_to_install
from ..settings import STATE_SCHEMES, entry_point_states
from .base import State
from .fallback import FallbackState
from .memory import MemoryState
from .records import Change, RecordState, StoreError

__all__ = ["Change", "RecordState", "RetryPolicy", "State", "StoreError"]


def open_state(
    uri: str,
    policy: RetryPolicy,
    clock: Callable[[], float],
    *,
    pool: str = "default",
    variable: str = "KEYROT_STATE_URL",
) -> State:
    """Open the backend of *uri* for calls; an unreachable server is no error.

    Args:
        uri: `memory://`, `sqlite` or `sqlite:///path` (docs/sqlite.md), or one of `redis://`,
            `rediss://`, `unix://`, `redis+cluster://`, `redis+sentinel://` (docs/redis.md), or of a
            scheme that an entry point `keyrot_middleware.states` names (docs/sqlite.md).
        policy: For the lengths of exponential cooldowns.
        clock: Returns epoch seconds, for backends without a clock of their own.
        pool: The pool's name, which separates its records from those of others on the server.
        variable: The setting that has *uri*, for messages.

    Raises:
        ConfigError: No backend has that scheme, the URL is wrong, or the entry point names nothing
            that works.
        MissingExtraError: A required library is not installed.
    """
    shared = open_shared(uri, policy, clock, pool=pool, variable=variable)
    if shared is None:
        return MemoryState(policy, clock, pool=pool)
    state = FallbackState(shared, MemoryState(policy, clock), pool, clock)
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
        ConfigError: No backend has that scheme, the URL is wrong, or the entry point names nothing
            that works.
        MissingExtraError: A required library is not installed.
    """
    scheme = uri.partition("://")[0]
    if scheme == "memory":
        return None
    if scheme not in STATE_SCHEMES:
        found = _open_plugged_in(uri, policy, clock, pool, variable)
        if isinstance(found, ConfigError):
            raise found
        return found
    wanted_by = f"{variable}={scheme}://…"
    try:
        backend = import_module(".sqlite" if scheme == "sqlite" else ".redis", __package__)
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library == "redis" and isinstance(error, ModuleNotFoundError):
            raise MissingExtraError(wanted_by=wanted_by, package="redis", extra="redis") from None
        hint = (
            f"; for one that can be used, {how_to_install('redis')}" if library == "redis" else ""
        )
        raise ConfigError(f"{wanted_by}: the installed {library}: {error}{hint}") from None
    state: State
    if scheme == "sqlite":
        path = backend.path_of_url(uri, pool, variable)
        state = backend.SqliteState(path, policy, clock, pool=pool)
    else:
        state = backend.RedisState(uri, policy, clock, pool=pool, variable=variable)
    return state


def _open_plugged_in(
    uri: str, policy: RetryPolicy, clock: Callable[[], float], pool: str, variable: str
) -> State | ConfigError:
    """Return a state, or an error without frames: their local variables hold the URL's password."""
    points, scheme = entry_point_states(), uri.partition("://")[0]
    if scheme not in points:
        allowed = ", ".join(f"{name}://" for name in (*STATE_SCHEMES, *points))
        return ConfigError(f"{variable}: no state backend for {scheme!r}://; allowed: {allowed}")
    cannot = f"{variable}={scheme}://…: the state {points[scheme].value} cannot be opened"
    try:
        found = points[scheme].load()(uri, policy, clock, pool=pool)
    except ConfigError as error:
        return error.with_traceback(None)
    except Exception as error:
        return ConfigError(f"{cannot}: {type(error).__name__}")
    if not isinstance(found, State):
        return ConfigError(f"{cannot}: it is no State")
    return found
