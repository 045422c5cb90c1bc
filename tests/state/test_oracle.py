"""Every backend compared with naive models that only keep a list, on random histories."""

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
    DEFAULT_ZONE,
    NANO,
    NO_BUDGET,
    USD_REASONS,
    Block,
    Budget,
    Candidate,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Unavailable,
)
from keyrot_middleware.core.windows import next_midnight, next_month
from keyrot_middleware.testing import FakeClock

PACIFIC = ZoneInfo("America/Los_Angeles")
EVE = datetime(2026, 10, 31, 23, 57, 30, tzinfo=PACIFIC).timestamp()
"""Two and a half minutes before the end of a month; the next day has 25 hours."""
LIMITS = Limits(rpm=4, tpm=100, rpd=9, max_concurrency=3)
KEYS = (
    key("a", LIMITS, project="p"),
    key("b", LIMITS, project="p"),
    key("c", LIMITS, usd=Budget(day=10)),
    key("d", project="q", billing_account="x", usd=Budget(9, 12, 20)),
    key("e", project="r", billing_account="x", usd=Budget(9)),
    key("f", project="r", usd=Budget(month=15)),
)
SEEDS = st.integers(0, 2**32)
"""Of a history: hypothesis takes five times as long to draw its steps as all states to run it."""


@dataclass
class Booked:
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
        """Return what a request reserves: for the dearest of its purses."""
        return max((self._expected(purse, now, cost) for purse, _ in one.purses), default=0)

    def _expected(self, purse: str, now: float, cost: int) -> int:
        """Return what a request may cost: as much as the dearest one of today."""
        today = [b.cost for b in self._paid(purse) if day(b.settled_at) == day(now)]
        highest = max(today, default=0)
        return min(max(highest, cost), cost + 6) if highest else cost + 6

    def spent(self, purse: str, now: float) -> Budget:
        """Return what was spent in twenty slots and the one that is not over, a day, a month."""
        mine, today = self._paid(purse), day(now)
        return Budget(
            sum(b.cost for b in mine if b.settled_at // 30 >= now // 30 - 20),
            sum(b.cost for b in mine if day(b.settled_at) == today),
            sum(b.cost for b in mine if day(b.settled_at).replace(day=1) == today.replace(day=1)),
        )

    def reported(self, one: Candidate, now: float) -> tuple[int | None, ...]:
        """Return what was spent in each window in which a key has a budget."""
        found = list[int | None](NO_BUDGET)
        for purse, budget in one.purses:
            for place, limit in enumerate(budget):
                found[place] = found[place] if limit is None else self.spent(purse, now)[place]
        return tuple(found)

    def _paid(self, purse: str) -> list[Booked]:
        return [b for b in self.booked if purse in dict(b.key.purses)]

    def _broke(self, one: Candidate, now: float, cost: int) -> set[str]:
        found = set()
        for purse, budget in one.purses:
            under_way = (b for b in self._paid(purse) if b.under_way)
            reserved = sum(b.expected for b in under_way if now // 300 - b.at // 300 <= 1)
            more = reserved + self._expected(purse, now, cost)
            for reason, spent, limit in zip(
                USD_REASONS, self.spent(purse, now), budget, strict=True
            ):
                if limit is not None and (spent or 0) >= limit:
                    found.add(reason)
                elif limit is not None and reserved and (spent or 0) + more > limit:
                    found.add("usd_reserved")
        return found

    def check(self, block: Block, one: Candidate, now: float) -> None:
        """Check until when a budget blocks a key, and whether a call may wait for that."""
        assert block.waitable == (block.reason not in ("usd", "usd_month", "rpd"))
        ends = {"usd": next_midnight(now, DEFAULT_ZONE), "usd_month": next_month(now, DEFAULT_ZONE)}
        if block.reason == "usd_10m":
            ends["usd_10m"] = self._free_at(one, now)
        assert block.until == ends.get(block.reason, block.until)

    def _free_at(self, one: Candidate, now: float) -> float:
        """Return when the ten minutes of a key have room again."""
        purse, budget = next(found for found in one.purses if found[1].ten_minutes is not None)
        later = (n * 30.0 for n in range(int(now // 30) + 1, int(now // 30) + 22))
        return next(
            at
            for at in later
            if (self.spent(purse, at).ten_minutes or 0) < (budget.ten_minutes or 0)
        )

    def _of(self, one: Candidate) -> list[Booked]:
        return [b for b in self.booked if b.key.project == one.project]

    def reasons(
        self, one: Candidate, now: float, requests: int, tokens: int, cost: int
    ) -> set[str]:
        mine, found = self._of(one), self._broke(one, now, cost)
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
            clock.advance(draw.choice([0.0, 0.5, 1.0, 7.0, 28.5, 59.0, 61.0, 120.0, 300.0]))
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
                naive.check(block, one, now)
            else:
                assert reply.purses == tuple(dict(one.purses))
                expected = naive.expected(one, now, cost)
                naive.booked.append(Booked(one, now, requests, tokens, expected))
                out.append((reply, naive.booked[-1]))
        elif out:
            lease, booked = out.pop(draw.randrange(len(out)))
            how, tokens = (
                draw.choice(["used", "unsent", "abandoned", "failed"]),
                draw.choice([0, 130]),
            )
            cost = draw.choice([None, 0, 1, 2, 5, 30]) if lease.purses else None
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
    known = state.snapshot(KEYS)
    assert {one.key_id: known[one.key_id].spent for one in KEYS} == {
        one.key_id: naive.reported(one, clock.time()) for one in KEYS
    }


class Account:
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
        self.until, self.probe = max(self.until, until), None


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=100)
@given(seed=SEEDS)
def test_a_cooldown_agrees_with_a_naive_model(uri: str, seed: int) -> None:
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
