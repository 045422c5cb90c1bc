"""A budget of the day in every backend, compared with a naive model, and its rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.pool import INFO, key
from support.sync_async import ABANDONED, UNSENT, URIS, failed, open_at

from keyrot_middleware.core.model import (
    Candidate,
    Lease,
    LeaseOutcome,
    Outcome,
    RetryPolicy,
    Scope,
    Unavailable,
    Usage,
)
from keyrot_middleware.core.spending import NANO, nano_usd
from keyrot_middleware.core.windows import next_pacific_midnight
from keyrot_middleware.state import State
from keyrot_middleware.testing import FakeClock

PACIFIC = ZoneInfo("America/Los_Angeles")
EVE = datetime(2026, 11, 1, 23, 57, 30, tzinfo=PACIFIC).timestamp()
"""Two and a half minutes before the end of a day of 25 hours."""
BUDGET = 10e-9
"""Ten billionths of a dollar, which a request of a naive account costs a few of."""
KEYS = (
    key("a", project="p", usd_per_day=BUDGET),
    key("b", project="p", usd_per_day=BUDGET),
    key("c", project="c", usd_per_day=BUDGET),
    key("d", project="d"),
)


def costing(amount: int | None) -> Outcome:
    """Return a success that cost *amount* billionths."""
    usd = None if amount is None else amount / NANO
    return Outcome(LeaseOutcome.SUCCESS, None, Usage(1, 1, cost_usd=usd))


def today(now: float) -> Any:
    """Return the Pacific date."""
    return datetime.fromtimestamp(now, PACIFIC).date()


@dataclass
class Account:
    """A naive model of what a project has spent."""

    day: Any = None
    spent: int = 0
    highest: int = 0
    in_flight: list[tuple[Lease, int]] = field(default_factory=list)

    def begin(self, now: float) -> None:
        """Begin a new day where one has begun."""
        if today(now) != self.day:
            self.day, self.spent, self.highest = today(now), 0, 0

    def refusal(self, expected: int) -> str | None:
        """Return why a request must not be sent."""
        if self.spent >= 10:
            return "usd"
        reserved = sum(amount for _, amount in self.in_flight)
        if reserved and self.spent + reserved + expected > 10:
            return "usd_reserved"
        return None


STEP = st.one_of(
    st.tuples(
        st.just("acquire"),
        st.integers(0, 3),
        st.sampled_from(["m", "n"]),
        st.sampled_from([0, 1, 3]),
    ),
    st.tuples(
        st.just("settle"),
        st.integers(0, 9),
        st.sampled_from(["served", "unsent", "abandoned", "failed"]),
        st.sampled_from([None, 0, 1, 2, 5, 30]),
    ),
    st.tuples(st.just("pass"), st.sampled_from([1.0, 61.0, 120.0]), st.none(), st.none()),
)


@pytest.mark.parametrize("uri", URIS)
@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEP, max_size=60))
def test_a_budget_agrees_with_a_naive_model(uri: str, steps: list[tuple[Any, ...]]) -> None:
    """Reservations, true costs, unknown costs and midnight agree with a naive model."""
    clock = FakeClock(EVE)
    accounts = {one.project: Account() for one in KEYS}
    state = open_at(uri, RetryPolicy(), clock.time)
    open_leases: list[Lease] = []
    for what, one, two, three in steps:
        if what == "pass":
            clock.advance(one)
        elif what == "acquire":
            found = _acquire(
                state, accounts[KEYS[one].project], KEYS[one], two, three, clock.time()
            )
            open_leases += [found] if found is not None else []
        elif open_leases:
            lease = open_leases.pop(one % len(open_leases))
            _settle(state, accounts[lease.project], lease, two, three, clock.time())
    assert _spent(state) == {
        one.key_id: None if one.usd_per_day is None else accounts[one.project].spent
        for one in KEYS
        if not accounts[one.project].begin(clock.time())  # type: ignore[func-returns-value]
    }


def _acquire(
    state: State, account: Account, one: Candidate, model: str, cost: int, now: float
) -> Lease | None:
    info = INFO._replace(model=model, input_cost=cost, longest_cost=cost + 6)
    account.begin(now)
    expected = max(cost, account.highest) if account.highest else cost + 6
    want = account.refusal(expected) if one.usd_per_day is not None else None
    blocks = {key_id: block.reason for key_id, block in state.get_blocks(info, [one]).items()}
    assert blocks == ({} if want is None else {one.key_id: want})
    reply = state.acquire(info, ((0, one),), spread=False)
    if isinstance(reply, Unavailable):
        (block,) = reply.blocks.values()
        assert block.reason == want
        assert block.waitable == (want == "usd_reserved")
        if want == "usd":
            assert block.until == next_pacific_midnight(now)
        return None
    assert want is None
    assert reply.has_budget == (one.usd_per_day is not None)
    account.in_flight.append((reply, expected))
    return reply


def _settle(
    state: State,
    account: Account,
    lease: Lease,
    how: str,
    cost: int | None,
    now: float,
) -> None:
    account.begin(now)
    account.in_flight = [one for one in account.in_flight if one[0] is not lease]
    usage = costing(cost).usage
    outcomes = {
        "served": costing(cost),
        "unsent": UNSENT,
        "abandoned": ABANDONED._replace(usage=usage),
        "failed": failed(Scope.NONE)._replace(usage=usage),
    }
    state.settle(lease, outcomes[how])
    if how == "unsent":
        cost = None
    account.spent += cost or 0
    account.highest = max(account.highest, cost or 0)


def _spent(state: State) -> dict[str, int | None]:
    found = state.snapshot(KEYS)
    return {
        key_id: None if health.spent_usd is None else nano_usd(health.spent_usd)
        for key_id, health in found.items()
    }


@pytest.mark.parametrize("uri", URIS)
def test_an_exhausted_budget_is_available_again_after_midnight(uri: str) -> None:
    """Until then every key of the project is blocked, for any model, and a key of another not."""
    clock = FakeClock(EVE)
    state = open_at(uri, RetryPolicy(), clock.time)
    lease = state.acquire(INFO, ((0, KEYS[0]),), spread=False)
    assert isinstance(lease, Lease)
    state.settle(lease, costing(10))
    other = INFO._replace(model="another")
    for info in (INFO, other):
        blocks = state.get_blocks(info, KEYS)
        assert {key_id: block.reason for key_id, block in blocks.items()} == {
            "a": "usd",
            "b": "usd",
        }
        assert {block.until for block in blocks.values()} == {next_pacific_midnight(EVE)}
    free = INFO._replace(requests=0, counts_in_quota=False)
    assert isinstance(state.acquire(free, ((0, KEYS[0]),), spread=False), Lease)
    clock.advance(next_pacific_midnight(EVE) - EVE)
    assert state.get_blocks(INFO, KEYS) == {}
    assert isinstance(state.acquire(INFO, ((0, KEYS[0]),), spread=False), Lease)


@pytest.mark.parametrize("uri", URIS)
def test_a_model_without_a_price_counts_nothing(uri: str) -> None:
    """Its first request is not special, and many are in flight at once."""
    state = open_at(uri, RetryPolicy(), FakeClock(EVE).time)
    for _ in range(2):
        leases = [state.acquire(INFO, ((0, KEYS[0]),), spread=False) for _ in range(5)]
        for lease in leases:
            assert isinstance(lease, Lease)
            state.settle(lease, costing(None))
    assert _spent(state)["a"] == 0


@pytest.mark.parametrize("uri", URIS)
def test_the_reservation_of_a_killed_process_ends(uri: str) -> None:
    """A call that is never settled reserves nothing any more after ten minutes."""
    clock = FakeClock(EVE - 3_600)
    state = open_at(uri, RetryPolicy(), clock.time)
    info = INFO._replace(longest_cost=100)
    assert isinstance(state.acquire(info, ((0, KEYS[0]),), spread=False), Lease)
    clock.advance(290)
    refused = state.acquire(info, ((0, KEYS[1]),), spread=False)
    assert isinstance(refused, Unavailable)
    assert refused.blocks["b"].reason == "usd_reserved"
    clock.advance(310)
    assert isinstance(state.acquire(info, ((0, KEYS[1]),), spread=False), Lease)
