"""Minutes and Pacific days: the arithmetic that every state backend must agree with."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.moments import MINUTE, NOON, PACIFIC, at

from keyrot_middleware.core.model import NO_LIMITS, Block, Limits
from keyrot_middleware.core.windows import (
    DAY_S,
    GUARD_S,
    Cooldown,
    QuotaWindows,
    Slot,
    next_minute,
    next_pacific_midnight,
    next_pacific_month,
)


def rolled(now: float = NOON) -> QuotaWindows:
    """Make a quota whose windows are those of *now*."""
    quota = QuotaWindows()
    quota.advance(now)
    return quota


def use(quota: QuotaWindows, now: float, requests: int = 1, tokens: int = 0) -> Slot:
    """Reserve at *now*."""
    return quota.reserve(requests, tokens, near_boundary=quota.advance(now))


def room(quota: QuotaWindows, limits: Limits, now: float, tokens: int = 0) -> str | None:
    """Check the room at *now*; return the window that has none."""
    near_boundary = quota.advance(now)
    block = quota.blocked_by(limits, 1, tokens, near_boundary=near_boundary)
    return block.reason if block else None


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
    assert next_pacific_midnight(begin) - begin == hours * 3600
    assert next_pacific_midnight(begin + hours * 3600 - 0.001) == begin + hours * 3600
    assert next_pacific_midnight(begin + hours * 3600) > begin + hours * 3600


@given(st.floats(0, 4e9, allow_nan=False))
def test_midnight_is_always_ahead_and_is_midnight(now: float) -> None:
    """At any time the next midnight is later, at most 25 hours, and its wall clock is 00:00."""
    midnight = next_pacific_midnight(now)
    local = datetime.fromtimestamp(midnight, PACIFIC)
    assert 0 < midnight - now <= 25 * 3600
    assert (local.hour, local.minute, local.second) == (0, 0, 0)


@pytest.mark.parametrize(
    ("now", "then"),
    [
        ((2026, 1, 15, 10), (2026, 2, 1)),
        ((2026, 12, 31, 23), (2027, 1, 1)),
        ((2026, 10, 31, 23), (2026, 11, 1)),
    ],
)
def test_a_pacific_month_ends_at_midnight_of_the_first(
    now: tuple[int, ...], then: tuple[int, ...]
) -> None:
    """A spending cap's month ends at midnight Pacific time, in December too."""
    assert next_pacific_month(at(*now)) == at(*then)


@pytest.mark.parametrize(
    ("now", "then"), [(MINUTE, 61), (MINUTE + 0.5, 61), (MINUTE + 59.9, 61), (MINUTE + 60, 121)]
)
def test_the_next_minute_begins_a_guard_after_the_edge(now: float, then: float) -> None:
    """A second later the new minute has begun on Google's clock as well."""
    assert next_minute(now) == MINUTE + then


@pytest.mark.parametrize(
    ("second", "counts_in"),
    [(0.5, (-1, 0)), (1.0, (0,)), (30, (0,)), (58.9, (0,)), (59.0, (0, 1)), (59.9, (0, 1))],
)
def test_near_an_edge_a_request_counts_in_both_minutes(
    second: float, counts_in: tuple[int, ...]
) -> None:
    """Within a second of the edge it is unknown which minute Google counts it in."""
    minute, near_boundary, _ = use(rolled(MINUTE - 90), MINUTE + second)
    first = int(minute - MINUTE // 60)
    assert ((first, first + 1) if near_boundary else (first,)) == counts_in


def test_a_full_minute_is_over_a_guard_after_its_edge() -> None:
    """RPM 2 reserved mid-minute is released at the next edge plus the guard, not at the edge."""
    quota, limits = rolled(), Limits(rpm=2)
    use(quota, NOON)
    assert room(quota, limits, NOON) is None
    use(quota, NOON)
    block = quota.blocked_by(limits, 1, 0, near_boundary=quota.advance(NOON))
    assert block == Block("rpm", MINUTE + 60 + GUARD_S, waitable=True)
    assert room(quota, limits, MINUTE + 60.5) == "rpm"
    assert room(quota, limits, MINUTE + 61) is None


def test_at_an_edge_the_next_minute_needs_room_too() -> None:
    """A reservation in the next minute keeps the edge full until the minute after it."""
    quota, limits = rolled(), Limits(rpm=1)
    use(quota, MINUTE + 59.5)
    assert quota.blocked_by(limits, 1, 0, near_boundary=quota.advance(MINUTE + 59.6)) == Block(
        "rpm", MINUTE + 121, waitable=True
    )
    assert room(quota, limits, MINUTE + 100) == "rpm"
    assert room(quota, limits, MINUTE + 121) is None


def test_tokens_have_a_window_of_their_own() -> None:
    """TPM blocks by the request's own tokens, at an edge in both minutes."""
    quota, limits = rolled(), Limits(rpm=100, tpm=1_000)
    use(quota, NOON, tokens=900)
    assert room(quota, limits, NOON, tokens=100) is None
    assert room(quota, limits, NOON, tokens=101) == "tpm"
    use(quota, MINUTE + 119.5, tokens=950)
    assert room(quota, limits, MINUTE + 119.6, tokens=51) == "tpm"
    assert room(quota, limits, MINUTE + 121, tokens=51) == "tpm"
    assert room(quota, limits, MINUTE + 121, tokens=50) is None


def test_a_request_larger_than_the_limit_goes_into_an_empty_window_only() -> None:
    """The estimate may be wrong, so Google decides; but never on top of others."""
    quota, limits = rolled(), Limits(tpm=100)
    assert room(quota, limits, NOON, tokens=500) is None
    use(quota, NOON, tokens=1)
    assert room(quota, limits, NOON, tokens=500) == "tpm"
    assert room(rolled(), Limits(rpm=0), NOON) == "rpm"


def test_the_day_ends_at_pacific_midnight_and_is_not_waited_for() -> None:
    """RPD counts from midnight to midnight Pacific time; its end is not waitable."""
    begin = at(2026, 3, 8)
    quota, limits = rolled(begin), Limits(rpd=1)
    use(quota, begin + 5)
    block = quota.blocked_by(limits, 1, 0, near_boundary=quota.advance(begin + 3_600))
    assert block == Block("rpd", begin + 23 * 3_600, waitable=False)
    assert room(quota, limits, begin + 23 * 3_600 - 1) == "rpd"
    assert room(quota, limits, begin + 23 * 3_600) is None


def test_learned_limits_beat_configured_ones_for_a_day() -> None:
    """Learned limits apply, the others as configured, and after a day all as configured."""
    quota, configured = rolled(), Limits(rpm=100, tpm=9_000, rpd=50, max_concurrency=3)
    assert quota.limits(configured) is configured
    quota.learn(Limits(rpm=5), NOON)
    quota.learn(Limits(tpm=250), NOON + 60)
    assert quota.limits(configured) == Limits(5, 250, 50, 3)
    quota.learn(Limits(rpd=20), NOON + 120)
    assert quota.limits(configured) == Limits(5, 250, 20, 3)
    quota.advance(NOON + 119 + DAY_S)
    assert quota.limits(configured) == Limits(5, 250, 20, 3)
    quota.advance(NOON + 120 + DAY_S)
    assert quota.limits(configured) is configured


@pytest.mark.parametrize("second", [10, 30.5, 58])
def test_learned_limits_end_in_the_middle_of_a_minute_too(second: float) -> None:
    """A read a moment before, when no window was about to end, does not keep it."""
    quota, ends = rolled(), NOON + second + DAY_S
    quota.learn(Limits(rpm=5), NOON + second)
    quota.advance(ends - 1)
    assert quota.learned == Limits(rpm=5)
    quota.advance(ends)
    assert quota.learned == NO_LIMITS


def test_learning_after_the_day_starts_afresh() -> None:
    """A limit that has expired does not come back with the next learned one."""
    quota = rolled()
    quota.learn(Limits(rpm=5), NOON)
    quota.learn(Limits(rpd=20), NOON + DAY_S)
    assert quota.learned == Limits(rpd=20)


@pytest.mark.parametrize("later", [0, 10, 29, 29.5, 30.5, 31, 60, 90, 150, 10 * 60])
@pytest.mark.parametrize("booked", [0, 29.2, 30.7])
def test_a_correction_finds_its_minute(booked: float, later: float) -> None:
    """True tokens count in the minutes of the reservation, however late, not in later ones."""
    moment = NOON + booked
    quota, other = rolled(), rolled()
    slot = use(quota, moment, tokens=500)
    use(other, moment, tokens=20)
    after = max(moment, NOON + later)
    quota.advance(after)
    other.advance(after)
    quota.adjust(slot, 0, 20 - 500)
    assert (quota.tokens, quota.tokens_next) == (other.tokens, other.tokens_next)


def test_a_correction_does_not_touch_another_day() -> None:
    """A request released after midnight changes nothing of the new day."""
    begin = at(2026, 1, 16)
    quota = rolled(begin - 3_600)
    slot = use(quota, begin - 3_600)
    use(quota, begin + 10)
    quota.adjust(slot, -1, 0)
    assert quota.day_requests == 1


def test_the_utilization_is_that_of_the_fullest_window() -> None:
    """Used ÷ limit of the fullest window; ÷ weight where no limit is known."""
    quota = rolled()
    use(quota, NOON, requests=2, tokens=300)
    assert quota.utilization(Limits(rpm=10, tpm=1_000, rpd=4), 1.0) == 0.5
    assert quota.utilization(Limits(tpm=1_000), 1.0) == 0.3
    assert quota.utilization(NO_LIMITS, 4.0) == 0.5
    assert quota.utilization(Limits(max_concurrency=9), 4.0) == 0.5


def test_a_quota_expires_after_its_day_and_its_learned_limits() -> None:
    """A record may be dropped when no window of it counts and no learned limit applies."""
    begin = at(2026, 1, 16)
    quota = rolled(begin - 0.5)
    assert quota.expires_at > begin
    assert quota.expires_at <= begin + 61
    quota.learn(Limits(rpm=5), begin)
    assert quota.expires_at > begin + 61
    assert quota.expires_at <= begin + DAY_S


# Clocks that step back -------------------------------------------------------------------------


@pytest.mark.parametrize("back", [121, 3_600, 3 * 86_400])
def test_a_minute_that_lies_in_the_future_is_dropped(back: float) -> None:
    """A clock that steps back leaves nothing full, nor a learned limit for longer than a day."""
    quota, limits = rolled(), Limits(rpm=1, rpd=9)
    quota.learn(Limits(tpm=600), NOON)
    use(quota, NOON)
    assert room(quota, limits, NOON) == "rpm"
    assert room(quota, limits, NOON - back) is None
    quota.advance(NOON - back + DAY_S)
    assert quota.learned == NO_LIMITS


def test_a_day_that_lies_in_the_future_is_dropped() -> None:
    """Across midnight Pacific time; within the day its count stays."""
    midnight = next_pacific_midnight(NOON)
    quota, limits = rolled(midnight + 600), Limits(rpd=1)
    use(quota, midnight + 600)
    assert room(quota, limits, midnight + 300) == "rpd"
    assert room(quota, limits, midnight - 3_000) is None
    assert quota.day_end == midnight


def test_a_small_step_back_keeps_what_was_counted() -> None:
    """After half a minute back, recent requests still count, until their minute ends."""
    quota, limits = rolled(), Limits(rpm=1)
    use(quota, NOON)
    assert room(quota, limits, NOON - 40) == "rpm"
    assert room(quota, limits, MINUTE + 61) is None


def test_a_cooldown_that_lies_in_the_future_is_over() -> None:
    """Its length and one minute more is as long as it may last on a clock that stepped back."""
    rest = Cooldown()
    rest.extend("quota_minute", NOON + 20, waitable=True, now=NOON)
    for now, runs in ((NOON, True), (NOON - 60, True), (NOON - 61, False), (NOON + 20, False)):
        assert (rest.is_active(now), rest.blocked_by(now) is not None) == (runs, runs)
    rest.extend("quota_minute", NOON - 3_580, waitable=True, now=NOON - 3_600)
    assert rest.until == NOON - 3_580


def test_no_count_falls_below_zero_after_a_clock_that_was_set_back() -> None:
    """A request that is given back where its windows began anew leaves no extra room."""
    quota = rolled()
    slot = use(quota, NOON, requests=2, tokens=50)
    quota.advance(NOON + 2 * DAY_S)
    quota.advance(NOON)
    quota.adjust(slot, -2, -50)
    assert (quota.requests, quota.tokens, quota.day_requests) == (0, 0, 0)
