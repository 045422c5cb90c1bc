"""Answers that never came: what they granted, and what they owed, keeps nobody waiting."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from doors import OK, Asked, Awaited, Door, failed
from over_redis import A, lend, opened
from rig import INFO, key
from servers import Server

from keyrot_middleware.core.model import Lease, Limits, Scope, Unavailable
from keyrot_middleware.state import DegradingState

pytestmark = pytest.mark.usefixtures("within_a_minute")

ONE = key("one", Limits(max_concurrency=1))


@pytest.fixture
def state(valkey: Server) -> Iterator[DegradingState]:
    """Open it as this process does."""
    with opened(valkey.strict_url) as state:
        yield state


@pytest.fixture
def other(valkey: Server) -> Iterator[DegradingState]:
    """Open it as another process does."""
    with opened(valkey.strict_url) as state:
        yield state


def shared_again(state: DegradingState) -> None:
    """Call until the shared state is used again."""
    until = time.monotonic() + 60
    while lend(state, A).degraded:
        assert time.monotonic() < until
        time.sleep(0.02)


def hangs(valkey: Server, door: Door) -> Lease:
    """Ask for a key while the server stands still; it runs what was asked for afterwards."""
    valkey.signal(signal.SIGSTOP)
    try:
        lease = asyncio.run(door.lend(ONE))
        asyncio.run(door.settle(lease))
    finally:
        valkey.signal(signal.SIGCONT)
    assert lease.degraded
    return lease


@pytest.mark.parametrize("kind", [Asked, Awaited])
@pytest.mark.parametrize("what", ["a place", "a probe"])
def test_a_grant_that_nobody_heard_of_is_let_go(
    what: str, kind: type[Door], state: DegradingState, other: DegradingState, valkey: Server
) -> None:
    """Its place, or its turn as the probe, is free for all as soon as the server is back."""
    lease = state.acquire(INFO, ((0, ONE),), spread=False)
    assert isinstance(lease, Lease)
    rests = failed(Scope.KEY, time.time() + 0.05, named=True)
    state.settle(lease, rests if what == "a probe" else OK)
    time.sleep(0.1)
    hangs(valkey, kind(state))
    shared_again(state)
    assert isinstance(other.acquire(INFO, ((0, ONE),), spread=False), Lease)


def test_a_probe_that_ends_while_the_server_is_away_is_told_afterwards(
    state: DegradingState, other: DegradingState, valkey: Server
) -> None:
    """Everybody waits for what becomes of it."""
    state.settle(lend(state, ONE), failed(Scope.KEY, time.time() + 0.05, named=True))
    time.sleep(0.1)
    probe = state.acquire(INFO, ((0, ONE),), spread=False)
    assert isinstance(probe, Lease)
    assert probe.probe
    assert isinstance(other.acquire(INFO, ((0, ONE),), spread=False), Unavailable)
    valkey.signal(signal.SIGSTOP)
    lend(state, A)
    state.settle(probe, OK)
    valkey.signal(signal.SIGCONT)
    shared_again(state)
    granted = other.acquire(INFO, ((0, ONE),), spread=False)
    assert isinstance(granted, Lease)
    assert not granted.probe


def test_lines_that_owe_an_answer_fail_no_second_look(
    state: DegradingState, valkey: Server
) -> None:
    """However many were open, it is shared again with the first look after the restart."""
    together = threading.Barrier(8)

    def call() -> None:
        for _ in range(5):
            lease = state.acquire(INFO, ((0, A),), spread=False)
            together.wait()
            assert isinstance(lease, Lease)
            state.settle(lease, OK)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    valkey.stop()
    assert lend(state, A).degraded
    valkey.start()
    time.sleep(0.35)
    assert not lend(state, A).degraded


def test_a_settle_of_before_an_outage_fails_no_look_after_it(
    state: DegradingState, valkey: Server
) -> None:
    """What a task sent and was not answered is no news once there is a new connection."""

    async def calls() -> None:
        door = Awaited(state)
        for _ in range(3):
            await door.settle(await door.lend(A))
        lease = await door.lend(A)
        valkey.signal(signal.SIGSTOP)
        await door.settle(lease)
        assert (await door.lend(A)).degraded
        valkey.stop()
        valkey.start()
        await asyncio.sleep(0.35)
        assert not (await door.lend(A)).degraded

    asyncio.run(calls())
