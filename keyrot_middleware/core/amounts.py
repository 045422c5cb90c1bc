"""What a call counts as: input tokens, as far as they are known before it is sent, and dollars.

And the service tiers that requests and responses name, which decide its price.
"""

from __future__ import annotations

from math import ceil

_MAX_MODELS = 256
_KEPT = 0.95


class TokenScale:
    """The factor between estimated and true input tokens, learned per model.

    It is the ratio of the sums of both over the last calls. So what a search tool adds to a short
    prompt does not multiply long ones.

    Not locked: threads that learn at the same time may lose one observation.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def scaled(self, model: str, estimate: int) -> int:
        """Return the tokens to reserve for an *estimate*."""
        estimated, true = self._sums.get(model, (1.0, 1.0))
        return ceil(estimate * true / estimated)

    def learn(self, model: str, estimate: int, true: int) -> None:
        """Record that a request estimated at *estimate* tokens had *true* tokens."""
        if estimate <= 0 or true <= 0:
            return
        if len(self._sums) >= _MAX_MODELS:
            self._sums = {}
        estimated, counted = self._sums.get(model, (0.0, 0.0))
        self._sums[model] = estimated * _KEPT + estimate, counted * _KEPT + true


NANO = 10**9
"""Billionths in a dollar."""
MOST = 2**53
"""The most that one amount can be: nine million dollars. Lua counts exactly so far."""
_LONGEST_TIER = 32


def nano_usd(usd: float) -> int:
    """Return an amount of dollars in billionths, `MOST` at most."""
    return round(min(usd * NANO, MOST))


def service_tier(value: object) -> str | None:
    """Return a service tier as requests and responses name it: `FLEX` is `flex`; None for none."""
    name = value.strip().lower() if isinstance(value, str) else ""
    name = name.removeprefix("service_tier_")
    return None if name in ("", "unspecified") or len(name) > _LONGEST_TIER else name
