"""A shared state that fails: calls continue, and limits hold."""

from __future__ import annotations

import asyncio

import pytest
from support.fallback import FIVE, A, C, FallbackSetup
from support.faulty_state import degrading, warnings_of
from support.pool import INFO, key
from support.sync_async import OK, UNSENT, AsyncClient, StateClient, failed, used

from keyrot_middleware.core.model import Limits, Scope
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.state.circuit_breaker import PAUSE_S
from keyrot_middleware.testing import FakeClock

# Calls continue --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["acquire", "settle", "get_owner"])
async def test_nothing_is_raised_whatever_fails(setup: FallbackSetup, method: str) -> None:
    """Each method that a call uses has an answer when the shared state is down."""
    setup.shared.cut(method)
    lease = await setup.client.acquire_lease(A)
    await setup.client.settle(lease, OK, ["files/1"])
    assert await setup.client.get_owner("files/1") == ("a", "p")


async def test_after_two_failures_the_shared_state_is_probed_once_per_pause(
    setup: FallbackSetup,
) -> None:
    """No call waits for a dead server: it is called twice, then once every pause, then again."""
    setup.shared.cut()
    for _ in range(10):
        await setup.client.settle(await setup.client.acquire_lease(A))
    assert setup.shared.calls == ["acquire", "check"]
    setup.shared.calls.clear()
    setup.clock.advance(PAUSE_S)
    for _ in range(10):
        await setup.client.settle(await setup.client.acquire_lease(A))
    assert setup.shared.calls == ["check"]
    setup.restore()
    setup.shared.calls.clear()
    await setup.client.settle(await setup.client.acquire_lease(A))
    assert setup.shared.calls == ["check", "record_usage", "acquire", "settle"]
    assert not setup.state.degraded


async def test_one_failure_is_no_outage(setup: FallbackSetup) -> None:
    """A call whose request is lost is served by in-process limits; the next one is shared again."""
    setup.shared.cut("acquire")
    assert (await setup.client.acquire_lease(FIVE)).degraded
    setup.shared.restore()
    assert not setup.state.degraded
    assert not (await setup.client.acquire_lease(FIVE)).degraded
    assert setup.shared.inner.snapshot([FIVE])["f"].used[0].requests_minute == 2


async def test_a_success_between_two_failures_keeps_limits_shared(setup: FallbackSetup) -> None:
    """Only failures in a row are an outage, however many there are."""
    for _ in range(5):
        setup.shared.cut("acquire")
        assert (await setup.client.acquire_lease(A)).degraded
        setup.shared.restore()
        assert not (await setup.client.acquire_lease(A)).degraded
    assert not setup.state.degraded


async def test_one_warning_at_the_start_of_an_outage_and_one_at_its_end(
    setup: FallbackSetup, caplog: pytest.LogCaptureFixture
) -> None:
    """The log states what failed, what that means, and how long it lasted; each once."""
    setup.shared.cut()
    for _ in range(5):
        await setup.client.settle(await setup.client.acquire_lease(A))
        setup.clock.advance(PAUSE_S)
    setup.restore()
    for _ in range(5):
        await setup.client.settle(await setup.client.acquire_lease(A))
    assert warnings_of(caplog) == [
        "pool test: the shared state cannot be used (ConnectionLostError); falling back to "
        "in-process limits",
        "pool test: the shared state is back after 10.0 s; limits are shared again",
    ]


async def test_degraded_is_reported(setup: FallbackSetup) -> None:
    """The state reports whether it counts alone, and each lease by which state it was granted."""
    assert not setup.state.degraded
    assert not (await setup.client.acquire_lease(A)).degraded
    setup.shared.cut()
    for _ in range(2):
        assert (await setup.client.acquire_lease(A)).degraded
    assert setup.state.degraded
    setup.restore()
    assert not (await setup.client.acquire_lease(A)).degraded
    assert not setup.state.degraded


@pytest.mark.parametrize("method", ["snapshot", "get_owner", "settle"])
async def test_a_success_that_proves_nothing_does_not_end_the_outage(
    setup: FallbackSetup, method: str
) -> None:
    """A server that refuses writes can still be read, and be sent commands that need no reply."""
    shared = await setup.client.acquire_lease(A)
    setup.shared.cut("acquire", "check", "record_usage")
    await setup.client.granted(A, 2)
    for _ in range(3):
        setup.clock.advance(PAUSE_S)
        if method == "settle":
            await setup.client.settle(shared)
        elif method == "get_owner":
            await setup.client.get_owner("files/a")
        else:
            setup.state.snapshot([A])
        assert setup.state.degraded


async def test_a_read_that_is_the_probe_ends_the_outage(setup: FallbackSetup) -> None:
    """A caller that only reads the health of keys notices too that the server is back."""
    setup.shared.cut()
    await setup.client.granted(A, 2)
    setup.restore()
    setup.state.snapshot([A])
    assert not setup.state.degraded
    setup.shared.cut()
    await setup.client.granted(A, 2)
    setup.restore()
    await setup.client.get_owner("files/a")
    assert not setup.state.degraded


async def test_a_cancelled_probe_is_no_failure(clock: FakeClock) -> None:
    """A task that is cancelled while it waits is no evidence against the server."""
    state, shared = degrading(clock.time)
    shared.cut(hangs_s=30)
    task = asyncio.create_task(AsyncClient(state).acquire_lease(A))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not state.degraded


def test_closing_closes_the_shared_state(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """It owns the shared state's connections."""
    state, shared = degrading(clock.time)
    closed: list[str] = []
    monkeypatch.setattr(shared, "close", lambda: closed.append("shared"))
    state.close()
    assert closed == ["shared"]


# Limits ----------------------------------------------------------------------------------------


async def test_what_this_process_used_before_counts(setup: FallbackSetup) -> None:
    """The windows of the minute continue: three before, two after, and no more."""
    assert await setup.client.granted(FIVE, 3) == 3
    setup.shared.cut()
    assert await setup.client.granted(FIVE) == 2
    assert await setup.client.refused(FIVE) == {"f": "rpm"}


async def test_true_tokens_and_unsent_requests_are_corrected_in_both(setup: FallbackSetup) -> None:
    """A correction at settle is applied locally too."""
    one = key("t", Limits(rpm=3, tpm=1_000))
    await setup.client.settle(
        await setup.client.acquire_lease(one, info=INFO._replace(tokens=900)), used(100)
    )
    await setup.client.settle(await setup.client.acquire_lease(one), UNSENT)
    setup.shared.cut()
    await setup.client.acquire_lease(one, info=INFO._replace(tokens=899))
    assert await setup.client.refused(one, info=INFO._replace(tokens=2)) == {"t": "tpm"}


async def test_what_others_have_exhausted_is_not_used_in_an_outage(setup: FallbackSetup) -> None:
    """The shared state has refused the key: it stays refused until the time it named."""
    await setup.other.granted(FIVE)
    assert await setup.client.refused(FIVE) == {"f": "rpm"}
    setup.shared.cut()
    assert await setup.client.refused(FIVE) == {"f": "rpm"}
    assert setup.state.get_blocks(INFO, [FIVE])["f"].reason == "rpm"
    setup.clock.advance(61)
    assert await setup.client.granted(FIVE) == 5


async def test_a_reset_in_an_outage_forgets_what_was_refused(setup: FallbackSetup) -> None:
    """The key is used again, as far as this process knows its limits."""
    await setup.other.fails(A, failed(Scope.KEY, setup.clock.time() + 600))
    assert await setup.client.refused(A) == {"a": "failure"}
    setup.shared.cut()
    assert await setup.client.refused(A) == {"a": "failure"}
    setup.state.reset(A)
    await setup.client.acquire_lease(A)


async def test_leases_in_flight_count_in_max_concurrency(setup: FallbackSetup) -> None:
    """A key with `max_concurrency` 2 takes two at once, whichever state granted the first."""
    one = key("k", Limits(max_concurrency=2))
    first = await setup.client.acquire_lease(one)
    setup.shared.cut()
    await setup.client.acquire_lease(one)
    assert await setup.client.refused(one) == {"k": "concurrency"}
    await setup.client.settle(first)
    await setup.client.acquire_lease(one)


@pytest.mark.parametrize(("share", "room"), [(1.0, 10), (0.25, 2), (0.01, 1)])
async def test_an_outage_leaves_a_share_of_each_limit(
    kind: type[StateClient], clock: FakeClock, share: float, room: int
) -> None:
    """Of four processes each takes a quarter: rounded down, but one at the least."""
    setup = FallbackSetup(kind, clock, share=share)
    setup.shared.cut()
    assert await setup.client.granted(key("s", Limits(rpm=10))) == room


async def test_an_outage_leaves_a_share_of_learned_limits_too(
    kind: type[StateClient], clock: FakeClock
) -> None:
    """A limit from Google's error is the whole project's; without an outage it is applied whole."""
    setup = FallbackSetup(kind, clock, share=0.5)
    await setup.client.fails(C, failed(Scope.NONE, learned=Limits(rpm=8)))
    assert await setup.client.granted(C, 4) == 4
    setup.shared.cut()
    assert await setup.client.refused(C) == {"c": "rpm"}
    clock.advance(60)
    assert await setup.client.granted(C) == 4


async def test_a_limit_of_zero_stays_zero(kind: type[StateClient], clock: FakeClock) -> None:
    """A share rounds up to one, but not where the whole is zero."""
    setup = FallbackSetup(kind, clock, share=0.5)
    setup.shared.cut()
    assert await setup.client.refused(key("z", Limits(rpd=0))) == {"z": "rpd"}


async def test_an_outage_of_a_day_keeps_counting(setup: FallbackSetup) -> None:
    """Days begin and end by the clock here too."""
    setup.shared.cut()
    one = key("y", Limits(rpd=3))
    assert await setup.client.granted(one) == 3
    setup.clock.advance(DAY_S)
    assert await setup.client.granted(one) == 3
