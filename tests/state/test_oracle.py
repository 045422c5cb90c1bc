"""Every backend compared with naive models that only keep a list, on random histories."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.states import ABANDONED, UNSENT, URIS, acquire, failed, open_at, used

from keyrot_middleware.core.model import (
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Unavailable,
)
from keyrot_middleware.core.spending import NANO, nano_usd
from keyrot_middleware.core.windows import next_pacific_midnight
from keyrot_middleware.testing import FakeClock

PACIFIC = ZoneInfo("America/Los_Angeles")
EVE = datetime(2026, 11, 1, 23, 57, 30, tzinfo=PACIFIC).timestamp()
"""Two and a half minutes before the end of a day of 25 hours."""
LIMITS = Limits(rpm=4, tpm=100, rpd=9, max_concurrency=3)
BUDGET = 10
"""Billionths of a dollar a day, of which a request costs a few."""
KEYS = (
    key("a", LIMITS, project="p"),
    key("b", LIMITS, project="p"),
    key("c", LIMITS, usd_per_day=BUDGET / NANO),
    key("d", project="q", usd_per_day=BUDGET / NANO),
    key("e", project="q", usd_per_day=BUDGET / NANO),
)
SEEDS = st.integers(0, 2**32)
"""Of a history: hypothesis takes five times as long to draw its steps as all states to run it."""


@dataclass
class Booked:
    """One lease in the naive model, and its reservations."""

    key: Candidate
    at: float
    requests: int
    tokens: int
    expected: int
    under_way: bool = True
    cost: int = 0
    settled_at: float = 0.0


def minutes(now: float) -> set[int]:
    """Return the minutes that *now* may be in, for a clock that is off by up to a second."""
    return {int((now - 1) // 60), int((now + 1) // 60)}


def day(now: float) -> Any:
    return datetime.fromtimestamp(now, PACIFIC).date()


class Naive:
    """Everything that was ever recorded; each answer is found by counting."""

    def __init__(self) -> None:
        self.booked: list[Booked] = []

    def expected(self, one: Candidate, now: float, cost: int) -> int:
        """Return what a request may cost: as much as the dearest one of today."""
        today = [b.cost for b in self._of(one) if day(b.settled_at) == day(now)]
        highest = max(today, default=0)
        return max(highest, cost) if highest else cost + 6

    def spent(self, one: Candidate, now: float) -> int:
        return sum(b.cost for b in self._of(one) if day(b.settled_at) == day(now))

    def _of(self, one: Candidate) -> list[Booked]:
        return [b for b in self.booked if b.key.project == one.project]

    def reasons(
        self, one: Candidate, now: float, requests: int, tokens: int, cost: int
    ) -> set[str]:
        """Return every reason not to send a request."""
        mine, found = self._of(one), set()
        if one.usd_per_day is not None:
            spent = self.spent(one, now)
            recent = [b for b in mine if b.under_way and now // 300 - b.at // 300 <= 1]
            reserved = sum(b.expected for b in recent)
            if spent >= BUDGET:
                found.add("usd")
            elif reserved and spent + reserved + self.expected(one, now, cost) > BUDGET:
                found.add("usd_reserved")
        if one.limits != LIMITS:
            return found
        if sum(b.under_way for b in mine if b.key is one) >= 3:
            found.add("concurrency")
        if not _fits(sum(b.requests for b in mine if day(b.at) == day(now)), requests, 9):
            found.add("rpd")
        for minute in minutes(now):
            near = [b for b in mine if minute in minutes(b.at)]
            if not _fits(sum(b.requests for b in near), requests, 4):
                found.add("rpm")
            if not _fits(sum(b.tokens for b in near), tokens, 100):
                found.add("tpm")
        return found


def _fits(used: int, cost: int, limit: int) -> bool:
    return used + cost <= limit or used <= 0


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=100)
@given(seed=SEEDS)
def test_a_state_leases_exactly_when_a_naive_count_has_room(uri: str, seed: int) -> None:
    """Never over a limit or budget, never blocked where there is room: at edges and midnight.

    What `get_blocks` returns is what `acquire` does.
    """
    draw, clock, naive = Random(seed), FakeClock(EVE), Naive()
    state, out = open_at(uri, clock.time), list[tuple[Lease, Booked]]()
    for _ in range(draw.randint(10, 60)):
        what, now = draw.choice(["acquire", "acquire", "settle", "pass"]), clock.time()
        if what == "pass":
            clock.advance(draw.choice([0.0, 0.5, 1.0, 7.0, 28.5, 59.0, 61.0, 120.0]))
            if 149 <= clock.time() - EVE < 151:  # Redis ends its counts with the day, unguarded
                clock.advance(2.0)
        elif what == "acquire":
            one, cost = draw.choice(KEYS), draw.choice([0, 1, 3])
            requests, tokens = draw.randint(1, 3), draw.choice([0, 1, 20, 50, 100, 150])
            model = draw.choice("mn") if one.limits != LIMITS else "m"
            info = INFO._replace(model=model, requests=requests, tokens=tokens)
            info = info._replace(input_cost=cost, longest_cost=cost + 6)
            reasons = naive.reasons(one, now, requests, tokens, cost)
            blocks = state.get_blocks(info, KEYS)
            reply = acquire(state, one, info=info)
            assert isinstance(reply, Lease) == (not reasons) == (one.key_id not in blocks), reply
            if isinstance(reply, Unavailable):
                block = reply.blocks[one.key_id]
                assert block == blocks[one.key_id]
                assert block.reason in reasons
                assert block.waitable == (block.reason not in ("usd", "rpd"))
                assert block.reason != "usd" or block.until == next_pacific_midnight(now)
            else:
                assert reply.has_budget == (one.usd_per_day is not None)
                expected = naive.expected(one, now, cost)
                naive.booked.append(Booked(one, now, requests, tokens, expected))
                out.append((reply, naive.booked[-1]))
        elif out:
            lease, booked = out.pop(draw.randrange(len(out)))
            how, tokens = (
                draw.choice(["used", "unsent", "abandoned", "failed"]),
                draw.choice([0, 130]),
            )
            cost = draw.choice([None, 0, 1, 2, 5, 30]) if lease.has_budget else None
            booked.under_way, booked.settled_at = False, now
            booked.cost = 0 if how == "unsent" else cost or 0
            if how == "unsent":
                booked.requests = booked.tokens = 0
            elif how == "used":
                booked.tokens = tokens
            outcomes = {"unsent": UNSENT, "abandoned": ABANDONED, "failed": failed(Scope.NONE)}
            outcome = outcomes.get(how) or used(tokens)
            usage = outcome.usage._replace(cost_usd=None if cost is None else cost / NANO)
            state.settle(lease, outcome if how == "unsent" else outcome._replace(usage=usage))
    for key_id, health in state.snapshot(KEYS).items():
        (one,) = (k for k in KEYS if k.key_id == key_id)
        spent = None if health.spent_usd is None else nano_usd(health.spent_usd)
        assert spent == (None if one.usd_per_day is None else naive.spent(one, clock.time()))


class Account:
    """A naive model of one cooldown."""

    def __init__(self) -> None:
        self.until, self.failures = 0.0, 0
        self.probe: Lease | None = None
        self.alone_until = 0.0

    def is_available(self, now: float) -> bool:
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
        self.probe = None if self.probe is lease else self.probe

    def failed(self, until: float) -> None:
        """Record a failure, which never shortens a cooldown."""
        self.until, self.probe = max(self.until, until), None


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=100)
@given(seed=SEEDS)
def test_a_cooldown_agrees_with_a_naive_model(uri: str, seed: int) -> None:
    """Cooldown, backoff, probe and recovery."""
    draw, clock, one, account = Random(seed), FakeClock(), key("a"), Account()
    out: list[Lease] = []
    state = open_at(uri, clock.time)
    for _ in range(draw.randint(10, 60)):
        now = clock.time()
        what = draw.choice(["acquire", "good", "bad", "named", "drop", "serving", "pass"])
        if what == "pass":
            clock.advance(draw.choice([1, 1, 2, 10, 30, 60, 120, 900]))
        elif what == "acquire":
            reply = acquire(state, one)
            assert isinstance(reply, Lease) == account.is_available(now)
            if isinstance(reply, Lease):
                account.granted(reply, now)
                out.append(reply)
        elif what == "serving" and out:
            lease = draw.choice(out)
            state.settle(lease, Outcome(LeaseOutcome.SERVING))
            account.succeeded(lease)
        elif out:
            lease = out.pop(draw.randrange(len(out)))
            account.ended(lease)
            if what == "good":
                state.settle(lease, used(1))
                account.succeeded(lease)
            elif what == "bad":
                account.failures += lease.at >= account.until or not account.failures
                state.settle(lease, failed(Scope.KEY_MODEL, None, has_known_end=True))
                account.failed(now + min(30 * 2 ** (account.failures - 1), 900))
            elif what == "named":
                state.settle(lease, failed(Scope.KEY_MODEL, now + 20, has_known_end=True))
                account.failed(now + 20)
            else:
                state.settle(lease, ABANDONED)
