"""What a project has spent of its budget of the day; the oracle for every state backend.

A budget must not be exceeded by more than one request, however many are in flight. So each
reserves what it may cost: what its input is estimated to cost and the most that a request to its
model has cost today; before the first, the price of the longest answer. A request that does not
fit waits until another has ended. With none in flight, one is let through as long as anything is
left of the budget: only it can exceed it.

Amounts are billionths of a dollar, so that sums are exact in every store.

Google sells a request in service tiers, some of which have a price of their own: the most that a
request to a model has cost is kept for each of them.
"""

from __future__ import annotations

from .model import Block
from .windows import PROBE_POLL_S, current_day_end

__all__ = [
    "BUCKETS_KEPT",
    "NANO",
    "PRICED_TIERS",
    "Spending",
    "nano_usd",
    "price_suffix",
    "service_tier",
]

NANO = 10**9
"""Billionths in a dollar."""
MOST = 2**53
"""The most that one amount can be: nine million dollars. Lua counts exactly so far."""
BUCKETS_KEPT = 64
"""Models of one project whose highest cost is kept."""


def nano_usd(usd: float) -> int:
    """Return an amount of dollars in billionths, `MOST` at most."""
    return round(min(usd * NANO, MOST))


PRICED_TIERS = frozenset({"flex", "priority"})
"""Service tiers with a price of their own; a request in another one has the standard price."""
_LONGEST_TIER = 32


def service_tier(value: object) -> str | None:
    """Return a service tier as requests and responses name it: `FLEX` is `flex`; None for none."""
    name = value.strip().lower() if isinstance(value, str) else ""
    name = name.removeprefix("service_tier_")
    return None if name in ("", "unspecified") or len(name) > _LONGEST_TIER else name


def price_suffix(tier: str | None) -> str:
    """Return what is added to a model bucket to keep the costs of a service tier apart."""
    return f"/{tier}" if tier in PRICED_TIERS else ""


class Spending:
    """What one project has spent in the Pacific day, and what requests in flight may spend."""

    __slots__ = ("day_end", "highest", "reserved", "spent")

    def __init__(self) -> None:
        self.day_end = 0.0
        self.spent = 0
        self.highest: dict[str, int] = {}
        """The most that a request to each model bucket has cost today; see `price_suffix`."""
        self.reserved: dict[str, tuple[int, str]] = {}
        """What each request in flight may cost and the record of its key, by the id of its
        lease."""

    def advance(self, now: float) -> None:
        """Start the day of *now*; what is in flight stays reserved."""
        day_end = current_day_end(self.day_end, now)
        if day_end != self.day_end:
            self.day_end, self.spent = day_end, 0
            self.highest.clear()

    def expected(self, bucket: str, input_cost: int, longest_cost: int) -> int:
        """Return what a request may cost.

        Args:
            bucket: Its model bucket, and the `price_suffix` of its service tier.
            input_cost: What its input is estimated to cost.
            longest_cost: What it costs with the longest answer.
        """
        highest = self.highest.get(bucket)
        return longest_cost if highest is None else input_cost + highest

    def blocked_by(self, budget: int, expected: int, now: float) -> Block | None:
        """Return why a request that may cost *expected* must not be sent; call `advance` first."""
        if self.spent >= budget:
            return Block("usd", self.day_end)
        reserved = sum(amount for amount, _ in self.reserved.values())
        if self.reserved and self.spent + reserved + expected > budget:
            return Block("usd_reserved", now + PROBE_POLL_S, waitable=True)
        return None

    def settle(self, lease: str, bucket: str, cost: int | None, *, served: bool) -> None:
        """End the reservation of a request, and count what it cost; call `advance` first.

        Args:
            lease: The id of its lease.
            bucket: Its model bucket, and the `price_suffix` of the tier in which it was served.
            cost: None where it is not known: then nothing is counted.
            served: The request succeeded, so that a cost not known now will not be known later.
        """
        self.reserved.pop(lease, None)
        self.spent += cost or 0
        if cost is None and not served:
            return
        if bucket not in self.highest and len(self.highest) >= BUCKETS_KEPT:
            self.highest.clear()
        self.highest[bucket] = max(self.highest.get(bucket, 0), cost or 0)
