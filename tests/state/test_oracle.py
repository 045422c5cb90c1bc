"""Every backend compared with a naive model that only keeps a list, on random histories."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.sync_async import ABANDONED, UNSENT, URIS, failed, open_at, used

from keyrot_middleware.core.model import (
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    RetryPolicy,
    Scope,
)
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

PACIFIC = ZoneInfo("America/Los_Angeles")
EVE = datetime(2026, 11, 1, 23, 57, 30, tzinfo=PACIFIC).timestamp()
"""Two and a half minutes before the end of a day of 25 hours."""
LIMITS = Limits(rpm=4, tpm=100, rpd=9, max_concurrency=3)
KEYS = (key("a", LIMITS, project="p"), key("b", LIMITS, project="p"), key("c", LIMITS))


@dataclass
class Booked:
    """One lease in the naive model."""

    key: Candidate
    at: float
    requests: int
    tokens: int
    under_way: bool = True

    @property
    def minutes(self) -> set[int]:
        """The minutes in which it may have counted, for a clock that is off by up to a second."""
        return minutes(self.at)

    @property
    def day(self) -> Any:
        """The day on which it counted."""
        return day(self.at)


def minutes(now: float) -> set[int]:
    """Return the minutes that *now* may be in: from a second before until just before one after."""
    return {int((now - 1) // 60), int((now + 1) // 60)}


def day(now: float) -> Any:
    """Return the Pacific day."""
    return datetime.fromtimestamp(now, PACIFIC).date()


class Naive:
    """Everything that was ever recorded; each answer is found by counting."""

    def __init__(self) -> None:
        self.booked: list[Booked] = []

    def room(self, one: Candidate, now: float, requests: int, tokens: int) -> bool:
        """Return whether every window has room."""
        busy = sum(b.under_way for b in self.booked if b.key is one)
        mine = [b for b in self.booked if b.key.project == one.project]
        today = sum(b.requests for b in mine if b.day == day(now))
        return (
            busy < 3
            and _fits(today, requests, 9)
            and all(
                _fits(sum(b.requests for b in mine if minute in b.minutes), requests, 4)
                and _fits(sum(b.tokens for b in mine if minute in b.minutes), tokens, 100)
                for minute in minutes(now)
            )
        )


def _fits(used: int, cost: int, limit: int) -> bool:
    return used + cost <= limit or used <= 0


STEP = st.one_of(
    st.tuples(
        st.just("acquire"),
        st.integers(0, 2),
        st.integers(1, 3),
        st.sampled_from([0, 1, 20, 50, 100, 150]),
    ),
    st.tuples(
        st.just("settle"),
        st.integers(0, 9),
        st.sampled_from(["used", "unsent", "abandoned", "failed"]),
        st.sampled_from([0, 5, 60, 130]),
    ),
    st.tuples(
        st.just("pass"),
        st.sampled_from([0.0, 0.4, 1.0, 7.0, 28.6, 59.0, 61.0]),
        st.none(),
        st.none(),
    ),
)


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_a_state_leases_exactly_when_a_naive_count_has_room(
    uri: str, steps: list[tuple[Any, ...]]
) -> None:
    """Never over a limit, never blocked where there is room: at edges, midnight, any correction."""
    clock, naive, open_leases = FakeClock(EVE), Naive(), []
    state = open_at(uri, RetryPolicy(), clock.time)
    for what, one, two, three in steps:
        if what == "pass":
            clock.advance(one)
        elif what == "acquire":
            info = INFO._replace(requests=two, tokens=three)
            reply = state.acquire(info, ((0, KEYS[one]),), spread=False)
            room = naive.room(KEYS[one], clock.time(), two, three)
            assert isinstance(reply, Lease) == room, reply
            if isinstance(reply, Lease):
                naive.booked.append(Booked(KEYS[one], clock.time(), two, three))
                open_leases.append((reply, naive.booked[-1]))
        elif open_leases:
            lease, booked = open_leases.pop(one % len(open_leases))
            booked.under_way = False
            if two == "unsent":
                booked.requests = booked.tokens = 0
            elif two == "used":
                booked.tokens = three
            outcomes = {"unsent": UNSENT, "abandoned": ABANDONED, "failed": failed(Scope.NONE)}
            state.settle(lease, outcomes.get(two) or used(three))


REST = st.one_of(
    st.tuples(st.just("acquire"), st.integers(0, 9)),
    st.tuples(st.just("good"), st.integers(0, 9)),
    st.tuples(st.just("bad"), st.integers(0, 9)),
    st.tuples(st.just("named"), st.integers(0, 9)),
    st.tuples(st.just("drop"), st.integers(0, 9)),
    st.tuples(st.just("serving"), st.integers(0, 9)),
    st.tuples(st.just("pass"), st.sampled_from([1, 1, 2, 10, 30, 60, 120, 900])),
)


class Account:
    """A naive model of one cooldown."""

    def __init__(self) -> None:
        self.until, self.failures = 0.0, 0
        self.probe: Lease | None = None
        self.alone_until = 0.0

    def is_available(self, now: float) -> bool:
        """Return whether a request may be sent."""
        return now >= self.until and not (self.probe is not None and now < self.alone_until)

    def granted(self, lease: Lease, now: float) -> None:
        """Record a grant: the first after a cooldown is the probe, which goes alone for 2 s."""
        assert lease.probe == (self.until > 0)
        self.probe, self.alone_until = (lease if lease.probe else None), now + 2

    def succeeded(self, lease: Lease) -> None:
        """Record the success of a request that was granted after the cooldown."""
        if lease.at >= self.until:
            self.until, self.failures, self.probe = 0.0, 0, None

    def ended(self, lease: Lease) -> None:
        """Record the end of a request."""
        self.probe = None if self.probe is lease else self.probe

    def failed(self, until: float) -> None:
        """Record a failure, which never shortens a cooldown."""
        self.until, self.probe = max(self.until, until), None


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=150, deadline=None)
@given(steps=st.lists(REST, max_size=60))
def test_a_cooldown_agrees_with_a_naive_model(uri: str, steps: list[tuple[str, int]]) -> None:
    """Cooldown, backoff, probe and recovery agree with a naive model."""
    clock, one, account = FakeClock(), key("a"), Account()
    out: list[Lease] = []
    state = open_at(uri, RetryPolicy(), clock.time)
    for what, number in steps:
        now = clock.time()
        if what == "pass":
            clock.advance(number)
        elif what == "acquire":
            reply = state.acquire(INFO, ((0, one),), spread=False)
            assert isinstance(reply, Lease) == account.is_available(now)
            if isinstance(reply, Lease):
                account.granted(reply, now)
                out.append(reply)
        elif what == "serving" and out:
            state.settle(out[number % len(out)], Outcome(LeaseOutcome.SERVING))
            account.succeeded(out[number % len(out)])
        elif out:
            _settle(state, account, out.pop(number % len(out)), what, now)


def _settle(state: State, account: Account, lease: Lease, what: str, now: float) -> None:
    account.ended(lease)
    if what == "good":
        state.settle(lease, used(1))
        account.succeeded(lease)
    elif what == "drop":
        state.settle(lease, ABANDONED)
    elif what == "bad":
        account.failures += lease.at >= account.until or not account.failures
        state.settle(lease, failed(Scope.KEY_MODEL, None, has_known_end=True))
        account.failed(now + min(30 * 2 ** (account.failures - 1), 900))
    else:
        state.settle(lease, failed(Scope.KEY_MODEL, now + 20, has_known_end=True))
        account.failed(now + 20)
