"""Amounts of money, and the service tiers that requests and responses name."""

from __future__ import annotations

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
