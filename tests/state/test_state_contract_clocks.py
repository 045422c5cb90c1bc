"""A clock that steps back leaves no key full and no cooldown longer, in every backend."""

from __future__ import annotations

import pytest
from support.pool import key
from support.sync_async import StateClient, used

from keyrot_middleware.core.model import (
    NO_USAGE,
    Lease,
    LeaseOutcome,
    Limits,
    Outcome,
    Scope,
    Verdict,
)
from keyrot_middleware.testing import FakeClock

ONE = key("a", Limits(rpm=10))


async def burst(client: StateClient) -> list[Lease]:
    """Lease and settle as many as there is room for."""
    leases = []
    while isinstance(reply := await client.acquire(ONE), Lease):
        leases.append(reply)
        await client.settle(reply, used(10))
    return leases


@pytest.mark.parametrize("back", [3_600.0, 90_000.0])
async def test_a_clock_that_steps_back_leaves_no_key_full(
    client: StateClient, clock: FakeClock, back: float
) -> None:
    """A minute that lies in the future is dropped; a step forward leaves nothing."""
    assert len(await burst(client)) == 10
    assert await client.refused(ONE) == {"a": "rpm"}
    clock._now -= back  # a FakeClock only goes forward, and this one must not
    assert len(await burst(client)) == 10
    clock.advance(2 * back)
    assert len(await burst(client)) == 10


@pytest.mark.parametrize("until", [20.0, None])
async def test_a_cooldown_does_not_last_longer_when_the_clock_steps_back(
    client: StateClient, clock: FakeClock, until: float | None
) -> None:
    """A minute's cooldown ends within two minutes, not after the hour by which the clock moved."""
    verdict = Verdict(
        "failure", 429, Scope.PROJECT_MODEL, until and clock.time() + until, has_known_end=True
    )
    await client.fails(ONE, Outcome(LeaseOutcome.FAILURE, verdict, NO_USAGE))
    assert await client.refused(ONE) == {"a": "failure"}
    clock._now -= 3_600
    lease = await client.acquire_lease(ONE)
    assert lease.probe
    assert client.state.snapshot([ONE])["a"].cooldown_until is None
    await client.settle(lease)
    assert not (await client.acquire_lease(ONE)).probe


async def test_a_failure_after_a_step_back_cools_for_its_own_time(
    client: StateClient, clock: FakeClock
) -> None:
    """The end of the earlier one, now in the future, is ignored."""

    def outcome() -> Outcome:
        until = clock.time() + 20
        verdict = Verdict("failure", 429, Scope.PROJECT_MODEL, until, has_known_end=True)
        return Outcome(LeaseOutcome.FAILURE, verdict, NO_USAGE)

    await client.fails(ONE, outcome())
    clock._now -= 3_600
    assert await client.fails(ONE, outcome()) == pytest.approx(clock.time() + 20)
    assert await client.refused(ONE) == {"a": "failure"}
    clock.advance(20)
    await client.acquire_lease(ONE)
