"""A shared state that comes back: what it has missed is told to it, once."""

from __future__ import annotations

from math import inf

import pytest
from doors import ABANDONED, OK, UNSENT, failed, used
from outage import FIVE, A, B, Both, C
from support.faulty_state import degrading
from support.pool import INFO, key

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, Scope
from keyrot_middleware.state.circuit_breaker import PAUSE_S
from keyrot_middleware.testing import FakeClock

# With whom a lease is settled ------------------------------------------------------------------


async def test_each_lease_is_settled_with_who_lent_it(both: Both) -> None:
    """Also when the shared state went or came back in between."""
    shared = await both.door.lend(A)
    both.shared.cut()
    own = await both.door.lend(A)
    both.mend()
    await both.door.settle(await both.door.lend(B))
    both.shared.asked.clear()
    await both.door.settle(own, used(3))
    assert both.shared.asked == []
    await both.door.settle(shared, used(3))
    assert both.shared.asked == ["settle"]
    assert both.shared.inner._in_flight == {}
    assert both.state._local._in_flight == {}


@pytest.mark.parametrize("applies", [False, True], ids=["lost", "answer lost"])
async def test_a_verdict_is_not_lost(both: Both, applies: bool) -> None:
    """A failure that could not be told rests the key here at once, and everywhere afterwards."""
    lease = await both.door.lend(C)
    both.shared.applies = applies
    both.shared.cut("settle")
    until = both.clock.time() + 600
    told = failed(Scope.KEY, until, learned=Limits(rpm=7))
    assert await both.door.settle(lease, told) == until
    assert await both.door.refused(C) == {"c": "failure"}
    both.mend()
    await both.door.lend(A)
    assert await both.other.refused(C) == {"c": "failure"}
    known = both.shared.inner.snapshot([C])["c"]
    assert (known.cooldown_until, known.used[0].limits.rpm) == (until, 7)


async def test_a_verdict_of_a_lease_lent_here_is_told_too(both: Both) -> None:
    """One process's 401 spares all others, as soon as they share again; a guess stays as it was."""
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, inf))
    guess = await both.door.fails(A, failed(Scope.KEY_MODEL))
    assert guess == both.clock.time() + 30
    both.mend()
    await both.door.lend(B)
    assert await both.other.refused(C, A) == {"c": "failure", "a": "failure"}
    assert both.shared.inner.snapshot([A])["a"].cooldown_until == guess


async def test_what_is_over_when_it_is_back_is_not_told(both: Both) -> None:
    """A minute's rest that ended during the outage rests nobody after it."""
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, both.clock.time() + 20))
    both.clock.advance(60)
    both.mend()
    await both.door.lend(A)
    assert not (await both.other.lend(C)).probe


async def test_owners_are_told_too(both: Both) -> None:
    """A file made during the outage is found by all processes after it."""
    both.shared.cut()
    await both.door.settle(await both.door.lend(A), OK, ["files/1"])
    assert await both.door.get_owner("files/1") == ("a", "p")
    both.mend()
    await both.door.lend(A)
    assert await both.other.get_owner("files/1") == ("a", "p")


async def test_a_failure_reported_by_hand_is_shared(both: Both) -> None:
    """A lease that nobody granted goes to the shared state as it is."""
    lease = Lease("c", "c", "c", "", "generateContent", 0, 0, at=0.0)
    await both.door.settle(lease, failed(Scope.KEY, inf))
    assert await both.other.refused(C) == {"c": "failure"}
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "failure"}
    lease = lease._replace(key_id="a", project="p", billing_account="p")
    await both.door.settle(lease, failed(Scope.KEY, inf))
    assert await both.door.refused(A) == {"a": "failure"}


def test_the_outcome_of_a_success_is_left_as_it_is(clock: FakeClock) -> None:
    """What the shared state returns for a settle is returned."""
    state, _ = degrading(clock.time)
    lease = state.acquire(INFO, ((0, C),), spread=False)
    assert isinstance(lease, Lease)
    assert state.settle(lease, Outcome(LeaseOutcome.SUCCESS)) is None


# When it is back -------------------------------------------------------------------------------


async def test_what_was_sent_meanwhile_is_booked(both: Both) -> None:
    """Before anything else is asked, so that no limit is overrun by the recovery."""
    assert await both.door.granted(FIVE, 2) == 2
    both.shared.cut()
    for outcome in (OK, UNSENT, ABANDONED):
        await both.door.settle(await both.door.lend(FIVE), outcome)
    both.mend()
    assert await both.door.granted(FIVE) == 1
    assert await both.other.refused(FIVE) == {"f": "rpm"}


async def test_a_long_outage_fills_no_minute_afterwards(both: Both) -> None:
    """Requests of minutes that are over count in the day alone."""
    one = key("o", Limits(rpm=5, rpd=20))
    both.shared.cut()
    for _ in range(3):
        assert await both.door.granted(one) == 5
        both.clock.advance(61)
    both.mend()
    assert await both.door.granted(one, 6) == 5
    assert both.shared.inner.snapshot([one])["o"].used[0].requests_day == 20
    assert await both.other.refused(one) == {"o": "rpd"}


async def test_what_cannot_be_told_does_not_keep_it_away(both: Both) -> None:
    """A debt that fails by itself is let go after three tries, and the state is used again."""
    both.shared.cut()
    await both.door.fails(C, failed(Scope.KEY, inf))
    both.shared.cut("settle")
    for _ in range(3):
        both.clock.advance(PAUSE_S)
        assert (await both.door.lend(A)).degraded
    both.clock.advance(PAUSE_S)
    assert not (await both.door.lend(A)).degraded
