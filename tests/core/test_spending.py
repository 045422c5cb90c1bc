"""A project's spending of its budget: reservations, true costs, the day."""

from __future__ import annotations

from keyrot_middleware.core.model import Block
from keyrot_middleware.core.spending import (
    BUCKETS_KEPT,
    Spending,
    nano_usd,
    price_suffix,
    service_tier,
)
from keyrot_middleware.core.windows import next_pacific_midnight

NOW = 1_767_270_630.0
MIDNIGHT = next_pacific_midnight(NOW)
BUDGET = 100


def opened() -> Spending:
    """Return the spending of a day that has begun."""
    spending = Spending()
    spending.advance(NOW)
    return spending


def test_a_request_reserves_its_highest_cost() -> None:
    """Before the first has ended the longest answer, then the most that one has cost."""
    spending = opened()
    assert spending.expected("m", 5, 60) == 60
    spending.settle("a1", "m", 20, served=True)
    spending.settle("a2", "m", 10, served=True)
    assert spending.expected("m", 5, 60) == 25
    assert spending.expected("n", 5, 60) == 60
    assert spending.spent == 30
    spending.advance(NOW + 1)
    assert spending.spent == 30


def test_only_one_request_may_exceed_the_budget() -> None:
    """Requests in flight count together with what is spent."""
    spending = opened()
    spending.spent = 99
    assert spending.blocked_by(BUDGET, 60, NOW) is None
    spending.reserved["a1"] = 60, "a"
    block = spending.blocked_by(BUDGET, 0, NOW)
    assert block == Block("usd_reserved", NOW + 0.1, waitable=True)
    spending.settle("a1", "m", 50, served=True)
    assert spending.blocked_by(BUDGET, 0, NOW) == Block("usd", MIDNIGHT)


def test_several_requests_are_sent_at_once_while_they_fit() -> None:
    """A request that exactly uses up the rest fits."""
    spending = opened()
    spending.reserved["a1"] = 40, "a"
    assert spending.blocked_by(BUDGET, 60, NOW) is None
    assert spending.blocked_by(BUDGET, 61, NOW) is not None


def test_a_failure_does_not_change_the_expected_cost() -> None:
    """A success without a known cost does: it stays unknown."""
    spending = opened()
    spending.reserved["a1"] = 60, "a"
    spending.settle("a1", "m", None, served=False)
    assert (spending.reserved, spending.highest) == ({}, {})
    spending.settle("a2", "m", None, served=True)
    assert spending.expected("m", 0, 60) == 0


def test_midnight_starts_a_new_day() -> None:
    """Requests in flight stay reserved."""
    spending = opened()
    spending.settle("a1", "m", 100, served=True)
    spending.reserved["a2"] = 60, "a"
    spending.advance(MIDNIGHT)
    assert (spending.spent, spending.highest, spending.reserved) == (0, {}, {"a2": (60, "a")})


def test_models_are_kept_in_bounded_number() -> None:
    """A program may invent any number of models."""
    spending = opened()
    for number in range(BUCKETS_KEPT + 1):
        spending.settle(("a", number), f"m{number}", 1, served=True)
    assert len(spending.highest) == 1
    assert spending.spent == BUCKETS_KEPT + 1


def test_dollars_are_counted_in_billionths() -> None:
    """So that sums are exact."""
    assert nano_usd(0.1) + nano_usd(0.2) == nano_usd(0.3) == 300_000_000


def test_an_amount_is_a_number_that_every_store_can_count() -> None:
    """No budget and no cost is larger, such as that of a response with absurd counts."""
    assert nano_usd(1e308) == nano_usd(1e12) == 2**53
    assert nano_usd(1_000_000.0) == 10**15


def test_a_service_tier_has_one_spelling() -> None:
    """Requests and responses name it in any case, or in full; what is no short name is none."""
    assert {service_tier(text) for text in (" Flex ", "FLEX", "SERVICE_TIER_FLEX")} == {"flex"}
    assert [service_tier(odd) for odd in ("", "unspecified", None, 7, "x" * 33)] == [None] * 5


def test_only_tiers_with_a_price_of_their_own_are_kept_apart() -> None:
    """Names that a program or a server invents do not fill the record."""
    assert price_suffix("priority") != price_suffix("flex") != ""
    assert {price_suffix(tier) for tier in (None, "", "standard", "deferred")} == {""}
