"""A shared state that fails: calls continue, limits of this process hold, and it is tried again."""

from __future__ import annotations

import threading
import time

import pytest
from support.fallback import FIVE, A, C, FallbackSetup
from support.faulty_state import degrading, warnings_of
from support.pool import INFO, key
from support.servers import wait_for
from support.sync_async import OK, AsyncClient, SyncClient, failed

from keyrot_middleware.core.model import Lease, Limits, Scope
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.state.memory import FIRST_PAUSE_S, PAUSE_S, Breaker
from keyrot_middleware.testing import FakeClock


@pytest.fixture(params=[SyncClient, AsyncClient], ids=["sync", "async"])
def setup(request: pytest.FixtureRequest, clock: FakeClock) -> FallbackSetup:
    """Open a state over one that can be cut off."""
    return FallbackSetup(request.param, clock)


async def restored(setup: FallbackSetup) -> None:
    """Restore the shared state, and make calls until it is used again."""
    setup.restore()
    await setup.client.acquire(key("other"))
    wait_for(lambda: not setup.state.degraded)


@pytest.mark.parametrize("method", ["acquire", "settle", "get_owner"])
async def test_nothing_is_raised_whatever_fails(setup: FallbackSetup, method: str) -> None:
    """Each method that a call uses has an answer when the shared state is down."""
    setup.shared.cut(method)
    lease = await setup.client.acquire_lease(A)
    await setup.client.settle(lease, OK, ["files/1"])
    assert await setup.client.get_owner("files/1") == ("a", "p")


async def test_a_state_that_fails_is_tried_once_in_a_pause_by_no_call(
    setup: FallbackSetup,
) -> None:
    """It is called once; a thread tries it after a pause; its answer ends the outage."""
    setup.shared.cut()
    for _ in range(10):
        await setup.client.settle(await setup.client.acquire_lease(A))
    assert setup.shared.calls == ["acquire"]
    setup.clock.advance(PAUSE_S)
    for _ in range(10):
        assert (await setup.client.acquire_lease(A)).degraded
    wait_for(lambda: setup.shared.calls == ["acquire", "check"])
    await restored(setup)
    assert not (await setup.client.acquire_lease(A)).degraded


async def test_one_warning_at_the_start_of_an_outage_and_one_at_its_end(
    setup: FallbackSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """The log states what failed, what that means, and how long it lasted; each once."""
    setup.shared.cut()
    for _ in range(3):
        await setup.client.settle(await setup.client.acquire_lease(A))
    setup.clock.advance(10)
    await restored(setup)
    wait_for(lambda: len(warnings_of(caplog)) == 2)
    assert warnings_of(caplog) == [
        "pool test: the shared state cannot be used (ConnectionLostError); falling back to "
        "in-process limits",
        "pool test: the shared state is back after 12.0 s; limits are shared again",
    ]


async def test_what_its_own_calls_have_found_holds_in_an_outage(setup: FallbackSetup) -> None:
    """Cooldowns, learned limits and owners; not what others have used."""
    await setup.client.fails(A, failed(Scope.KEY, setup.clock.time() + 600))
    await setup.client.fails(C, failed(Scope.NONE, learned=Limits(rpm=3)))
    await setup.client.settle(await setup.client.acquire_lease(key("d")), OK, ["files/1"])
    setup.shared.cut()
    assert await setup.client.refused(A) == {"a": "failure"}
    assert await setup.client.granted(C) == 3
    assert await setup.client.get_owner("files/1") == ("d", "d")
    setup.state.reset(A)
    await setup.client.acquire_lease(A)


async def test_a_lease_is_settled_where_it_was_granted(setup: FallbackSetup) -> None:
    """One of before the outage is lost with it, one of the outage is unknown afterwards."""
    before = await setup.client.acquire_lease(FIVE)
    setup.shared.cut()
    during = await setup.client.acquire_lease(FIVE)
    await setup.client.settle(before)
    await restored(setup)
    await setup.client.settle(during)
    known = setup.shared.inner.snapshot([FIVE])["f"]
    assert (known.success_count, known.used[0].requests_minute) == (0, 1)


async def test_leases_in_flight_count_in_max_concurrency(setup: FallbackSetup) -> None:
    """A key with `max_concurrency` 2 takes two at once, whichever state granted the first."""
    one = key("k", Limits(max_concurrency=2))
    first = await setup.client.acquire_lease(one)
    setup.shared.cut()
    second = await setup.client.acquire_lease(one)
    assert await setup.client.refused(one) == {"k": "concurrency"}
    await setup.client.settle(first)
    first = await setup.client.acquire_lease(one)
    assert await setup.client.refused(one) == {"k": "concurrency"}
    await setup.client.settle(second)
    await setup.client.acquire_lease(one)


@pytest.mark.parametrize(("share", "room"), [(1.0, 10), (0.25, 2), (0.01, 1)])
async def test_an_outage_leaves_a_share_of_each_limit(
    clock: FakeClock, share: float, room: int
) -> None:
    """Of four processes each takes a quarter: rounded down, but one at the least."""
    setup = FallbackSetup(SyncClient, clock, share=share)
    setup.shared.cut()
    assert await setup.client.granted(key("s", Limits(rpm=10))) == room
    assert await setup.client.refused(key("z", Limits(rpd=0))) == {"z": "rpd"}


async def test_an_outage_of_a_day_keeps_counting(clock: FakeClock) -> None:
    """Days begin and end by the clock here too."""
    setup = FallbackSetup(SyncClient, clock)
    setup.shared.cut()
    one = key("y", Limits(rpd=3))
    assert await setup.client.granted(one) == 3
    clock.advance(DAY_S)
    assert await setup.client.granted(one) == 3


def test_the_pause_doubles_up_to_the_longest(clock: FakeClock) -> None:
    """Of many callers one may try; a success ends it."""
    breaker = Breaker(clock.time)
    assert breaker.open(clock.time())
    assert not breaker.open(clock.time())
    pauses, last = [], clock.time()
    while len(pauses) < 7:
        clock.advance(0.01)
        if breaker.may_try():
            assert not breaker.may_try()
            pauses.append(clock.time() - last)
            last = clock.time()
    assert pauses[:2] == pytest.approx([FIRST_PAUSE_S, 2 * FIRST_PAUSE_S], abs=0.02)
    assert pauses[-1] == pytest.approx(PAUSE_S, abs=0.02)
    assert breaker.close() == pytest.approx(sum(pauses), abs=0.1)
    assert breaker.opened_at is None
    assert not breaker.open(clock.time() - 1)
    assert breaker.opened_at is None


def test_many_callers_while_it_hangs_and_recovers(clock: FakeClock) -> None:
    """No call fails, each call waits once at the most, and each limit is used to its end."""
    ticks = time.monotonic
    state, shared = degrading(clock.time, breaker_clock=lambda: ticks() * 40)
    keys = tuple((0, key(f"k{n}", Limits(rpm=50 * (n + 1)))) for n in range(3))
    leases: list[Lease] = []

    def caller() -> None:
        for _ in range(30):
            reply = state.acquire(INFO, keys, spread=True)
            if isinstance(reply, Lease):
                leases.append(reply)
                state.settle(reply, OK)
            if len(leases) == 100:
                shared.cut(hangs_s=0.05)
            elif len(leases) == 200:
                shared.restore()

    threads = [threading.Thread(target=caller) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    granted = [sum(one.degraded == alone for one in leases) for alone in (False, True)]
    assert granted[0] <= 300
    assert 0 < granted[1] <= 300
    wait_for(lambda: state.acquire(INFO, keys, spread=True) and not state.degraded)


def test_closing_closes_the_shared_state(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It owns the shared state's connections."""
    state, shared = degrading(clock.time)
    closed: list[str] = []
    monkeypatch.setattr(shared, "close", lambda: closed.append("shared"))
    state.close()
    assert closed == ["shared"]
