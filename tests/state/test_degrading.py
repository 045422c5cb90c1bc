"""A shared state that fails: the call goes on, and limits hold."""

from __future__ import annotations

import asyncio

import pytest
from doors import OK, UNSENT, Awaited, Door, failed, used
from outage import FIVE, A, Both, C
from support.faulty_state import degrading, warned
from support.pool import INFO, key

from keyrot_middleware.core.model import Limits, Scope
from keyrot_middleware.core.windows import DAY_S
from keyrot_middleware.state.circuit_breaker import PAUSE_S
from keyrot_middleware.testing import FakeClock

# Going on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["acquire", "settle", "get_owner"])
async def test_nothing_is_raised_whatever_fails(both: Both, method: str) -> None:
    """Each question that a call asks is answered when the shared state is down."""
    both.shared.cut(method)
    lease = await both.door.lend(A)
    await both.door.settle(lease, OK, ["files/1"])
    assert await both.door.get_owner("files/1") == ("a", "p")


async def test_after_a_failure_it_is_left_alone_and_then_looked_at(both: Both) -> None:
    """Nobody pays for a dead server: it is asked once, then once every pause, then again."""
    both.shared.cut()
    for _ in range(10):
        await both.door.settle(await both.door.lend(A))
    assert both.shared.asked == ["acquire"]
    both.clock.advance(PAUSE_S)
    for _ in range(10):
        await both.door.settle(await both.door.lend(A))
    assert both.shared.asked == ["acquire", "check"]
    both.mend()
    both.shared.asked.clear()
    await both.door.settle(await both.door.lend(A))
    assert both.shared.asked == ["check", "record_usage", "acquire", "settle"]
    assert not both.state.degraded


async def test_one_warning_when_it_begins_and_one_when_it_ends(
    both: Both, caplog: pytest.LogCaptureFixture
) -> None:
    """People learn what failed, what that means, and how long it was so; each once."""
    both.shared.cut()
    for _ in range(5):
        await both.door.settle(await both.door.lend(A))
        both.clock.advance(PAUSE_S)
    both.mend()
    for _ in range(5):
        await both.door.settle(await both.door.lend(A))
    assert warned(caplog) == [
        "pool test: the shared state cannot be used (LineDownError); falling back to "
        "in-process limits",
        "pool test: the shared state is back after 12.0 s; limits are shared again",
    ]


async def test_degraded_is_told(both: Both) -> None:
    """The state says whether it counts alone, and each lease by whom it was booked."""
    assert not both.state.degraded
    assert not (await both.door.lend(A)).degraded
    both.shared.cut()
    assert (await both.door.lend(A)).degraded
    assert both.state.degraded
    both.mend()
    assert not (await both.door.lend(A)).degraded
    assert not both.state.degraded


@pytest.mark.parametrize("method", ["snapshot", "get_owner", "settle"])
async def test_what_proves_nothing_does_not_end_it(both: Both, method: str) -> None:
    """A server that refuses to write can be read, and be sent what nobody waits for."""
    shared = await both.door.lend(A)
    both.shared.cut("acquire", "check", "record_usage")
    await both.door.lend(A)
    for _ in range(3):
        both.clock.advance(PAUSE_S)
        if method == "settle":
            await both.door.settle(shared)
        elif method == "get_owner":
            await both.door.get_owner("files/a")
        else:
            both.state.snapshot([A])
        assert both.state.degraded


async def test_a_read_that_looks_finds_out_that_it_is_back(both: Both) -> None:
    """Whoever only asks for the health of keys is not told for ever that nobody is there."""
    both.shared.cut()
    await both.door.lend(A)
    both.mend()
    both.state.snapshot([A])
    assert not both.state.degraded
    both.shared.cut()
    await both.door.lend(A)
    both.mend()
    await both.door.get_owner("files/a")
    assert not both.state.degraded


async def test_a_cancelled_look_is_no_failure(clock: FakeClock) -> None:
    """A task that is cancelled while it waits says nothing of the server."""
    state, shared = degrading(clock.time)
    shared.cut(hangs_s=30)
    task = asyncio.create_task(Awaited(state).lend(A))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not state.degraded


def test_closing_closes_the_shared_one(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections belong to the shared state."""
    state, shared = degrading(clock.time)
    closed: list[str] = []
    monkeypatch.setattr(shared, "close", lambda: closed.append("shared"))
    state.close()
    assert closed == ["shared"]


# Limits ----------------------------------------------------------------------------------------


async def test_what_this_process_used_before_counts(both: Both) -> None:
    """The windows of the minute go on: three before, two after, and no more."""
    assert await both.door.granted(FIVE, 3) == 3
    both.shared.cut()
    assert await both.door.granted(FIVE) == 2
    assert await both.door.refused(FIVE) == {"f": "rpm"}


async def test_true_tokens_and_unsent_requests_count_in_both(both: Both) -> None:
    """What a settle corrects is corrected here too."""
    one = key("t", Limits(rpm=3, tpm=1_000))
    await both.door.settle(await both.door.lend(one, info=INFO._replace(tokens=900)), used(100))
    await both.door.settle(await both.door.lend(one), UNSENT)
    both.shared.cut()
    await both.door.lend(one, info=INFO._replace(tokens=899))
    assert await both.door.refused(one, info=INFO._replace(tokens=2)) == {"t": "tpm"}


async def test_leases_under_way_hold_their_place(both: Both) -> None:
    """A key that takes two at once takes two, whoever lent the first."""
    one = key("k", Limits(max_concurrency=2))
    first = await both.door.lend(one)
    both.shared.cut()
    await both.door.lend(one)
    assert await both.door.refused(one) == {"k": "concurrency"}
    await both.door.settle(first)
    await both.door.lend(one)


@pytest.mark.parametrize(("share", "room"), [(1.0, 10), (0.25, 2), (0.01, 1)])
async def test_a_share_of_each_limit(
    kind: type[Door], clock: FakeClock, share: float, room: int
) -> None:
    """Of four processes each takes a quarter: rounded down, but one at the least."""
    both = Both(kind, clock, share=share)
    both.shared.cut()
    assert await both.door.granted(key("s", Limits(rpm=10))) == room


async def test_a_share_of_learned_limits_too(kind: type[Door], clock: FakeClock) -> None:
    """A limit that Google told is the whole project's; while all is well it is whole."""
    both = Both(kind, clock, share=0.5)
    await both.door.fails(C, failed(Scope.NONE, learned=Limits(rpm=8)))
    assert await both.door.granted(C, 4) == 4
    both.shared.cut()
    assert await both.door.refused(C) == {"c": "rpm"}
    clock.advance(60)
    assert await both.door.granted(C) == 4


async def test_a_limit_of_nothing_stays_nothing(kind: type[Door], clock: FakeClock) -> None:
    """A share rounds up to one, but not where the whole is zero."""
    both = Both(kind, clock, share=0.5)
    both.shared.cut()
    assert await both.door.refused(key("z", Limits(rpd=0))) == {"z": "rpd"}


async def test_an_outage_of_a_day_keeps_counting(both: Both) -> None:
    """Days begin and end by the clock here too."""
    both.shared.cut()
    one = key("y", Limits(rpd=3))
    assert await both.door.granted(one) == 3
    both.clock.advance(DAY_S)
    assert await both.door.granted(one) == 3
