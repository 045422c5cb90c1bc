"""The rules by which one call walks the pool, waits and is sent again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .model import Backoff

__all__ = ["LAST_RESORT", "POOL_KEY", "RetryPolicy", "Strategy"]

LAST_RESORT = 1_000_000
"""From this priority on a key comes after all others, those of other models included."""

POOL_KEY = "keyrot-pool"
"""As a key, in a variable or a constructor: no key of its own. It never reaches the wire."""

Strategy = Literal["spread", "fill", "sticky"]
"""`spread`: the least used share first; `fill`: one key until it is spent; `sticky`: the same
conversation keeps its key."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How far one call may go before its failure is the program's.

    Walking the pool (a key's own failure) and retrying (nobody's fault) have separate budgets.
    """

    strategy: Strategy = "spread"
    max_attempts: int = 0
    """Sends per call while walking the pool; 0: each key once."""
    max_retries: int = 2
    """Retries after 5xx and connection errors, which blame no key."""
    max_wait_s: float = 65.0
    """Longest wait for a key to come free."""
    cooldown_base_s: float = 30.0
    """First cooldown of a scope where the server named no time."""
    cooldown_max_s: float = 900.0
    """The cooldown doubles with each failure in a row, up to this."""

    @property
    def backoff(self) -> Backoff:
        """Give the exponential cooldown of a scope where the failure class has none of its own."""
        return Backoff(self.cooldown_base_s, self.cooldown_max_s)
