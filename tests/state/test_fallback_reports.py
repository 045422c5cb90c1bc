"""A shared state that is back: what it missed is reported to it, once."""

from __future__ import annotations

from math import inf

import pytest
from support.fallback import FIVE, A, B, C, FallbackSetup
from support.faulty_state import degrading
from support.pool import INFO, in_flight, key
from support.sync_async import ABANDONED, OK, UNSENT, failed, used

from keyrot_middleware.core.model import Lease, LeaseOutcome, Limits, Outcome, Scope
from keyrot_middleware.state.circuit_breaker import PAUSE_S
from keyrot_middleware.testing import FakeClock

# Which state a lease is settled with -----------------------------------------------------------


async def test_each_lease_is_settled_with_the_state_that_granted_it(setup: FallbackSetup) -> None:
    """Also when the shared state failed or came back in between."""
    shared = await setup.client.acquire_lease(A)
    setup.shared.cut()
    own = await setup.client.acquire_lease(A)
    setup.restore()
    await setup.client.settle(await setup.client.acquire_lease(B))
    setup.shared.calls.clear()
    await setup.client.settle(own, used(3))
    assert setup.shared.calls == []
    await setup.client.settle(shared, used(3))
    assert setup.shared.calls == ["settle"]
    assert in_flight(setup.shared.inner) == {}
    assert in_flight(setup.state._local) == {}


@pytest.mark.parametrize("applies", [False, True], ids=["lost", "answer lost"])
async def test_a_verdict_is_not_lost(setup: FallbackSetup, applies: bool) -> None:
    """A failure that could not be sent cools the key down here at once, and later everywhere."""
    lease = await setup.client.acquire_lease(C)
    setup.shared.applies = applies
    setup.shared.cut("settle")
    until = setup.clock.time() + 600
    outcome = failed(Scope.KEY, until, learned=Limits(rpm=7))
    assert await setup.client.settle(lease, outcome) == until
    assert await setup.client.refused(C) == {"c": "failure"}
    setup.restore()
    await setup.client.acquire_lease(A)
    assert await setup.other.refused(C) == {"c": "failure"}
    known = setup.shared.inner.snapshot([C])["c"]
    assert (known.cooldown_until, known.used[0].limits.rpm) == (until, 7)


async def test_a_verdict_of_a_locally_granted_lease_is_reported_too(setup: FallbackSetup) -> None:
    """One process's 401 spares all others once the outage ends; a guessed cooldown stays local."""
    setup.shared.cut()
    await setup.client.fails(C, failed(Scope.KEY, inf))
    guess = await setup.client.fails(A, failed(Scope.KEY_MODEL))
    assert guess == setup.clock.time() + 30
    setup.restore()
    await setup.client.acquire_lease(B)
    assert await setup.other.refused(C, A) == {"c": "failure", "a": "failure"}
    assert setup.shared.inner.snapshot([A])["a"].cooldown_until == guess


async def test_a_cooldown_that_ended_in_the_outage_is_not_reported(setup: FallbackSetup) -> None:
    """A minute's cooldown that ended during the outage is not sent after it."""
    setup.shared.cut()
    await setup.client.fails(C, failed(Scope.KEY, setup.clock.time() + 20))
    setup.clock.advance(60)
    setup.restore()
    await setup.client.acquire_lease(A)
    assert not (await setup.other.acquire_lease(C)).probe


async def test_owners_are_reported_too(setup: FallbackSetup) -> None:
    """All processes find a file that was made during the outage."""
    setup.shared.cut()
    await setup.client.settle(await setup.client.acquire_lease(A), OK, ["files/1"])
    assert await setup.client.get_owner("files/1") == ("a", "p")
    setup.restore()
    await setup.client.acquire_lease(A)
    assert await setup.other.get_owner("files/1") == ("a", "p")


async def test_a_failure_reported_by_hand_is_shared(setup: FallbackSetup) -> None:
    """A lease that no state granted goes to the shared state as it is."""
    lease = Lease("c", "c", "c", "", "generateContent", 0, 0, at=0.0)
    await setup.client.settle(lease, failed(Scope.KEY, inf))
    assert await setup.other.refused(C) == {"c": "failure"}
    setup.shared.cut()
    assert await setup.client.refused(C) == {"c": "failure"}
    lease = lease._replace(key_id="a", project="p", billing_account="p")
    await setup.client.settle(lease, failed(Scope.KEY, inf))
    assert await setup.client.refused(A) == {"a": "failure"}


def test_the_outcome_of_a_success_is_left_as_it_is(clock: FakeClock) -> None:
    """What the shared state returns for a settle is returned."""
    state, _ = degrading(clock.time)
    lease = state.acquire(INFO, ((0, C),), spread=False)
    assert isinstance(lease, Lease)
    assert state.settle(lease, Outcome(LeaseOutcome.SUCCESS)) is None


# After the outage ------------------------------------------------------------------------------


async def test_requests_sent_in_an_outage_are_recorded(setup: FallbackSetup) -> None:
    """It is recorded before the next acquire, so that the recovery does not overrun a limit."""
    assert await setup.client.granted(FIVE, 2) == 2
    setup.shared.cut()
    for outcome in (OK, UNSENT, ABANDONED):
        await setup.client.settle(await setup.client.acquire_lease(FIVE), outcome)
    setup.restore()
    assert await setup.client.granted(FIVE) == 1
    assert await setup.other.refused(FIVE) == {"f": "rpm"}


async def test_a_long_outage_fills_no_minute_after_it(setup: FallbackSetup) -> None:
    """Requests of past minutes count in the day only."""
    one = key("o", Limits(rpm=5, rpd=20))
    setup.shared.cut()
    for _ in range(3):
        assert await setup.client.granted(one) == 5
        setup.clock.advance(61)
    setup.restore()
    assert await setup.client.granted(one, 6) == 5
    assert setup.shared.inner.snapshot([one])["o"].used[0].requests_day == 20
    assert await setup.other.refused(one) == {"o": "rpd"}


async def test_an_update_that_always_fails_does_not_prolong_the_outage(
    setup: FallbackSetup,
) -> None:
    """An update that always fails is dropped after three tries, and the state is used again."""
    setup.shared.cut()
    await setup.client.fails(C, failed(Scope.KEY, inf))
    setup.shared.cut("settle")
    for _ in range(3):
        setup.clock.advance(PAUSE_S)
        assert (await setup.client.acquire_lease(A)).degraded
    setup.clock.advance(PAUSE_S)
    assert not (await setup.client.acquire_lease(A)).degraded
