"""Minutes, days, cooldowns and budgets: the arithmetic that every state backend must agree with."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.pool import key

from keyrot_middleware.core.model import (
    DEFAULT_ZONE,
    NO_LIMITS,
    Block,
    Budget,
    Limits,
    Reported,
    Scope,
    Terms,
    nano_usd,
    service_tier,
)
from keyrot_middleware.core.windows import (
    Cooldown,
    QuotaWindows,
    Slot,
    Spending,
    next_midnight,
    next_month,
    scope_key,
    scope_keys,
)

NOON = datetime(2026, 1, 1, 12, 30, 30, tzinfo=UTC).timestamp()
MINUTE = NOON - 30
PACIFIC = ZoneInfo("America/Los_Angeles")


def at(*when: int) -> float:
    """Return the epoch seconds of a wall-clock time in the Pacific time zone."""
    return datetime(*when, tzinfo=PACIFIC).timestamp()  # type: ignore[arg-type, misc]


def rolled(now: float = NOON) -> QuotaWindows:
    quota = QuotaWindows()
    quota.advance(now, DEFAULT_ZONE)
    return quota


def use(quota: QuotaWindows, now: float, requests: int = 1, tokens: int = 0) -> Slot:
    quota.advance(now, DEFAULT_ZONE)
    return quota.reserve(requests, tokens, now)


@pytest.mark.parametrize(
    ("day", "hours"),
    [
        ((2026, 1, 15), 24),
        ((2026, 3, 8), 23),
        ((2026, 11, 1), 25),
        ((2026, 12, 31), 24),
        ((2028, 2, 29), 24),
    ],
)
def test_a_pacific_day_has_23_24_or_25_hours(day: tuple[int, int, int], hours: int) -> None:
    """Midnight follows Pacific time, on the days of daylight saving too."""
    begin = at(*day)
    assert next_midnight(begin, DEFAULT_ZONE) - begin == hours * 3600
    assert next_midnight(begin + hours * 3600 - 0.001, DEFAULT_ZONE) == begin + hours * 3600
    assert next_midnight(begin + hours * 3600, DEFAULT_ZONE) > begin + hours * 3600


@given(st.floats(0, 4e9, allow_nan=False))
def test_midnight_is_always_ahead_and_is_midnight(now: float) -> None:
    """At any time the next midnight is later, at most 25 hours, and its wall clock is 00:00."""
    midnight = next_midnight(now, DEFAULT_ZONE)
    local = datetime.fromtimestamp(midnight, PACIFIC)
    assert 0 < midnight - now <= 25 * 3600
    assert (local.hour, local.minute, local.second) == (0, 0, 0)


def test_a_month_ends_at_midnight_of_the_first_and_a_day_may_end_with_utc() -> None:
    """In December too."""
    for now, then in (((2026, 1, 15, 10), (2026, 2, 1)), ((2026, 12, 31, 23), (2027, 1, 1))):
        assert next_month(at(*now), DEFAULT_ZONE) == at(*then)
    noon = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()
    assert next_midnight(noon, "UTC") == noon + 43_200
    assert next_month(noon, "UTC") == noon + 43_200 + 4 * 86_400
    quota = QuotaWindows()
    quota.advance(noon, "UTC")
    assert quota.day_end == noon + 43_200


@pytest.mark.parametrize("later", [0, 10, 29, 29.5, 30.5, 31, 60, 90, 150, 10 * 60])
@pytest.mark.parametrize("booked", [0, 29.2, 30.7])
def test_a_correction_finds_its_minute(booked: float, later: float) -> None:
    """True tokens count in the minutes of the reservation, however late, not in later ones."""
    moment = NOON + booked
    quota, other = rolled(), rolled()
    slot = use(quota, moment, tokens=500)
    use(other, moment, tokens=20)
    after = max(moment, NOON + later)
    quota.advance(after, DEFAULT_ZONE)
    other.advance(after, DEFAULT_ZONE)
    quota.adjust(slot, 0, 20 - 500)
    assert (quota.tokens, quota.late_tokens) == (other.tokens, other.late_tokens)


def test_the_utilization_is_that_of_the_fullest_window() -> None:
    """Used ÷ limit of the fullest window; ÷ weight where no limit is known."""
    quota = rolled()
    use(quota, NOON, requests=2, tokens=300)
    assert quota.utilization(Limits(rpm=10, tpm=1_000, rpd=4), 1.0) == 0.5
    assert quota.utilization(Limits(tpm=1_000), 1.0) == 0.3
    assert quota.utilization(NO_LIMITS, 4.0) == 0.5
    assert quota.utilization(Limits(max_concurrency=9), 4.0) == 0.5


@pytest.mark.parametrize(("back", "kept"), [(60.0, 2), (120.0, 0), (3_600.0, 0)])
def test_a_clock_that_is_set_back_begins_a_new_minute(back: float, kept: int) -> None:
    """Nobody waits for a minute that lies in the future; a small step keeps what was counted."""
    quota = rolled()
    use(quota, NOON, requests=2)
    quota.advance(NOON - back, DEFAULT_ZONE)
    assert quota.requests == kept


# Cooldowns -------------------------------------------------------------------------------------


def test_the_backoff_has_no_overflow() -> None:
    """30, 60, 120 … 900 seconds, a thousand failures later too."""
    steps = [Cooldown(0.0, n - 1).escalate(1.0, 30.0, 900.0) for n in (1, 2, 6, 1_000)]
    assert steps == [30, 60, 900, 900]


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        (Scope.KEY, ("key:k", "key")),
        (Scope.KEY_VERB, ("key:k", "key_verb:v")),
        (Scope.KEY_MODEL, ("key:k", "key_model:m")),
        (Scope.PROJECT_MODEL, ("project:p", "project_model:m")),
        (Scope.PROJECT, ("project:p", "project")),
        (Scope.PROJECT_CACHE, ("project:p", "project_cache")),
        (Scope.BILLING, ("billing:b", "billing")),
    ],
)
def test_each_scope_has_a_name_that_blocks_the_key(scope: Scope, name: tuple[str, str]) -> None:
    """Selection checks every failure's cooldown; the cache's only for caches."""
    named = scope_key(scope, record="k", project="p", billing_account="b", bucket="m", verb="v")
    candidate = key("k", project="p", billing_account="b")
    assert named == name
    assert (named in scope_keys(candidate, "m", "v")) == (scope is not Scope.PROJECT_CACHE)
    assert ("project:p", "project_cache") in scope_keys(candidate, "m", "cachedContents")


# Money -----------------------------------------------------------------------------------------


def test_a_request_reserves_the_highest_cost_of_the_day() -> None:
    """The longest answer before the first, and at most; only one request may exceed the budget."""
    spending, budget = Spending(), Budget(day=10)
    spending.advance(NOON, DEFAULT_ZONE)
    assert spending.expected(1, 6) == 6
    spending.book(3)
    assert (spending.expected(1, 6), spending.expected(5, 9), spending.expected(1, 2)) == (3, 5, 2)
    assert spending.blocked_by(budget, 8, NOON) is None
    spending.reserved = 3
    assert spending.blocked_by(budget, 4, NOON) is None
    block = spending.blocked_by(budget, 5, NOON)
    assert block is not None
    assert (block.reason, block.waitable) == ("usd_reserved", True)
    spending.book(7)
    assert spending.blocked_by(budget, 0, NOON) == Block("usd", spending.day_end)
    assert spending.blocked_by(Budget(month=10), 0, NOON) == Block("usd_month", spending.month_end)
    spending.advance(spending.day_end, DEFAULT_ZONE)
    assert (spending.spent, spending.highest) == ((0, 0, 10), 0)
    assert spending.blocked_by(budget, 9, NOON) is None
    spending.advance(spending.month_end, DEFAULT_ZONE)
    assert spending.spent == (0, 0, 0)


def test_ten_minutes_slide_in_twenty_slots() -> None:
    """What was spent counts for ten minutes, and for half a minute more at the most."""
    spending, budget, noon = Spending(), Budget(ten_minutes=10), NOON // 30 * 30
    for later, amount in ((29.9, 4), (30.0, 5), (200.0, 2)):
        spending.advance(noon + later, DEFAULT_ZONE)
        spending.book(amount)
    block = spending.blocked_by(budget, 0, noon + 200)
    assert block == Block("usd_10m", noon + 630, waitable=True)
    spending.advance(noon + 629, DEFAULT_ZONE)
    assert spending.spent.ten_minutes == 11
    spending.advance(block.until, DEFAULT_ZONE)
    assert spending.spent.ten_minutes == 7
    spending.advance(noon + 620, DEFAULT_ZONE)
    assert spending.spent.ten_minutes == 7, "a clock that steps back gives nothing back"
    spending.advance(noon - 86_400, DEFAULT_ZONE)
    assert spending.spent.ten_minutes == 0, "nor does one that was a day ahead block a day"


def test_a_budget_that_requests_under_way_may_spend_is_not_called_spent() -> None:
    notes = [Terms("night").note("usd", reason) for reason in ("usd", "usd_reserved")]
    assert notes[0] == "the budget of the day of night is spent"
    assert notes[1] == "requests under way may spend the rest of a budget of night"


def test_dollars_are_counted_in_billionths() -> None:
    """So that sums are exact; no amount is larger than every store can count."""
    assert nano_usd(0.1) + nano_usd(0.2) == nano_usd(0.3) == 300_000_000
    assert nano_usd(1e308) == nano_usd(1e12) == 2**53


def test_a_service_tier_has_one_spelling() -> None:
    """Requests and responses name it in any case, or in full; what is no short name is none."""
    assert {service_tier(text) for text in (" Flex ", "FLEX", "SERVICE_TIER_FLEX")} == {"flex"}
    assert [service_tier(odd) for odd in ("", "unspecified", None, 7, "x" * 33)] == [None] * 5


def test_a_limit_that_refills_all_the_time() -> None:
    """What a minute uses drains in the next one; a limit of 0 has room at no time."""
    begin = NOON - NOON % 60 + 1.0
    quota, limits = QuotaWindows(), Limits(rpm=60, tpm=600)
    quota.advance(begin, DEFAULT_ZONE)
    assert quota.blocked_by(Limits(rpm=0), 1, 0, begin) == Block("rpm", begin + 60, waitable=True)
    assert quota.blocked_by(Limits(rpm=9), 99, 0, begin) is None  # the first always fits
    quota.reserve(60, 100, begin + 30, steady=True)
    assert quota.blocked_by(limits, 1, 0, begin + 40) == Block("rpm", begin + 61, waitable=True)
    quota.advance(begin + 60, DEFAULT_ZONE)
    assert quota.blocked_by(limits, 2, 0, begin + 61) == Block("rpm", begin + 62, waitable=True)
    assert quota.blocked_by(limits, 1, 501, begin + 60).reason == "rpm"  # type: ignore[union-attr]
    assert quota.blocked_by(limits, 2, 0, begin + 62) is None
    assert quota.blocked_by(Limits(tpm=600), 1, 510, begin + 60) == Block(
        "tpm", begin + 61, waitable=True
    )


def test_what_the_service_has_counted_is_counted_here() -> None:
    """If it is more: of other programs, or before this one started."""
    begin = NOON - NOON % 60 + 1.0
    quota = QuotaWindows()
    quota.advance(begin, DEFAULT_ZONE)
    quota.sync(Reported("rpm", None, 3), begin)
    quota.sync(Reported("rpm", 10), begin)
    assert quota.requests == 0
    for name, left in (("rpm", 4), ("tpm", 30), ("rpd", 7), ("rpm", 9), ("tpm", 90), ("rpd", 9)):
        quota.sync(Reported(name, 100 if name == "tpm" else 10, left), begin)  # type: ignore[arg-type]
    assert (quota.requests, quota.late_requests) == (6, 6)
    assert (quota.tokens, quota.late_tokens, quota.day_requests) == (70, 70, 3)


def test_what_others_use_of_their_part_is_not_counted_here() -> None:
    """Of a limit of 10 of which half is the pool's, others have 5."""
    for left, used in ((10, 0), (6, 0), (5, 0), (2, 3), (0, 5)):
        quota = QuotaWindows()
        quota.sync(Reported("rpd", 10, left).for_part(0.5), NOON)
        assert quota.day_requests == used
    for one in (Reported("rpd", None, 3), Reported("rpd", 10), Reported("rpd", 10, 4)):
        assert one.for_part(0.5 if one.left is None or one.of is None else 1.0) == one


def test_nothing_is_kept_for_first_calls_without_tokens() -> None:
    """Although others use more of a limit than a minute has, since it refills all the time."""
    first = QuotaWindows(7, rest=(9.0, 3.0, 0.0))
    quota = QuotaWindows(7, requests=1, tokens=200)
    assert not [*first.held_back(quota, Limits(tpm=100), 1, 50, 7 * 60 + 30.0)]
