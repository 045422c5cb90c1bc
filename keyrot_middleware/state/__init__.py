"""Where the pool's memory lives: `open_state(uri)`."""

from __future__ import annotations

from collections.abc import Callable

from ..core.policy import RetryPolicy
from ..errors import ConfigError
from .base import State
from .memory import MemoryState

__all__ = ["MemoryState", "State", "open_state"]


def open_state(uri: str, policy: RetryPolicy, clock: Callable[[], float]) -> State:
    """Open the backend that *uri* names.

    Args:
        uri: `memory://`.
        policy: For the lengths of exponential cooldowns.
        clock: Tells epoch seconds, for backends without a clock of their own.

    Raises:
        ConfigError: No backend has that scheme.
    """
    scheme = uri.partition("://")[0]
    if scheme == "memory":
        return MemoryState(policy, clock)
    raise ConfigError(
        f"KEYROT_STATE_URL: no state backend for {scheme!r}://; allowed in this version: memory://"
    )
