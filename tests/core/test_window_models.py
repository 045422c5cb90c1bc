"""The three models of a minute: none ever permits more than its kind of window holds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.moments import MINUTE, NOON

from keyrot_middleware.core.model import Limits
from keyrot_middleware.core.windows import (
    DAY_S,
    Cooldown,
    QuotaWindows,
    RefusedRequest,
    SlidingWindow,
    TokenBucket,
)

KINDS = ("minute", "sliding", "bucket")


def quota_of(kind: str, now: float = NOON) -> QuotaWindows:
    """Make an empty quota that counts by this model."""
    quota = QuotaWindows()
    if kind != "minute":
        quota.window = SlidingWindow() if kind == "sliding" else TokenBucket(now, 0.0, 0.0)
        quota.window_until = now + DAY_S
    quota.advance(now)
    return quota


def reserve(
    quota: QuotaWindows, limits: Limits, now: float, requests: int = 1, tokens: int = 0
) -> Any:
    """Reserve if there is room, and return the slot; otherwise return the block."""
    near_boundary = quota.advance(now)
    block = quota.blocked_by(limits, requests, tokens, near_boundary=near_boundary)
    return block or quota.reserve(requests, tokens, now, limits, near_boundary=near_boundary)


def let_through(kind: str, limits: Limits, at: list[float], tokens: int = 0) -> list[int]:
    """Send ten requests at each of these times after 12:00:30; return how many had room."""
    quota, counts = quota_of(kind), []
    for second in at:
        replies = [reserve(quota, limits, NOON + second, tokens=tokens) for _ in range(10)]
        counts.append(sum(type(reply) is tuple for reply in replies))
    return counts


@pytest.mark.parametrize("tokens", [0, 100])
@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("minute", [6, 0, 6, 0, 0, 6]),
        ("sliding", [6, 0, 0, 0, 6, 0]),
        ("bucket", [5, 2, 2, 2, 1, 3]),
    ],
)
def test_a_limit_of_six_by_each_model(kind: str, counts: list[int], tokens: int) -> None:
    """At 0, 14, 32, 56, 62 and 93 s after :30, by requests and by tokens alike."""
    limits = Limits(tpm=600) if tokens else Limits(rpm=6)
    assert let_through(kind, limits, [0, 14, 32, 56, 62, 93], tokens) == counts


STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 0.9, 1.0, 1.7, 3.0, 11.5, 30.0, 59.0, 61.0, 200.0]),
        st.integers(1, 3),
        st.sampled_from([0, 10, 40, 100, 130]),
    ),
    max_size=80,
)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=STEPS, rpm=st.integers(3, 9))
def test_no_model_lets_more_through_than_its_window_holds(
    kind: str, steps: list[tuple[float, int, int]], rpm: int
) -> None:
    """Whatever is sent when; and at the time of a refusal's `until` there is room."""
    limits, now = Limits(rpm=rpm, tpm=100), NOON
    quota, sent = quota_of(kind), list[tuple[float, int, int]]()
    for later, requests, tokens in steps:
        now += later
        reply = reserve(quota, limits, now, requests, tokens)
        if type(reply) is tuple:
            sent.append((now, requests, tokens))
        else:
            assert now < reply.until <= now + 62 + 60
            waited = copy_of(quota)
            near_boundary = waited.advance(reply.until)
            again = waited.blocked_by(limits, requests, tokens, near_boundary=near_boundary)
            assert again is None or again.reason != reply.reason or kind == "minute"
    for place, limit in ((1, rpm), (2, 100)):
        counted = [(event[0], event[place]) for event in sent if event[place] <= limit]
        oversize = [event for event in sent if event[place] > limit]
        assert holds(kind, counted, limit) or oversize


def copy_of(quota: QuotaWindows) -> QuotaWindows:
    """Copy the fields that decide."""
    made = QuotaWindows()
    for name in (*QuotaWindows.__slots__, *QuotaWindows.__mro__[1].__slots__):  # type: ignore[attr-defined]  # a class of ours
        setattr(made, name, getattr(quota, name))
    if isinstance(quota.window, SlidingWindow):
        made.window = SlidingWindow(quota.window.cells)
    elif isinstance(quota.window, TokenBucket):
        window = quota.window
        made.window = TokenBucket(
            window.at, window.requests_used, window.tokens_used, window.rpm, window.tpm
        )
    return made


def holds(kind: str, sent: list[tuple[float, int]], limit: int) -> bool:
    """Return whether a server with such a window, whose clock is right, refuses none of these."""
    for first in range(len(sent)):
        total = 0
        for at, count in sent[first:]:
            lasted = at - sent[first][0]
            total += count
            if kind == "sliding" and lasted < 60 and total > limit:
                return False
            if kind == "bucket" and total > limit + limit * lasted / 60 + 1e-6:
                return False
            if kind == "minute" and at // 60 == sent[first][0] // 60 and total > limit:
                return False
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_releases_room(kind: str) -> None:
    """A request that was not sent, or had fewer tokens, is corrected where it was recorded."""
    limits, quota = Limits(rpm=10, tpm=600), quota_of(kind)
    wheres = [reserve(quota, limits, NOON + i / 10, tokens=145) for i in range(4)]
    assert reserve(quota, limits, NOON + 1, tokens=145).reason == "tpm"
    quota.adjust(wheres[2], -1, -145)
    assert type(reserve(quota, limits, NOON + 1, tokens=145)) is tuple
    quota.adjust(wheres[0], 0, 20 - 145)
    quota.advance(NOON + 1)
    assert quota.used == (4, 455 if kind != "bucket" else 445)
    quota.advance(NOON + 200)
    quota.adjust(wheres[1], 0, -145)
    assert quota.used == (0, 0)


@pytest.mark.parametrize("kind", ["sliding", "bucket"])
def test_a_request_larger_than_the_limit_goes_alone(kind: str) -> None:
    """It waits until nothing is used; with a limit of 0 there is never room."""
    limits, quota = Limits(tpm=600), quota_of(kind)
    reserve(quota, limits, NOON, tokens=60)
    block = reserve(quota, limits, NOON, tokens=700)
    assert block.until == pytest.approx(NOON + (61 if kind == "sliding" else 6), abs=0.01)
    assert type(reserve(quota, limits, block.until, tokens=700)) is tuple
    none = quota_of(kind)
    assert reserve(none, Limits(rpm=0), NOON).until >= NOON + 60
    assert type(reserve(none, Limits(rpm=0), NOON, requests=0)) is tuple


def test_a_bucket_without_a_known_limit_empties_within_a_minute() -> None:
    """For display only: nothing is blocked by it."""
    quota = quota_of("bucket")
    reserve(quota, Limits(rpm=10), NOON, tokens=600)
    quota.advance(NOON + 30)
    assert quota.used == (0, 300)
    quota.advance(NOON + 60)
    assert quota.used == (0, 0)


def test_a_sliding_window_keeps_few_records() -> None:
    """Of a thousand requests a minute no more than 32, none longer than it may count."""
    quota, limits = quota_of("sliding"), Limits(rpm=1_000)
    for i in range(3_000):
        reserve(quota, limits, NOON + i * 0.07)
        assert isinstance(quota.window, SlidingWindow)
        assert len(quota.window.cells) <= 32
    sent = [at for at, _, _ in quota.window.cells]
    assert all(a < b for a, b in pairwise(sent))


# How the model is chosen -----------------------------------------------------------------------


def refused_at(
    quota: QuotaWindows,
    at: float,
    delay: float | None,
    rpm: int | None = 10,
    tokens: int = 0,
    answered: float = 0.1,
) -> str:
    """Let the server refuse a request; return the model that is chosen."""
    near_boundary = quota.advance(at)
    slot = quota.reserve(1, tokens, at, near_boundary=near_boundary)
    limits = Limits(rpm=rpm) if rpm is not None else Limits(tpm=1_000)
    quota.learn(limits, at + answered)
    quota.learn_window(RefusedRequest(at, slot[0], 1, tokens, limits, delay), at + answered)
    return kind_of(quota)


def kind_of(quota: QuotaWindows) -> str:
    """Return the model's name."""
    return {None: "minute", SlidingWindow: "sliding", TokenBucket: "bucket"}[
        type(quota.window) if quota.window is not None else None
    ]


def busy(requests: int = 10, at: float = NOON, tokens: int = 0) -> QuotaWindows:
    """Make a quota with so much sent at once in this minute."""
    quota = quota_of("minute", at)
    for _ in range(requests):
        quota.reserve(1, tokens, at, near_boundary=quota.advance(at))
    return quota


@pytest.mark.parametrize(
    ("quota", "at", "delay", "kind"),
    [
        # Full by our count, and the minute's end is named: as the clock's model has it.
        (busy(), NOON + 5, 25.0, "minute"),
        (busy(), NOON + 5, 23.6, "minute"),
        # Not full by our count: others have used it, for the minute's end is named.
        (busy(3), NOON + 5, 25.0, "minute"),
        # Not full, and what we sent in the minute before says why.
        (busy(10, NOON + 28), NOON + 31.5, 57.0, "sliding"),
        # Not full, and the time named is that of a sliding window.
        (busy(), NOON + 31, 29.0, "sliding"),
        # Full, but the time named is that of a sliding window.
        (busy(), NOON + 1, 59.0, "sliding"),
        # What is named is a fraction of that.
        (busy(), NOON + 1, 5.0, "bucket"),
        (busy(), NOON + 31, 4.0, "bucket"),
        # A fraction, and yet too long for a bucket of such a limit.
        (busy(), NOON + 1, 20.0, "sliding"),
        # A fraction, but others have used it: we have sent less than the limit.
        (busy(3), NOON + 1, 5.0, "sliding"),
        (busy(0), NOON + 1, 5.0, "sliding"),
        # It is that of either: the one that is safe with both.
        (busy(10, NOON - 25), NOON + 20, 6.0, "sliding"),
        # No time is named: the count alone decides.
        (busy(), NOON + 1, None, "minute"),
        (busy(9), NOON + 1, None, "sliding"),
        # Longer than any window of a minute.
        (busy(), NOON + 31, 100.0, "minute"),
    ],
)
def test_a_refusal_chooses_the_model(
    quota: QuotaWindows, at: float, delay: float | None, kind: str
) -> None:
    """By the counts, and by the delay that the server names."""
    assert refused_at(copy_of(quota), at, delay) == kind


def test_a_late_answer_may_count_its_time_from_the_request() -> None:
    """Google names the minute's end as of the request, and may answer eleven seconds later."""
    assert refused_at(busy(), NOON + 5, 25.0, answered=11.0) == "minute"


def test_a_refusal_of_another_minute_without_a_delay_is_ignored() -> None:
    """The counts at the time of its reservation are no longer known."""
    assert refused_at(busy(3), NOON + 20, None, answered=30.0) == "minute"


def test_more_than_a_sliding_window_holds_means_a_bucket() -> None:
    """Half a limit was served beyond the last minute's, then a short delay named."""
    quota = busy(10, NOON)
    for _ in range(6):
        reserve(quota, Limits(rpm=10), NOON + 55)
    assert refused_at(quota, NOON + 55.2, 2.0) == "bucket"
    few = busy(10, NOON)
    reserve(few, Limits(rpm=10), NOON + 55)
    assert refused_at(few, NOON + 55.2, 2.0) == "sliding"


def test_tokens_choose_the_model_as_requests_do() -> None:
    """A refusal for input tokens is judged by tokens; a bucket has room at the named time."""
    quota = busy(5, tokens=200)
    assert refused_at(quota, NOON + 31, 5.0, rpm=None, tokens=200) == "bucket"
    limits = Limits(tpm=1_000)
    block = reserve(quota, limits, NOON + 32, tokens=200)
    assert block.until == pytest.approx(NOON + 31.1 + 5, abs=0.1)
    assert type(reserve(quota, limits, block.until, tokens=200)) is tuple
    other = busy(4, tokens=200)
    assert refused_at(other, NOON + 1, None, rpm=None, tokens=200) == "sliding"


def test_a_sliding_window_begins_with_what_was_sent_before() -> None:
    """Ten at :30 and three at :01 count for 61 s each, and not longer."""
    quota = busy()
    for _ in range(3):
        reserve(quota, Limits(rpm=10), NOON + 31)
    assert refused_at(quota, NOON + 31, 29.0) == "sliding"
    assert quota.used == (14, 0)
    quota.advance(NOON + 62.5)
    assert quota.used == (4, 0)


def test_a_sliding_window_turns_into_a_bucket_and_back() -> None:
    """When the named delays are a fraction of its own, or longer than a bucket's can be."""
    quota = quota_of("sliding")
    for _ in range(9):
        reserve(quota, Limits(rpm=10), NOON)
    assert refused_at(quota, NOON + 1, 59.0) == "sliding"
    assert refused_at(quota, NOON + 3, 5.0) == "bucket"
    assert refused_at(quota, NOON + 9, 3.0) == "bucket"
    assert refused_at(quota, NOON + 20, 30.0) == "sliding"
    block = reserve(quota, Limits(rpm=10), NOON + 21)
    assert block.until == pytest.approx(NOON + 50.1)


def test_a_sliding_window_with_room_stays_one() -> None:
    """Others use the same project: the named delay is no fraction of our counts."""
    assert refused_at(quota_of("sliding"), NOON + 1, 5.0) == "sliding"


@pytest.mark.parametrize("kind", ["sliding", "bucket"])
def test_a_model_ends_a_day_after_the_last_refusal_that_confirmed_it(kind: str) -> None:
    """Then the clock's minute is assumed again; a delay to a minute's end renews nothing."""
    quota, delay = busy(), 29.0 if kind == "sliding" else 4.0
    assert refused_at(quota, NOON + 31, delay) == kind
    quota.advance(NOON + DAY_S / 2)
    assert refused_at(quota, NOON + DAY_S / 2, 30.0) == kind
    assert refused_at(quota, NOON + DAY_S / 2, None) == kind
    assert not quota.is_expired(NOON + DAY_S)
    quota.advance(NOON + 31 + DAY_S)
    assert kind_of(quota) == kind
    quota.advance(NOON + 31.2 + DAY_S)
    assert kind_of(quota) == "minute"
    assert quota.is_expired(NOON + 3 * DAY_S)


def test_a_correction_finds_its_record_in_a_window_and_not_in_a_later_bucket() -> None:
    """The second of two records; a reservation by another model is left as it is."""
    limits, quota = Limits(rpm=10, tpm=600), quota_of("sliding")
    wheres = [reserve(quota, limits, NOON + 5 * i, tokens=100) for i in range(2)]
    quota.adjust(wheres[1], -1, -100)
    quota.advance(NOON + 6)
    assert isinstance(quota.window, SlidingWindow)
    assert [cell[1:] for cell in quota.window.cells] == [(1, 100), (0, 0)]
    quota.window = TokenBucket(NOON + 6, 5.0, 300.0, 10, 600)
    quota.adjust(wheres[0], -1, -100)
    quota.advance(NOON + 6)
    assert quota.used == (5, 300)


# Clocks that step ------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [121, 3_600, 3 * 86_400])
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_that_lies_in_the_future_is_dropped(kind: str, back: float) -> None:
    """A clock that steps back leaves nothing full, nor a learned limit or a model for longer."""
    limits, quota = Limits(rpm=3, rpd=9), quota_of(kind)
    quota.learn(Limits(tpm=600), NOON)
    while type(reserve(quota, limits, NOON)) is tuple:
        pass
    now = NOON - back
    assert type(reserve(quota, limits, now)) is tuple
    quota.advance(now + DAY_S)
    assert (quota.learned, quota.window) == (Limits(), None)


def test_a_day_that_lies_in_the_future_is_dropped() -> None:
    """Across midnight Pacific time; within the day its count stays."""
    midnight = quota_of("minute").day_end
    quota, limits = quota_of("minute", midnight + 600), Limits(rpd=1)
    reserve(quota, limits, midnight + 600)
    assert reserve(quota, limits, midnight + 300).reason == "rpd"
    assert type(reserve(quota, limits, midnight - 3_000)) is tuple
    assert quota.day_end == midnight


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_step_back_keeps_what_was_counted(kind: str) -> None:
    """After half a minute back, recent requests still count, once."""
    limits, quota = Limits(rpm=3), quota_of(kind)
    while type(reserve(quota, limits, NOON)) is tuple:
        pass
    assert reserve(quota, limits, NOON - 40).reason == "rpm"
    freed = reserve(quota, limits, NOON - 40).until
    assert type(reserve(quota, limits, freed)) is tuple
    reserve(quota, limits, MINUTE + 300)
    reserve(quota, limits, MINUTE + 299)
    assert quota.used[0] <= 2


def test_a_correction_finds_the_minute_before() -> None:
    """The minute a sliding window would begin with gets the true tokens too, if they come late."""
    quota = quota_of("minute")
    slot = reserve(quota, Limits(), NOON, tokens=500)
    quota.advance(NOON + 40)
    quota.adjust(slot, 0, 20 - 500)
    assert (quota.previous_requests, quota.previous_tokens) == (1, 20)
    quota.advance(NOON + 200)
    quota.adjust(slot, -1, -20)
    assert (quota.previous_requests, quota.previous_tokens) == (0, 0)


def test_a_cooldown_that_lies_in_the_future_is_over() -> None:
    """Its length and one minute more is as long as it may last on a clock that stepped back."""
    rest = Cooldown()
    rest.extend("quota_minute", NOON + 20, waitable=True, now=NOON)
    for now, runs in ((NOON, True), (NOON - 60, True), (NOON - 61, False), (NOON + 20, False)):
        assert (rest.is_active(now), rest.blocked_by(now) is not None) == (runs, runs)
    rest.extend("quota_minute", NOON - 3_580, waitable=True, now=NOON - 3_600)
    assert rest.until == NOON - 3_580


def test_a_reset_drops_what_failures_taught() -> None:
    """A reset drops the model with the limits."""
    quota = busy()
    assert refused_at(quota, NOON + 31, 29.0) == "sliding"
    quota.forget_learned()
    quota.advance(NOON + 32)
    assert (kind_of(quota), quota.learned) == ("minute", Limits())
